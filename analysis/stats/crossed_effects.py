"""A mean over seeds *and* test rows: how far it would move on other seeds and another test split of that size."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import stats


class CrossedMean(NamedTuple):
    """The mean of a table of seeds by rows, its standard error over both, and Satterthwaite's degrees of freedom.

    Variances are those of one seed, of one row, and of the rest; one that comes out below 0 is 0.
    """

    mean: float
    standard_error: float
    freedom: float
    of_seeds: float
    of_rows: float
    of_rest: float

    def interval(self, level: float) -> tuple[float, float]:
        """Of confidence 1 - `level`."""
        half = float(stats.t.isf(level / 2, self.freedom)) * self.standard_error
        return self.mean - half, self.mean + half

    @property
    def p(self) -> float:
        """Two-sided, of a mean of 0."""
        return float(2 * stats.t.sf(abs(self.mean) / self.standard_error, self.freedom))

    def p_equivalence(self, margin: float) -> float:
        """The larger of two one-sided tests of a mean beyond ± `margin`."""
        return float(stats.t.sf((margin - abs(self.mean)) / self.standard_error, self.freedom))


def crossed_mean(
    values: Float[np.ndarray, "seeds rows"], weights: Float[np.ndarray, " rows"] | None = None
) -> CrossedMean | None:
    """The two-way random-effects analysis of variance without replication: value = mean + seed + row + rest.

    With `weights` (a row's tokens) the mean is the weighted one, and a row counts with its weight in place of its
    value: the ratio's linearisation. The variance of the mean is (MS_seeds + MS_rows - MS_rest) / (seeds rows), never
    less than that over seeds alone or rows alone (Searle, Casella & McCulloch, Variance Components, 1992, chapter 4);
    degrees of freedom after Satterthwaite (Biometrics 1946). None where nothing varies.
    Raises ValueError for fewer than two seeds or rows.
    """
    if min(values.shape) < 2:
        raise ValueError(
            f"a mean over seeds and rows needs two of each; there are {values.shape[0]}, {values.shape[1]}"
        )
    wide = np.asarray(values, dtype=np.float64)
    mean = float(wide.mean())
    if weights is not None:
        share = weights / weights.mean()
        mean = float((wide * share).mean())
        wide = (wide - mean) * share + mean
    seeds, rows = wide.shape
    by_seed, by_row = wide.mean(axis=1), wide.mean(axis=0)
    rest = wide - by_seed[:, None] - by_row[None] + wide.mean()
    squares = [
        rows * float(by_seed.var(ddof=1)), seeds * float(by_row.var(ddof=1)),
        float((rest**2).sum()) / ((seeds - 1) * (rows - 1)),
    ]  # fmt: skip
    freedoms = [seeds - 1, rows - 1, (seeds - 1) * (rows - 1)]
    total = max(squares[0] + squares[1] - squares[2], squares[0], squares[1])
    if total <= 0:
        return None
    freedom = total**2 / sum(square**2 / free for square, free in zip(squares, freedoms, strict=True))
    return CrossedMean(
        mean=mean,
        standard_error=(total / (seeds * rows)) ** 0.5,
        freedom=float(np.clip(freedom, min(seeds, rows) - 1, None)),
        of_seeds=max(0.0, squares[0] - squares[2]) / rows,
        of_rows=max(0.0, squares[1] - squares[2]) / seeds,
        of_rest=squares[2],
    )
