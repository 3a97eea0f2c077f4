"""How well a handful of scores pins down their mean, or the ratio of two means."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats


class MeanInterval(NamedTuple):
    """`mean` ± `half_width` from `n` values; `half_width` is None for one value, which says nothing of its spread."""

    mean: float
    half_width: float | None
    n: int


def mean_interval(values: Float[np.ndarray, " n"], confidence: float = 0.95) -> MeanInterval:
    """The two-sided t-interval of the mean (Student, Biometrika 1908), in the units of the values.

    Student's t and no percentile bootstrap: that one covers too little with a handful of values.
    Raises ValueError for no values, for values that are not finite, and for a confidence outside (0, 1).
    """
    wide = np.asarray(values, dtype=np.float64)
    if wide.size == 0 or not np.isfinite(wide).all():
        raise ValueError(f"a mean needs finite values, at least one; they are {wide.tolist()}")
    if not 0 < confidence < 1:
        raise ValueError(f"a confidence lies between 0 and 1, both excluded; it is {confidence}")
    mean, n = float(wide.mean()), wide.size
    if n == 1:
        return MeanInterval(mean, None, n)
    if np.ptp(wide) == 0:
        return MeanInterval(mean, 0.0, n)
    half_width = stats.t.isf((1 - confidence) / 2, n - 1) * wide.std(ddof=1) / np.sqrt(n)
    return MeanInterval(mean, float(half_width), n)


def fieller(
    kept_gain: Float[np.ndarray, "*families seeds"], full_gain: Float[np.ndarray, "*families seeds"], *, alpha: float
) -> tuple[Float[np.ndarray, "*families"], Float[np.ndarray, "*families"]]:
    """(low, high): all ratios rho that a two-sided paired t-test of mean(kept_gain - rho full_gain) = 0 lets stand.

    The roots of a rho² - 2 b rho + c <= 0 (Fieller, J. R. Statist. Soc. B 1954). Where the mean of `full_gain` differs
    from 0 at level alpha, a > 0 and they are an interval. Otherwise they are unbounded: everything (-inf, inf), a half
    line with one infinite end, or the complement of an interval. The last has **low > high**: every ratio up to `high`
    and every ratio from `low` on.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"a level alpha lies between 0 and 1, both excluded; it is {alpha}")
    n = full_gain.shape[-1]
    means = kept_gain.mean(axis=-1), full_gain.mean(axis=-1)
    spread = [each - each.mean(axis=-1, keepdims=True) for each in (kept_gain, full_gain)]
    per_covariance = stats.t.isf(alpha / 2, n - 1) ** 2 / (n * (n - 1))
    a = np.asarray(means[1] ** 2 - per_covariance * (spread[1] ** 2).sum(axis=-1))
    b = means[0] * means[1] - per_covariance * (spread[0] * spread[1]).sum(axis=-1)
    c = means[0] ** 2 - per_covariance * (spread[0] ** 2).sum(axis=-1)
    inside = b**2 - a * c
    larger = b + np.copysign(np.sqrt(np.maximum(inside, 0.0)), b)  # b ± root without cancellation
    with np.errstate(divide="ignore", invalid="ignore"):
        far, near = larger / a, np.where(larger == 0, 0.0, c / larger)
    low, high = np.where(b >= 0, near, far), np.where(b >= 0, far, near)
    everything = ((a < 0) & (inside < 0)) | ((a == 0) & (b == 0))
    low = np.where(everything | ((a == 0) & (b < 0)), -np.inf, low)
    high = np.where(everything | ((a == 0) & (b > 0)), np.inf, high)
    return low, high
