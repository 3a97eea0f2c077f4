"""The verdicts of a study: each arm against a reference fixed beforehand, paired by seed, in four words.

*better* and *worse*: the paired t-test rejects a difference of 0, Holm-adjusted over the family of comparisons.
*equivalent*: two one-sided paired t-tests place the difference inside a margin fixed beforehand, adjusted as a family
of their own. Where both hold the word is equivalent: the difference is real and too small to matter.
*undecided*: everything else, with what more seeds could show.
Where a study looks several times, after so many seeds each, p is the repeated one of `sequential.py`, and a word final.

With every arm equal to the reference, any false better or worse happens in at most alpha of studies; with every arm at
its margin, any false equivalent likewise: each kind of error is held by itself. Both rest on differences that are close
to normal, or heavy-tailed and symmetric: an arm that collapses in one run of ten shows nothing of it on eight seeds in
43 % of studies.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple, cast

import numpy as np
from jaxtyping import Float

from analysis.stats.intervals import mean_interval
from analysis.stats.multiplicity import holm
from analysis.stats.paired_scores import FEWEST_PAIRS, Comparison, PairedScores, Verdict
from analysis.stats.paired_tests import equivalence, paired_t, sign_flip
from analysis.stats.power import minimum_detectable_difference, seeds_for_equivalence, seeds_needed
from analysis.stats.sequential import Looks, weights


def compare(
    family: Sequence[PairedScores],
    *,
    alpha: float = 0.05,
    looks: Sequence[int] = (),
    generator: np.random.Generator | None = None,
) -> list[Comparison]:
    """The verdict of every comparison of a family, in its order.

    The family is what was planned: a comparison with under five seeds gets no verdict, and counts (as p = 1) in the
    adjustment of the others. `looks`: after how many seeds each the family is looked at; a comparison that has no
    scores for a look is not in it, and one that has its word goes no further. None: once, at all scores. `generator`
    draws the sign flips above 20 seeds; without one the same scores give the same p.
    Raises ValueError for an alpha outside (0, 1).
    """
    judged, used, levels = _look_by_look(family, alpha, looks)
    described = [_described(*each) for each in zip(family, used, levels, strict=True)]
    p_holm, p_equivalence_holm = holm(judged.p), holm(judged.p_equivalence)
    for i in np.flatnonzero(judged.ever_tested).tolist():
        flips = sign_flip(used[i], generator or np.random.default_rng(0))
        p, p_equivalence = float(paired_t(used[i])), float(equivalence(used[i], family[i].margin))
        tests = _Tests(p, float(p_holm[i]), flips.item(), p_equivalence, float(p_equivalence_holm[i]))
        described[i] = _judged(described[i], cast(Verdict, str(judged.words[i])), used[i], tests, levels[i])
    return described


def settle(family: Sequence[PairedScores], *, alpha: float, looks: Sequence[int]) -> list[str]:
    """The verdicts of `compare` alone, which are quick."""
    return [str(word) for word in _look_by_look(family, alpha, looks)[0].words]


def _look_by_look(
    family: Sequence[PairedScores], alpha: float, looks: Sequence[int]
) -> tuple[Looks, list[Float[np.ndarray, " seeds"]], list["_Level"]]:
    """What the looks find; of each comparison the advantages of the last look at it, and the level of that."""
    if not 0 < alpha < 1:
        raise ValueError(f"a level alpha lies between 0 and 1, both excluded; it is {alpha}")
    plan: list[tuple[int | None, float]] = [*zip(looks, weights(looks), strict=True)]
    plan = plan or [(None, 1.0)]
    judged, used = Looks((len(family),), alpha=alpha), [scores.advantages() for scores in family]
    levels = [_Level(alpha, plan[0][1], len(family))] * len(family)
    for look, weight in plan:
        least = max(look or 0, FEWEST_PAIRS)
        ready = [i for i, scores in enumerate(family) if judged.open[i] and scores.arm.size >= least]
        means, p, p_equivalence = (np.ones(len(family)) for _ in range(3))
        for i in ready:
            used[i], levels[i] = family[i].advantages(look), levels[i]._replace(weight=weight)
            means[i] = used[i].mean()
            p[i], p_equivalence[i] = paired_t(used[i]), equivalence(used[i], family[i].margin)
        judged.look(means, p, p_equivalence, ready=np.isin(np.arange(len(family)), ready), weight=weight)
    return judged, used, levels


def _judged(
    described: Comparison, verdict: Verdict, advantages: Float[np.ndarray, " seeds"], tests: "_Tests", level: "_Level"
) -> Comparison:
    """With its word and tests."""
    undecided, first = verdict == "undecided", level.first_step
    return replace(
        described,
        verdict=verdict,
        **tests._asdict(),
        minimum_detectable_difference=_minimum_detectable(advantages, first),
        seeds_to_settle=_seeds_to_settle(advantages, described.margin, first) if undecided else None,
        note=_note(verdict, advantages, tests, level),
    )


class _Level(NamedTuple):
    """The level of a study, the part of it that the last look at a comparison spends, and the size of its family."""

    alpha: float
    weight: float
    tests: int

    @property
    def of_look(self) -> float:
        return self.alpha * self.weight

    @property
    def first_step(self) -> float:
        """What Holm asks of the first of the family."""
        return self.of_look / self.tests


def _described(scores: PairedScores, advantages: Float[np.ndarray, " seeds"], level: _Level) -> Comparison:
    """What holds without any test."""
    n = advantages.size
    advantage = float(advantages.mean()) if n else None
    sd = None if n < 2 else 0.0 if np.ptp(advantages) == 0 else float(advantages.std(ddof=1))
    return Comparison(
        name=scores.name,
        verdict="undecided",
        n=n,
        difference=advantage if scores.higher_is_better or advantage is None else 0.0 - advantage,
        advantage=advantage,
        sd=sd,
        interval=_interval(advantages, level.of_look),
        ordinary_interval=_interval(advantages, level.alpha),
        margin=scores.margin,
        weight=level.weight,
        p=None,
        p_holm=None,
        p_sign_flip=None,
        p_equivalence=None,
        p_equivalence_holm=None,
        minimum_detectable_difference=None,
        seeds_to_settle=None,
        note=f"verdicts need {FEWEST_PAIRS} evaluation seeds, there are {n}",
    )


def _interval(advantages: Float[np.ndarray, " seeds"], level: float) -> tuple[float, float] | None:
    if not advantages.size or np.ptp(advantages) == 0:
        return None
    mean, half_width, _ = mean_interval(advantages, 1 - level)
    return None if half_width is None else (mean - half_width, mean + half_width)


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


def _note(verdict: Verdict, advantages: Float[np.ndarray, " seeds"], tests: _Tests, level: _Level) -> str:
    notes = []
    if np.ptp(advantages) == 0:
        notes.append(
            f"all {advantages.size} differences are {advantages[0]:.3g}: "
            "without spread t has no scale, and each p is that of exact sign flips"
        )
    if verdict == "equivalent" and tests.p_holm <= level.alpha:
        notes.append(f"{'better' if advantages.mean() > 0 else 'worse'}, by less than the margin")
    attainable = 2.0 ** (1 - np.count_nonzero(advantages))
    if verdict in ("better", "worse") and attainable <= level.of_look < tests.p_sign_flip:
        notes.append(f"exact sign flips do not confirm it (p = {tests.p_sign_flip:.2g})")
    for word, p in (("different", tests.p), ("equivalent", tests.p_equivalence)):
        if verdict == "undecided" and p <= level.of_look:
            notes.append(f"{word} when tested alone (p = {p:.2g}), not in a family of {level.tests}")
    return "; ".join(notes)
