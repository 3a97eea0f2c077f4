"""Of two sources of noise, the share of the variance that each has."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats


class VarianceShare(NamedTuple):
    """Variances between groups and within them (that between groups may come out below 0), and the share of the first.

    `low` and `high` are the ends of the exact interval of the share.
    """

    between: float
    within: float
    share: float
    low: float
    high: float


def between_groups(scores: Float[np.ndarray, "groups repeats"], confidence: float = 0.95) -> VarianceShare:
    """The one-way random-effects analysis of variance: score = mean + group + repeat, both normal and independent.

    So the repeats of different groups must have nothing in common, such as a seed. The interval is that of F
    (Searle, Casella & McCulloch, Variance Components, 1992, section 3.6); what of it lies below 0 is cut.
    Raises ValueError for fewer than two groups or repeats, and where the repeats do not differ.
    """
    groups, repeats = scores.shape
    if groups < 2 or repeats < 2:
        raise ValueError(f"variance shares need two groups and two repeats; there are {groups} and {repeats}")
    means = scores.mean(axis=1)
    within = float(scores.var(axis=1, ddof=1).mean())
    if within == 0:
        raise ValueError("the repeats of a group are all equal, so there is no variance to share")
    f = repeats * float(means.var(ddof=1)) / within
    freedom, tail = (groups - 1, groups * (repeats - 1)), (1 - confidence) / 2
    share, low, high = (
        _share((f / quantile - 1) / repeats)
        for quantile in (1.0, stats.f.isf(tail, *freedom), stats.f.ppf(tail, *freedom))
    )
    return VarianceShare((f - 1) * within / repeats, within, share, low, high)


def _share(ratio: float) -> float:
    """σ²/(σ² + σ'²) from σ²/σ'²."""
    return max(0.0, ratio) / (1 + max(0.0, ratio))
