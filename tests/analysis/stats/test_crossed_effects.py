"""Means over seeds and test rows: intervals that cover, and variances that are those of the simulation."""

import numpy as np
import pytest

from analysis.stats.crossed_effects import crossed_mean
from analysis.stats.intervals import mean_interval


def drawn(generator: np.random.Generator, seeds: int, rows: int, *, seed: float, row: float, rest: float) -> np.ndarray:
    return (
        seed * generator.standard_normal((seeds, 1)) + row * generator.standard_normal((1, rows))
        + rest * generator.standard_normal((seeds, rows))
    )  # fmt: skip


@pytest.mark.parametrize("seeds", [5, 12])
@pytest.mark.parametrize(
    ("seed", "row", "rest"), [(0.02, 0.3, 0.5), (0.05, 0.0, 0.5), (0.0, 0.5, 0.3), (0.05, 0.5, 0.0)]
)
def test_the_interval_covers_whatever_varies_most(seeds: int, seed: float, row: float, rest: float) -> None:
    generator, studies = np.random.default_rng([seeds, int(100 * row)]), 800
    inside = 0
    for _ in range(studies):
        found = crossed_mean(drawn(generator, seeds, 100, seed=seed, row=row, rest=rest))
        assert found is not None
        low, high = found.interval(0.05)
        inside += low <= 0 <= high
    print(f"{seeds} seeds, sds {seed}, {row}, {rest}: {inside / studies:.3f}")
    assert inside / studies >= 0.93 - 0.015


def test_variances_are_those_that_were_drawn() -> None:
    found = crossed_mean(drawn(np.random.default_rng(0), 400, 400, seed=0.3, row=0.7, rest=0.5))
    assert found is not None
    assert [found.of_seeds, found.of_rows, found.of_rest] == pytest.approx([0.09, 0.49, 0.25], rel=0.15)


def test_without_rows_that_matter_it_is_nearly_the_interval_over_seeds() -> None:
    values = drawn(np.random.default_rng(1), 8, 500, seed=0.3, row=0.0, rest=0.2)
    found, alone = crossed_mean(values), mean_interval(values.mean(axis=1))
    assert found is not None
    assert alone.half_width is not None
    assert found.mean == pytest.approx(alone.mean)
    assert found.interval(0.05)[1] - found.mean == pytest.approx(alone.half_width, rel=0.05)


def test_a_row_of_weight_two_is_a_row_that_is_there_twice_as_far_as_the_mean_goes() -> None:
    values, weights = np.random.default_rng(2).normal(size=(6, 4)), np.array([1.0, 2.0, 1.0, 3.0])
    found = crossed_mean(values, weights)
    assert found is not None
    assert found.mean == pytest.approx(np.repeat(values, [1, 2, 1, 3], axis=1).mean())


def test_a_weighted_mean_covers_too() -> None:
    generator, inside = np.random.default_rng(3), 0
    for _ in range(600):
        weights = generator.integers(1, 60, 200).astype(float)
        found = crossed_mean(drawn(generator, 6, 200, seed=0.03, row=0.5, rest=0.4), weights)
        assert found is not None
        low, high = found.interval(0.05)
        inside += low <= 0 <= high
    assert inside / 600 >= 0.915


def test_p_values_say_what_the_intervals_say() -> None:
    found = crossed_mean(0.03 + drawn(np.random.default_rng(4), 6, 300, seed=0.02, row=0.2, rest=0.3))
    assert found is not None
    for level in (0.01, 0.05, 0.2):
        low, high = found.interval(level)
        assert (found.p <= level) == (not low <= 0 <= high)
        low, high = found.interval(2 * level)
        for margin in (0.02, 0.05, 0.1):
            assert (found.p_equivalence(margin) <= level) == (-margin <= low and high <= margin)


def test_where_nothing_varies_there_is_no_interval_and_one_seed_is_refused() -> None:
    assert crossed_mean(np.ones((5, 7))) is None
    with pytest.raises(ValueError, match="needs two of each"):
        crossed_mean(np.ones((1, 7)))
