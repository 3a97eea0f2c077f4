"""The verdicts of a study: each arm against a reference fixed beforehand, paired by seed, in four words.

*better* and *worse*: the paired t-test rejects a difference of 0, Holm-adjusted over the family of comparisons.
*equivalent*: two one-sided paired t-tests place the difference inside a margin fixed beforehand, adjusted as a family
of their own. Where both hold the word is equivalent: the difference is real and too small to matter.
*undecided*: everything else, with what more seeds could show.

With every arm equal to the reference, any false better or worse happens in at most alpha of studies; with every arm at
its margin, any false equivalent likewise: each kind of error is held by itself. Both rest on differences that are close
to normal, or heavy-tailed and symmetric: an arm that collapses in one run of ten shows nothing of it on eight seeds in
43 % of studies.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, cast

import numpy as np
from jaxtyping import Float, Shaped

from analysis.stats.intervals import mean_interval
from analysis.stats.multiplicity import holm
from analysis.stats.paired_tests import equivalence, paired_differences, paired_t, sign_flip
from analysis.stats.power import minimum_detectable_difference, seeds_for_equivalence, seeds_needed

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

    def advantages(self) -> Float[np.ndarray, " seeds"]:
        """Per seed, how much better the arm is: arm - reference, or its negative where lower is better.

        Differences that are equal but for the rounding of the scores come out equal.
        """
        better, worse = (self.arm, self.reference) if self.higher_is_better else (self.reference, self.arm)
        return paired_differences(better, worse)


@dataclass(frozen=True)
class Comparison:
    """An arm against the reference, in units of the score. What n seeds cannot tell is None."""

    name: str
    verdict: Verdict
    n: int
    """Seeds on which both arms have a score."""
    difference: float | None
    """Mean of arm - reference, whichever is better; None without a seed."""
    advantage: float | None
    """Mean difference in the direction in which positive says that the arm is better."""
    sd: float | None
    """Standard deviation (n - 1) of the differences; None below two seeds."""
    interval: tuple[float, float] | None
    """t-interval of the advantage, confidence 1 - alpha, of this comparison alone; None where no spread is seen."""
    margin: float
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
    """The difference found with 80 % power at n seeds and level alpha / m, from the observed sd; None without spread.

    alpha / m is Holm's first step in a family of m: what a difference has to pass if it is the only one. Holm's later
    steps are easier, so that this is never too small for the family.
    """
    seeds_to_settle: int | None
    """Where undecided: the fewest seeds that give a word with 80 % power, if the truth is the observed mean and sd.

    The word is better or worse (a t-test at alpha / m) or equivalent (two one-sided at alpha / m), whichever takes
    fewer seeds. For planning only: mean and sd are themselves estimates from n seeds. None under five seeds, and where
    a million would not do.
    """
    note: str
    """What limits the verdict; empty where nothing does."""


def compare(
    family: Sequence[PairedScores], *, alpha: float = 0.05, generator: np.random.Generator | None = None
) -> list[Comparison]:
    """The verdict of every comparison of a family, in its order.

    The family is what was planned: a comparison with under five seeds gets no verdict, and counts (as p = 1) in the
    adjustment of the others. `generator` draws the sign flips above 20 seeds; without one the same scores give the
    same p.
    Raises ValueError for an alpha outside (0, 1).
    """
    if not 0 < alpha < 1:
        raise ValueError(f"a level alpha lies between 0 and 1, both excluded; it is {alpha}")
    advantages = [scores.advantages() for scores in family]
    described = [_described(scores, each, alpha) for scores, each in zip(family, advantages, strict=True)]
    tested = [i for i, each in enumerate(advantages) if each.size >= FEWEST_PAIRS]
    means, p, p_equivalence = np.zeros(len(family)), np.ones(len(family)), np.ones(len(family))
    for i in tested:
        means[i] = advantages[i].mean()
        p[i], p_equivalence[i] = paired_t(advantages[i]), equivalence(advantages[i], family[i].margin)
    p_holm, p_equivalence_holm = holm(p), holm(p_equivalence)
    verdicts = words(means, p_holm, p_equivalence_holm, alpha=alpha)
    for i in tested:
        flips = sign_flip(advantages[i], generator or np.random.default_rng(0))
        tests = _Tests(*(float(each) for each in (p[i], p_holm[i], flips, p_equivalence[i], p_equivalence_holm[i])))
        verdict = cast(Verdict, str(verdicts[i]))
        level = alpha / len(family)
        seeds = _seeds_to_settle(advantages[i], family[i].margin, level) if verdict == "undecided" else None
        described[i] = replace(
            described[i],
            verdict=verdict,
            **tests._asdict(),
            minimum_detectable_difference=_minimum_detectable(advantages[i], level),
            seeds_to_settle=seeds,
            note=_note(verdict, advantages[i], tests, alpha, len(family)),
        )
    return described


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
    return np.select(rules, ["equivalent", "better", "worse"], default="undecided")


def _described(scores: PairedScores, advantages: Float[np.ndarray, " seeds"], alpha: float) -> Comparison:
    """What holds without any test."""
    n = advantages.size
    advantage = float(advantages.mean()) if n else None
    sd = 0.0 if n >= 2 else None
    interval = None
    if n and np.ptp(advantages) > 0:
        sd = float(advantages.std(ddof=1))
        mean, half_width, _ = mean_interval(advantages, 1 - alpha)
        interval = None if half_width is None else (mean - half_width, mean + half_width)
    return Comparison(
        name=scores.name,
        verdict="undecided",
        n=n,
        difference=advantage if scores.higher_is_better or advantage is None else 0.0 - advantage,
        advantage=advantage,
        sd=sd,
        interval=interval,
        margin=scores.margin,
        p=None,
        p_holm=None,
        p_sign_flip=None,
        p_equivalence=None,
        p_equivalence_holm=None,
        minimum_detectable_difference=None,
        seeds_to_settle=None,
        note=f"verdicts need {FEWEST_PAIRS} evaluation seeds, there are {n}",
    )


class _Tests(NamedTuple):
    p: float
    p_holm: float
    p_sign_flip: float
    p_equivalence: float
    p_equivalence_holm: float


def _minimum_detectable(advantages: Float[np.ndarray, " seeds"], level: float) -> float | None:
    if np.ptp(advantages) == 0:
        return None
    return minimum_detectable_difference(float(advantages.std(ddof=1)), advantages.size, alpha=level)


def _seeds_to_settle(advantages: Float[np.ndarray, " seeds"], margin: float, level: float) -> int | None:
    """The fewest seeds for either test at `level`, if the mean and sd of the advantages are the truth."""
    mean = float(advantages.mean())
    if np.ptp(advantages) == 0:  # p is 2^-n for equivalence and 2^(1 - n) for a difference
        halvings = math.ceil(-math.log2(level))
        return halvings if abs(mean) < margin else halvings + 1
    sd = float(advantages.std(ddof=1))
    ways = [seeds_needed(mean, sd, alpha=level), seeds_for_equivalence(margin, sd, alpha=level, difference=mean)]
    return min((way for way in ways if way is not None), default=None)


def _note(
    verdict: Verdict, advantages: Float[np.ndarray, " seeds"], tests: _Tests, alpha: float, family_size: int
) -> str:
    notes = []
    if np.ptp(advantages) == 0:
        notes.append(
            f"all {advantages.size} differences are {advantages[0]:.3g}: "
            "without spread t has no scale, and each p is that of exact sign flips"
        )
    if verdict == "equivalent" and tests.p_holm <= alpha:
        notes.append(f"{'better' if advantages.mean() > 0 else 'worse'}, by less than the margin")
    attainable = 2.0 ** (1 - np.count_nonzero(advantages))
    if verdict in ("better", "worse") and attainable <= alpha < tests.p_sign_flip:
        notes.append(f"exact sign flips do not confirm it (p = {tests.p_sign_flip:.2g})")
    for word, p in (("different", tests.p), ("equivalent", tests.p_equivalence)):
        if verdict == "undecided" and p <= alpha:
            notes.append(f"{word} when tested alone (p = {p:.2g}), not in a family of {family_size}")
    return "; ".join(notes)
