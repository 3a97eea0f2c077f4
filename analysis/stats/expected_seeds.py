"""How many seeds a study takes that looks as they come in: simulated, from differences and a spread that are stated."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from analysis.stats.paired_tests import equivalence, paired_t
from analysis.stats.sequential import Looks, weights

FAMILIES = 1000


class Settled(NamedTuple):
    """What the looks at many families of comparisons find."""

    words: Shaped[np.ndarray, "families comparisons"]
    seeds: Int[np.ndarray, "families comparisons"]  # of the last look at each


def settle_families(
    advantages: Float[np.ndarray, "families comparisons seeds"],
    margin: float,
    *,
    looks: Sequence[int],
    alpha: float = 0.05,
    without: Bool[np.ndarray, "families comparisons looks"] | None = None,
) -> Settled:
    """`without`: comparisons that get no verdict from a look on; they stay in their family."""
    judged = Looks(advantages.shape[:-1], alpha=alpha)
    seeds = np.zeros(advantages.shape[:-1], dtype=np.int64)
    lost = np.zeros(advantages.shape[:-1], dtype=bool)
    for number, (look, weight) in enumerate(zip(looks, weights(looks), strict=True)):
        if without is not None:
            lost |= without[..., number] & judged.open
        ready, first = judged.open & ~lost, advantages[..., :look]
        seeds[judged.open] = look
        judged.look(first.mean(axis=-1), paired_t(first), equivalence(first, margin), ready=ready, weight=weight)
    return Settled(judged.words, seeds)


def expected_seeds(
    pairs: Sequence[tuple[int, int]],
    means: Float[np.ndarray, " arms"],
    *,
    sd: float,
    margin: float,
    alpha: float,
    looks: Sequence[int],
) -> tuple[Float[np.ndarray, " arms"], Settled]:
    """The mean number of seeds of each arm, and what each of the simulated studies came to.

    `pairs`: (arm, reference) of each comparison, by place in `means`. Scores are those means with independent normal
    noise, of which `sd` is that of the difference of two arms.
    """
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((FAMILIES, len(means), looks[-1])) * sd / np.sqrt(2)
    scores = means[:, None] + noise
    first, second = (np.array(each) for each in zip(*pairs, strict=True))
    settled = settle_families(scores[:, first] - scores[:, second], margin, looks=looks, alpha=alpha)
    seeds = np.full((FAMILIES, len(means)), looks[0])
    for comparison, pair in enumerate(pairs):
        for arm in pair:
            seeds[:, arm] = np.maximum(seeds[:, arm], settled.seeds[:, comparison])
    return seeds.mean(axis=0), settled
