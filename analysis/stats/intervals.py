"""How well a handful of scores pins down their mean."""

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
