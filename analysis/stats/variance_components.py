"""Shares of variance in a crossed design: two sources that vary, every level of the one with every level of the other.

The model is the two-way random one with a single score in a cell: score = mean + row + column + rest, all independent
and normal. The rest is the interaction of the two and whatever else differs between runs; without a second run of the
same cell nothing tells them apart.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

DRAWS = 20_000  # a quantile at 0.025 of so many is one of 0.025 ± 0.001


@dataclass(frozen=True)
class Component:
    """What one source contributes: its variance, in the score's units squared, and its share with its interval."""

    variance: float
    share: float
    low: float
    high: float


def variance_components(
    scores: Float[np.ndarray, "rows columns"], confidence: float = 0.95
) -> tuple[Component, Component, Component]:
    """Of the rows, of the columns, and of the rest.

    Variances are those of the analysis of variance (Henderson's method 1): mean squares equated to their expectations,
    a negative one set to 0. Intervals of the shares are generalized confidence intervals (Weerahandi, JASA 1993; for
    this design Burdick, Borror and Montgomery, Design and Analysis of Gauge R&R Studies, SIAM 2005, chapter 3): each
    sum of squares over its expected mean square is chi-square distributed and independent of the others, so draws of
    those give draws of every variance, and the quantiles of the shares are taken, cut off at 0 and 1. The draws are
    always the same.
    Raises ValueError for fewer than two rows or columns, for scores that are not finite, and for scores that are all
    alike: they have no variance to share.
    """
    wide = np.asarray(scores, dtype=np.float64)
    if wide.ndim != 2 or min(wide.shape) < 2 or not np.isfinite(wide).all():
        raise ValueError(f"a crossed design has finite scores in two rows and columns at least; it is {wide.shape}")
    if np.ptp(wide) == 0:
        raise ValueError(f"all {wide.size} scores are {wide.flat[0]:g}: they have no variance to share out")
    sums, freedom = sums_of_squares(wide)
    estimates = np.maximum(0, _variances(sums / freedom, wide.shape))
    generator = np.random.default_rng(0)
    drawn = _variances(sums / generator.chisquare(freedom, size=(DRAWS, 3)), wide.shape)
    tail = (1 - confidence) / 2
    with np.errstate(divide="ignore"):  # a sum of 0 has a share of all in the rest, of none in the others
        drawn_shares = (drawn / drawn.sum(axis=1, keepdims=True)).clip(0, 1)
    low, high = np.quantile(drawn_shares, [tail, 1 - tail], axis=0)
    shares = estimates / estimates.sum()
    rows, columns, rest = (Component(*map(float, of)) for of in zip(estimates, shares, low, high, strict=True))
    return rows, columns, rest


def sums_of_squares(
    scores: Float[np.ndarray, "rows columns"],
) -> tuple[Float[np.ndarray, " 3"], Float[np.ndarray, " 3"]]:
    """Sums of squares between rows, between columns and of the rest, and the degrees of freedom of each."""
    rows, columns = scores.shape
    of_row, of_column, mean = scores.mean(axis=1), scores.mean(axis=0), scores.mean()
    rest = scores - of_row[:, None] - of_column[None, :] + mean
    sums = columns * np.sum((of_row - mean) ** 2), rows * np.sum((of_column - mean) ** 2), np.sum(rest**2)
    return np.array(sums), np.array([rows - 1.0, columns - 1.0, (rows - 1.0) * (columns - 1.0)])


def _variances(squares: Float[np.ndarray, "*draws 3"], shape: tuple[int, ...]) -> Float[np.ndarray, "*draws 3"]:
    """The variances at which the expected mean squares are these. They may be negative; their sum never is."""
    of_rows, of_columns, rest = np.moveaxis(squares, -1, 0)
    rows, columns = shape
    return np.stack([(of_rows - rest) / columns, (of_columns - rest) / rows, rest], axis=-1)
