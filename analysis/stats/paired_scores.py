"""What goes into a comparison of two arms, paired by seed, and what comes out of it."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from analysis.stats.paired_tests import paired_differences

Verdict = Literal["better", "worse", "equivalent", "undecided"]
FEWEST_PAIRS = 5


@dataclass(frozen=True, eq=False)
class PairedScores:
    """The scores of an arm and of the reference on the same seeds in the same order.

    `margin`, in units of the score, is the largest difference that does not matter; it is fixed before the scores are
    seen. Raises ValueError, naming the arm, for scores that do not pair up or are not finite and for a margin that is
    not a positive number.
    """

    name: str
    arm: Float[np.ndarray, " arm_seeds"]
    reference: Float[np.ndarray, " reference_seeds"]
    higher_is_better: bool
    margin: float

    def __post_init__(self) -> None:
        if self.arm.shape != self.reference.shape:
            raise ValueError(
                f"{self.name}: scores are paired by seed; the arm has {self.arm.size} and the reference "
                f"{self.reference.size}. Keep the seeds that both have, in the same order"
            )
        for whose, scores in (("arm", self.arm), ("reference", self.reference)):
            broken = np.flatnonzero(~np.isfinite(scores))
            if broken.size:
                raise ValueError(
                    f"{self.name}: score {int(broken[0])} of the {whose} is {scores[broken[0]]}; "
                    "a failed run is never a score: leave its seed out of both"
                )
        if not 0 < self.margin < np.inf:
            raise ValueError(
                f"{self.name}: the margin of equivalence is a positive number in units of the score; "
                f"it is {self.margin}"
            )

    def advantages(self, look: int | None = None) -> Float[np.ndarray, " seeds"]:
        """Per seed how much better the arm is: arm - reference, or its negative where lower is better.

        `look`: of so many seeds, the first. Those that are equal but for the rounding of the scores come out equal.
        """
        better, worse = (self.arm, self.reference) if self.higher_is_better else (self.reference, self.arm)
        return paired_differences(better[:look], worse[:look])


@dataclass(frozen=True)
class Comparison:
    """An arm against the reference, in units of the score. What n seeds cannot tell is None."""

    name: str
    verdict: Verdict
    n: int
    """Seeds that it is judged on: those of the last look at it, or all on which both arms have a score."""
    difference: float | None
    """Mean of arm - reference, whichever is better; None without a seed."""
    advantage: float | None
    """Mean difference in the direction in which positive says that the arm is better."""
    sd: float | None
    """Standard deviation (n - 1) of the differences; None below two seeds."""
    interval: tuple[float, float] | None
    """t-interval of the advantage, of this comparison alone; None where no spread is seen.

    Its confidence is 1 - alpha w, w the part of the level that the last look at it spends (1 where there is one look),
    so that it covers the truth as often as 1 - alpha says wherever the comparison stops.
    """
    ordinary_interval: tuple[float, float] | None
    """The same of confidence 1 - alpha: after stopping it covers less often than it says."""
    margin: float
    weight: float
    """The part of the level that the last look at it spends; 1 where there is one look."""
    p: float | None
    """Two-sided paired t-test; this and every p below are None under five seeds."""
    p_holm: float | None
    p_sign_flip: float | None
    """A check that assumes symmetry only. It decides nothing; `note` says where a better or worse has none below alpha,
    although so many seeds could have given one."""
    p_equivalence: float | None
    """The larger of the two one-sided tests."""
    p_equivalence_holm: float | None
    minimum_detectable_difference: float | None
    """The difference found with 80 % power at n seeds and level alpha w / m, from the observed sd; None without spread.

    alpha / m is Holm's first step in a family of m: what a difference has to pass if it is the only one. Holm's later
    steps are easier and earlier looks only add, so that this is never too small.
    """
    seeds_to_settle: int | None
    """Where undecided: the fewest seeds that give a word with 80 % power, if the truth is the observed mean and sd.

    The word is better or worse (a t-test at alpha w / m) or equivalent (two one-sided, likewise), whichever takes
    fewer seeds. For planning only: mean and sd are themselves estimates from n seeds. None under five seeds, and where
    a million would not do.
    """
    note: str
    """What limits the verdict; empty where nothing does."""
