"""Many studies at once with tuning inside: the protocol's choices and verdicts, vectorised.

Scores are losses over the places of a grid on a log scale: five points, and two beyond each end that a seed (or, where
tuning is shared, all seeds) may add. Arrays are (families, arms, seeds, places); arm 0 is the reference.
"""

from dataclasses import dataclass

import numpy as np

from analysis.stats.comparisons import words
from analysis.stats.multiplicity import holm
from analysis.stats.paired_tests import equivalence, paired_t

PLACES = np.arange(-4, 5)  # steps from the middle of the grid
FIRST, LAST = 2, 6  # of the places: the ends of the grid
ALPHA = 0.05


@dataclass(frozen=True)
class Scores:
    """Validation and test scores of every run that could be trained; lower is better."""

    validation: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class Noise:
    """Shares of the variance of a run's score, 1 in all; what is left is a split's own.

    `seed` is common to all arms and rates of a seed, `arm` to the rates of an arm at a seed, `run` to both splits.
    """

    seed: float
    arm: float
    run: float

    def draw(self, generator: np.random.Generator, shape: tuple[int, int, int]) -> Scores:
        families, arms, seeds = shape
        common = np.sqrt(self.seed) * generator.normal(size=(families, 1, seeds, 1))
        common = common + np.sqrt(self.arm) * generator.normal(size=(families, arms, seeds, 1))
        whole = (*shape, len(PLACES))
        common = common + np.sqrt(self.run) * generator.normal(size=whole)
        split = np.sqrt(1 - self.seed - self.arm - self.run)
        return Scores(*(common + split * generator.normal(size=whole) for _ in range(2)))


INDEPENDENT, SHARED = Noise(seed=0, arm=0, run=0.5), Noise(seed=0.5, arm=0.2, run=0)


def curve(cost: float, optimum: np.ndarray) -> np.ndarray:
    """(families, 1, 1, places): what a rate costs that is off the optimum."""
    return cost * (PLACES - optimum[:, None, None, None]) ** 2


def choose(validation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The place of each choice over the last axis, and whether it is an end of the extended grid.

    Ties go to the lower place; NaN is a run that failed.
    """
    grid = np.full_like(validation, np.inf)
    grid[..., FIRST : LAST + 1] = _finite(validation)[..., FIRST : LAST + 1]
    best = grid.argmin(-1)
    seen_below = np.isfinite(grid).cumsum(-1) - np.isfinite(grid)  # finished points of a lower rate
    higher = best == LAST
    lower = ~higher & (np.take_along_axis(seen_below, best[..., None], -1)[..., 0] == 0)
    grid[..., LAST + 1 :] = np.where(higher[..., None], _finite(validation)[..., LAST + 1 :], np.inf)
    grid[..., :FIRST] = np.where(lower[..., None], _finite(validation)[..., :FIRST], np.inf)
    again = grid.argmin(-1)
    seen_below = np.isfinite(grid).cumsum(-1) - np.isfinite(grid)
    none_below = np.take_along_axis(seen_below, again[..., None], -1)[..., 0] == 0
    highest = np.where(higher, len(PLACES) - 1, LAST)
    return again, (again == highest) | none_below


def _finite(scores: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(scores), scores, np.inf)


def replicated(scores: Scores) -> tuple[np.ndarray, np.ndarray]:
    """(families, arms, seeds) test scores at each seed's own choice, and (families, arms) whether an arm is tuned."""
    best, at_end = choose(scores.validation)
    chosen = np.take_along_axis(scores.test, best[..., None], -1)[..., 0]
    return chosen, 2 * at_end.sum(-1) <= at_end.shape[-1]


def shared(scores: Scores, tuning: int) -> tuple[np.ndarray, np.ndarray]:
    """The same where the first `tuning` seeds choose one point for all the others."""
    best, at_end = choose(scores.validation[:, :, :tuning].mean(2))
    fresh = scores.test[:, :, tuning:]
    return np.take_along_axis(fresh, best[:, :, None, None], -1)[..., 0], ~at_end


def verdicts(chosen: np.ndarray, tuned: np.ndarray, margin: float) -> np.ndarray:
    """(families, arms - 1) words; an arm that is not tuned has none, nor has any where the reference is not."""
    advantages = chosen[:, :1] - chosen[:, 1:]
    judged = tuned[:, 1:] & tuned[:, :1]
    p = np.where(judged, paired_t(advantages), 1.0)
    p_equivalence = np.where(judged, equivalence(advantages, margin), 1.0)
    found = words(advantages.mean(-1), holm(p), holm(p_equivalence), alpha=ALPHA)
    return np.where(judged, found, "")


def any_of(found: np.ndarray, *wrong: str) -> float:
    """The share of families with one of these words."""
    return float(np.isin(found, wrong).any(-1).mean())


def resampled(pool: Scores, generator: np.random.Generator, *, families: int, arms: int, seeds: int) -> Scores:
    """Families of one method: each arm has seeds of its own, drawn without replacement from a pool (seeds, places)."""
    size = len(pool.validation)
    order = np.argsort(generator.random((families, size)), axis=1)[:, : arms * seeds].reshape(families, arms, seeds)
    return Scores(pool.validation[order], pool.test[order])
