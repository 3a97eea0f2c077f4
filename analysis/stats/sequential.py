"""Tests that are repeated as seeds come in: a word as soon as a look finds it, and one level for all looks together.

At look t, after n_t seeds, a test spends the part w_t = n_t / (n_1 + ... + n_T) of its level. The repeated p at look t
is r_t = min over s <= t of min(1, p_s / w_s). Under a true hypothesis P(some r_t <= g) <= sum of w_t g = g, whatever
the joint law of the looks and at any degrees of freedom, and Holm's procedure on r over the whole planned family needs
no more. A comparison that has its word stops and keeps its r, so that the others' adjusted p is no smaller than if it
had gone on. This is the procedure of Maurer & Bretz (Stat. Biopharm. Res. 2013) with Bonferroni spending. With one look
everything is as without.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Shaped

from analysis.stats.multiplicity import holm

UNDECIDED = "undecided"


def weights(looks: Sequence[int]) -> list[float]:
    """The part of the level that each look spends: in proportion to its seeds."""
    return [look / sum(looks) for look in looks]


class Looks:
    """What a family of comparisons, or many families at once, has shown so far."""

    def __init__(self, shape: tuple[int, ...], *, alpha: float) -> None:
        self.alpha = alpha
        self.p, self.p_equivalence = np.ones(shape), np.ones(shape)  # repeated
        self.sign = np.zeros(shape)  # of the mean advantage where `p` comes from
        self.words = np.full(shape, UNDECIDED, dtype="<U10")
        self.ever_tested = np.zeros(shape, dtype=bool)

    @property
    def open(self) -> Bool[np.ndarray, "*families tests"]:
        """The comparisons that have no word."""
        return self.words == UNDECIDED

    def look(
        self,
        advantage: Float[np.ndarray, "*families tests"],
        p: Float[np.ndarray, "*families tests"],
        p_equivalence: Float[np.ndarray, "*families tests"],
        *,
        ready: Bool[np.ndarray, "*families tests"],
        weight: float,
    ) -> None:
        """Take note of a look's mean advantages and p values, of the open comparisons that are `ready` for it."""
        tested = ready & self.open
        self.ever_tested |= tested
        spent = np.where(tested, np.minimum(p / weight, 1.0), 1.0)
        self.sign = np.where(spent < self.p, np.sign(advantage), self.sign)
        self.p = np.minimum(self.p, spent)
        self.p_equivalence = np.minimum(self.p_equivalence, np.where(tested, p_equivalence / weight, 1.0))
        found = words(self.sign, holm(self.p), holm(self.p_equivalence), alpha=self.alpha)
        self.words = np.where(tested, found, self.words)


def words(
    advantage: Float[np.ndarray, "*families"],
    p_holm: Float[np.ndarray, "*families"],
    p_equivalence_holm: Float[np.ndarray, "*families"],
    *,
    alpha: float,
) -> Shaped[np.ndarray, "*families"]:
    """The verdict of each comparison from its mean advantage and adjusted p values."""
    differs = p_holm <= alpha
    rules = [p_equivalence_holm <= alpha, differs & (advantage > 0), differs & (advantage < 0)]
    return np.select(rules, ["equivalent", "better", "worse"], default=UNDECIDED)
