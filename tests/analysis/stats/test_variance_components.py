"""Variance components of a crossed design: exact on known sums of squares, unbiased, and intervals that cover."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import Float

from analysis.stats.variance_components import sums_of_squares, variance_components

SIZES = st.integers(2, 6)
DESIGNS = 400  # a share of 0.95 of so many is one of 0.95 ± 0.01


def design(
    generator: np.random.Generator, variances: tuple[float, float, float], rows: int = 8, columns: int = 8
) -> Float[np.ndarray, "rows columns"]:
    """Scores of the model, with these variances of rows, columns and the rest."""
    row, column, rest = np.sqrt(variances)
    return (
        row * generator.normal(size=(rows, 1))
        + column * generator.normal(size=(1, columns))
        + rest * generator.normal(size=(rows, columns))
    )


@given(rows=SIZES, columns=SIZES, seed=st.integers(0, 1000))
def test_the_three_sums_of_squares_are_those_of_the_whole_table(rows: int, columns: int, seed: int) -> None:
    scores = design(np.random.default_rng(seed), (1, 2, 3), rows, columns)
    sums, freedom = sums_of_squares(scores)
    assert sums.sum() == pytest.approx(((scores - scores.mean()) ** 2).sum())
    assert freedom.sum() == rows * columns - 1


@given(rows=SIZES, columns=SIZES, seed=st.integers(0, 1000), scale=st.floats(0.01, 100), shift=st.floats(-100, 100))
def test_shares_sum_to_one_and_depend_on_neither_the_unit_nor_the_origin_nor_on_what_is_called_a_row(
    rows: int, columns: int, seed: int, scale: float, shift: float
) -> None:
    scores = design(np.random.default_rng(seed), (1, 2, 3), rows, columns)
    found = variance_components(scores)
    assert sum(each.share for each in found) == pytest.approx(1)
    assert all(0 <= each.low <= each.high <= 1 for each in found)
    for one, other in zip(found, variance_components(shift + scale * scores), strict=True):
        assert (other.share, other.low, other.high) == pytest.approx((one.share, one.low, one.high), abs=1e-6)
        assert other.variance == pytest.approx(scale**2 * one.variance, rel=1e-6, abs=1e-9 * scale**2)
    of_rows, of_columns, _ = variance_components(scores.T)
    assert (of_columns.share, of_rows.share) == pytest.approx((found[0].share, found[1].share))


def test_a_table_that_is_worked_out_by_hand_has_the_variances_of_its_mean_squares() -> None:
    """Mean squares 9 (rows), 0 (columns), 4 (rest): rows (9 - 4) / 2, columns 0, which are negative, rest 4."""
    scores = np.array([[0.0, 0.0], [2.0, 4.0]]) + np.array([[1.0, -1.0], [0.0, 0.0]])
    sums, _ = sums_of_squares(scores)
    of_rows, of_columns, rest = variance_components(scores)
    assert sums.tolist() == pytest.approx([9, 0, 4])
    assert (of_rows.variance, of_columns.variance, rest.variance) == pytest.approx((2.5, 0, 4))
    assert of_rows.share == pytest.approx(2.5 / 6.5)


def test_the_expected_mean_squares_are_those_of_the_two_way_random_model() -> None:
    generator, variances, rows, columns = np.random.default_rng(0), (0.5, 2.0, 1.0), 5, 4
    found = [sums_of_squares(design(generator, variances, rows, columns)) for _ in range(4000)]
    mean_squares = np.mean([sums / freedom for sums, freedom in found], axis=0)
    row, column, rest = variances
    assert mean_squares == pytest.approx([rest + columns * row, rest + rows * column, rest], rel=0.06)


@pytest.mark.parametrize(
    "variances", [(0.5, 0.3, 0.2), (0.1, 0.1, 0.8), (0.8, 0.1, 0.1), (0.0, 0.5, 0.5), (0.0, 0.0, 1.0)]
)
def test_intervals_of_an_8_by_8_design_cover_the_true_shares(variances: tuple[float, float, float]) -> None:
    generator, covered = np.random.default_rng(1), np.zeros(3)
    for _ in range(DESIGNS):
        found = variance_components(design(generator, variances))
        covered += [each.low <= truth <= each.high for each, truth in zip(found, variances, strict=True)]
    error = 3 * np.sqrt(0.05 * 0.95 / DESIGNS)
    assert (covered / DESIGNS >= 0.95 - error).all(), covered / DESIGNS
    inside = covered[
        [0 < truth < 1 for truth in variances]
    ]  # at an end of [0, 1] an interval can miss on one side only
    assert (inside / DESIGNS <= 0.95 + 1.5 * error).all(), covered / DESIGNS


def test_the_same_scores_give_the_same_intervals() -> None:
    scores = design(np.random.default_rng(2), (1, 1, 1))
    assert variance_components(scores) == variance_components(scores.copy())


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        (np.zeros((3, 1)), r"finite scores in two rows and columns at least; it is \(3, 1\)"),
        (np.full((2, 2), np.nan), "finite scores"),
        (np.full((3, 2), 0.25), "all 6 scores are 0.25: they have no variance to share out"),
    ],
)
def test_a_design_that_says_nothing_is_refused(scores: Float[np.ndarray, "..."], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        variance_components(scores)


def test_two_by_two_scores_that_tie_have_intervals_without_nan_and_no_warning() -> None:
    with warnings.catch_warnings(action="error"):
        rows, columns, rest = variance_components(np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert (rows.share, columns.share, rest.share) == (0, 0, 1)
    assert all(0 <= each.low <= each.high <= 1 for each in (rows, columns, rest))
