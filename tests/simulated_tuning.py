"""Tuning and verdicts of many families of arms at once, and runs to feed them: simulated ones whose truth is known.

What `experiments/studies/protocol` and `analysis/study_results/verdicts` do trial by trial is done here on whole
arrays: a grid of five rates in equal steps, the choice of a point, one extension by two points, the arms that are not
tuned, and the words. Arm 0 of a family is the reference of all others; lower scores are better.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from analysis.stats.expected_seeds import settle_families

STEPS = np.arange(-4, 5)  # of all points from the centre of the grid
LOWEST, HIGHEST = 2, 6  # the points that begin and end the grid; two more on either side are trained where it goes on
CENTRE = 4
ADDED = 2
NONE = -1  # the choice where every point failed
WITHOUT = "no verdict"


@dataclass(frozen=True)
class Runs:
    """What each run comes to, by ascending rate; NaN where it fails."""

    validation: Float[np.ndarray, "*families seeds points"]
    loss: Float[np.ndarray, "*families seeds points"]
    test: Float[np.ndarray, "*families seeds points"]


@dataclass(frozen=True)
class Scored:
    """The test scores that arms are compared by, and which seeds chose no end of their extended grid."""

    scores: Float[np.ndarray, "families arms seeds"]
    tuned: Bool[np.ndarray, "families arms seeds"]

    @property
    def complete(self) -> Bool[np.ndarray, "families arms"]:
        """Tuned, and with a score for every seed."""
        return self.complete_after(self.scores.shape[-1])

    def complete_after(self, seeds: int) -> Bool[np.ndarray, "families arms"]:
        most_tuned = 2 * np.count_nonzero(~self.tuned[..., :seeds], axis=-1) <= seeds
        return most_tuned & np.isfinite(self.scores[..., :seeds]).all(axis=-1)

    def advantages(self) -> Float[np.ndarray, "families comparisons seeds"]:
        """By how much each arm is better than the reference."""
        return self.scores[:, :1] - self.scores[:, 1:]


def replicated(runs: Runs) -> Scored:
    """Each seed is tuned by its own runs, and scored by the run that it chose."""
    chosen, tuned = choice(runs.validation, runs.loss)
    return Scored(scores_at(runs.test, chosen), tuned)


def shared(tuning: Runs, evaluation: Runs) -> Scored:
    """One point is chosen on the tuning seeds, for all evaluation seeds."""
    chosen, tuned = choice(tuning.validation.mean(axis=-2), tuning.loss.mean(axis=-2))
    shape = evaluation.test.shape[:-1]
    scores = scores_at(evaluation.test, np.broadcast_to(chosen[..., None], shape))
    return Scored(scores, np.broadcast_to(tuned[..., None], shape))


def choice(
    scores: Float[np.ndarray, "*replications points"], losses: Float[np.ndarray, "*replications points"]
) -> tuple[Int[np.ndarray, "*replications"], Bool[np.ndarray, "*replications"]]:
    """The point that each replication chooses, and whether it is tuned."""
    shape = scores.shape[:-1]
    rows, ties = scores.reshape(-1, len(STEPS)), losses.reshape(-1, len(STEPS))
    first, last = np.full(len(rows), LOWEST), np.full(len(rows), HIGHEST)
    chosen = _best(rows[:, LOWEST : HIGHEST + 1], ties[:, LOWEST : HIGHEST + 1]) + LOWEST
    higher, lower = _ends(rows, chosen, first, last)
    last[higher] += ADDED
    first[lower] -= ADDED
    again = np.flatnonzero(higher | lower)
    points = np.arange(len(STEPS))
    open_to = (points >= first[again, None]) & (points <= last[again, None])
    chosen[again] = _best(np.where(open_to, rows[again], np.nan), ties[again])
    tuned = np.ones(len(rows), dtype=bool)
    tuned[again] = ~np.logical_or(*_ends(rows[again], chosen[again], first[again], last[again]))
    failed = np.isnan(rows[:, LOWEST : HIGHEST + 1]).all(axis=1)
    alike = np.logical_and(*(np.ptp(each[:, LOWEST : HIGHEST + 1], axis=1) == 0 for each in (rows, ties)))
    chosen = np.select([failed, alike], [NONE, CENTRE], default=chosen)
    return chosen.reshape(shape), ((tuned & ~failed) | alike).reshape(shape)


def verdicts(
    scored: Scored, margin: float, *, looks: Sequence[int] = (), alpha: float = 0.05
) -> Shaped[np.ndarray, "families comparisons"]:
    """The word of every comparison; one without a verdict stays in its family. No looks: one, at all seeds."""
    plan = looks or (scored.scores.shape[-1],)
    complete = np.stack([scored.complete_after(look) for look in plan], axis=-1)
    without = ~(complete[:, :1] & complete[:, 1:])
    advantages = np.nan_to_num(scored.advantages())
    found = settle_families(advantages, margin, looks=plan, alpha=alpha, without=without)
    lost = (found.words == "undecided") & without.any(axis=-1)
    return np.where(lost, WITHOUT, found.words)


def scores_at(
    scores: Float[np.ndarray, "*runs points"], chosen: Int[np.ndarray, "*runs"]
) -> Float[np.ndarray, "*runs"]:
    """Those of the chosen points; NaN where there is none."""
    found = np.take_along_axis(scores, np.maximum(chosen, 0)[..., None], axis=-1)[..., 0]
    return np.where(chosen == NONE, np.nan, found)


def falsely_different(scored: Scored, *, looks: Sequence[int] = ()) -> float:
    """The share of families of arms that are alike with a better or worse; the margin hides none."""
    return float(np.isin(verdicts(scored, 1e-9, looks=looks), ["better", "worse"]).any(axis=1).mean())


def _best(
    scores: Float[np.ndarray, "replications points"], losses: Float[np.ndarray, "replications points"]
) -> Int[np.ndarray, " replications"]:
    """The lowest score, of equal ones the lowest loss, of equal ones the lowest rate."""
    finite = np.where(np.isnan(scores), np.inf, scores)
    tied = finite == finite.min(axis=1, keepdims=True)
    return np.where(tied, losses, np.inf).argmin(axis=1)


def _ends(
    scores: Float[np.ndarray, "replications points"],
    chosen: Int[np.ndarray, " replications"],
    first: Int[np.ndarray, " replications"],
    last: Int[np.ndarray, " replications"],
) -> tuple[Bool[np.ndarray, " replications"], Bool[np.ndarray, " replications"]]:
    """Whether the choice is the highest point that was tried, and whether no lower one finished."""
    points = np.arange(len(STEPS))
    below = (points >= first[:, None]) & (points < chosen[:, None]) & ~np.isnan(scores)
    higher = chosen == last
    return higher, ~higher & ~below.any(axis=1)


@dataclass(frozen=True)
class Noise:
    """Standard deviations of what moves a score; all but `split` move validation and test alike.

    A run's own noise and what its seed shares are of variance 1 together.
    """

    seed: float  # of all arms and rates
    arm: float  # of all rates of an arm and seed
    run: float
    split: float  # of each split of a run


INDEPENDENT = Noise(seed=0.0, arm=0.0, run=1.0, split=0.5)
SHARED = Noise(seed=0.5**0.5, arm=0.2**0.5, run=0.3**0.5, split=0.3)


def simulated(
    generator: np.random.Generator,
    noise: Noise,
    *,
    costs: Float[np.ndarray, " arms"],
    optima: Float[np.ndarray, " families"],
    seeds: int,
) -> Runs:
    """Runs whose expected score is `cost` times the squared steps from the family's optimum, and 0 there."""
    families, arms = len(optima), len(costs)
    distances = STEPS - optima[:, None, None, None]
    run = noise.run * generator.standard_normal((families, arms, seeds, len(STEPS)))
    run += costs[:, None, None] * distances**2
    run += noise.arm * generator.standard_normal((families, arms, seeds, 1))
    run += noise.seed * generator.standard_normal((families, 1, seeds, 1))
    validation, test = (run + noise.split * generator.standard_normal(run.shape) for _ in range(2))
    return Runs(validation, validation, test)


def error(rate: float, families: int) -> float:
    """Three standard errors of a rate."""
    return 3 * float(np.sqrt(rate * (1 - rate) / families))
