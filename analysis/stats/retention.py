"""How much of full fine-tuning's gain a smaller update keeps, paired by seed, and whether that is enough.

Three scores belong to a seed: `kept` of the smaller update (truncated, or an adapter's), `full` of full fine-tuning and
`floor` of no update. What must be kept is a share c of the mean gain. The tests are of the linear form
d = (kept - floor) - c (full - floor), whose mean is above 0 where more than c is kept: other than the ratio it needs no
gain that is far from 0. Both say something only where full fine-tuning gains at all: where it loses, losing less than
c of that loss reads as "keeps enough". So `gain_test` comes first, and nothing else after it has failed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from analysis.stats.intervals import fieller, mean_interval
from analysis.stats.paired_scores import FEWEST_PAIRS
from analysis.stats.paired_tests import paired_differences, paired_t_above, sign_flip_above
from analysis.stats.power import seeds_needed


@dataclass(frozen=True)
class Retention:
    """The share of the gain that is kept, and one-sided tests of whether it is above or below what is required."""

    share: float
    """Mean gain of the smaller update over the mean gain of full fine-tuning."""
    low: float
    """With `high` the Fieller interval of the share: see `fieller` for ends that are infinite or in reverse order."""
    high: float
    p_holds: float
    """Paired t; small where more than the required share is kept."""
    p_fails: float
    """Paired t; small where less is kept."""
    p_flip_holds: float
    """Exact sign flips beside the t-tests: they assume symmetry only, cannot go below 2^-n and decide nothing."""
    p_flip_fails: float
    n: int


class Gain(NamedTuple):
    """What full fine-tuning gains; positive is better, whichever way the score goes."""

    gain: float
    low: float
    high: float
    p: float
    """One-sided paired t; small where there is a gain."""
    n: int


class FixedSequence(NamedTuple):
    least: int | None
    """The smallest k up to which all tests from the largest down reject; None where the largest one does not."""
    p: float
    """Of the sequence: the largest p from the largest k down to `least`; where that is None, the p of the largest k."""


def retention(
    kept: Float[np.ndarray, "..."],
    full: Float[np.ndarray, "..."],
    floor: Float[np.ndarray, "..."],
    *,
    higher_is_better: bool,
    required: float = 0.95,
    alpha: float = 0.05,
) -> Retention:
    """The share kept, its interval of confidence 1 - alpha and the tests against `required`, from (seeds,) scores.

    The interval is two-sided, the tests are one-sided: at level alpha they agree with the interval of 1 - 2 alpha.
    Raises ValueError where `linear_form` does, for an alpha outside (0, 1), and for a mean gain of 0.
    """
    d = linear_form(kept, full, floor, higher_is_better=higher_is_better, required=required)
    gains = [paired_differences(*_ordered(scores, floor, higher_is_better)) for scores in (kept, full)]
    if gains[1].mean() == 0:
        raise ValueError("a share of a mean gain of 0 is not defined; test the gain first, and nothing where it fails")
    low, high = fieller(*gains, alpha=alpha)
    return Retention(
        share=float(gains[0].mean() / gains[1].mean()),
        low=float(low),
        high=float(high),
        p_holds=float(paired_t_above(d)),
        p_fails=float(paired_t_above(-d)),
        p_flip_holds=float(sign_flip_above(d, np.random.default_rng(0))),
        p_flip_fails=float(sign_flip_above(-d, np.random.default_rng(0))),
        n=d.size,
    )


def linear_form(
    kept: Float[np.ndarray, "..."],
    full: Float[np.ndarray, "..."],
    floor: Float[np.ndarray, "..."],
    *,
    higher_is_better: bool,
    required: float = 0.95,
) -> Float[np.ndarray, "..."]:
    """d of every seed (the last axis): its mean is above 0 where more than `required` of the mean gain is kept.

    Raises ValueError for scores that do not pair up, are fewer than two or not finite, and for a `required` outside
    (0, 1).
    """
    _check({"kept": kept, "full": full, "floor": floor})
    if not 0 < required < 1:
        raise ValueError(f"the share required of a gain lies between 0 and 1, both excluded; it is {required}")
    line = required * np.asarray(full, dtype=np.float64) + (1 - required) * np.asarray(floor, dtype=np.float64)
    return paired_differences(*_ordered(kept, line, higher_is_better))


def gain_test(
    full: Float[np.ndarray, "..."], floor: Float[np.ndarray, "..."], *, higher_is_better: bool, alpha: float = 0.05
) -> Gain:
    """The mean gain of full fine-tuning, its t-interval of confidence 1 - alpha and the one-sided p of "none".

    Raises ValueError for scores that do not pair up, are fewer than two or not finite, and for an alpha outside (0, 1).
    """
    _check({"full": full, "floor": floor})
    gains = paired_differences(*_ordered(full, floor, higher_is_better))
    mean, half_width, n = mean_interval(gains, 1 - alpha)
    return Gain(mean, mean - (half_width or 0.0), mean + (half_width or 0.0), float(paired_t_above(gains)), n)


def fixed_sequence(p_values: Mapping[int, float], alpha: float) -> FixedSequence:
    """The least k of tests taken from the largest k down, each at level alpha, until one does not reject.

    Any true hypothesis is rejected with probability alpha at most and no adjustment is needed, for the order is fixed
    beforehand. Raises ValueError for no tests and for a p value outside [0, 1].
    """
    if not p_values or not all(0 <= p <= 1 for p in p_values.values()):
        raise ValueError(f"a sequence of tests needs a p value in [0, 1] for every k; they are {dict(p_values)}")
    largest_first = sorted(p_values, reverse=True)
    found = FixedSequence(None, p_values[largest_first[0]])
    for k in largest_first:
        if p_values[k] > alpha:
            break
        found = FixedSequence(k, max(found.p, p_values[k]))
    return found


def seeds_to_settle(differences: Float[np.ndarray, " seeds"], *, alpha: float) -> int | None:
    """The fewest seeds with which the one-sided test at level alpha decides in the observed direction, power 0.8.

    `differences` is the linear form, whose observed mean and sd are taken as the truth: for planning only. Never fewer
    than the five without which there is no word. None where a million would not do, as for a mean of 0.
    """
    mean = float(differences.mean())
    if np.ptp(differences) > 0:
        # the other tail of the two-sided test at 2 alpha adds nothing where the power is 0.8
        needed = seeds_needed(mean, float(differences.std(ddof=1)), alpha=2 * alpha)
    else:
        needed = math.ceil(-math.log2(alpha)) if mean else None  # p is 2^-n
    return None if needed is None else max(FEWEST_PAIRS, needed)


def _ordered(
    scores: Float[np.ndarray, "..."], below: Float[np.ndarray, "..."], higher_is_better: bool
) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    """The two whose difference is positive where `scores` are better."""
    return (scores, below) if higher_is_better else (below, scores)


def _check(scores: Mapping[str, Float[np.ndarray, "..."]]) -> None:
    if len({each.shape for each in scores.values()}) > 1:
        lengths = ", ".join(f"{name} {each.shape[-1]}" for name, each in scores.items())
        raise ValueError(f"scores are paired by seed; there are {lengths}. Keep the seeds that all have, in one order")
    for name, each in scores.items():
        broken = each[~np.isfinite(each)]
        if broken.size:
            raise ValueError(
                f"a score of {name} is {broken.flat[0]}; a failed run is never a score: leave its seed out of all"
            )
    n = next(iter(scores.values())).shape[-1]
    if n < 2:
        raise ValueError(f"a t-test needs at least two paired seeds; there are {n}")
