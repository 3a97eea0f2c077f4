"""The share of a gain that is kept, against independent oracles."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.stats.intervals import fieller
from analysis.stats.paired_tests import paired_t_above, sign_flip, sign_flip_above
from analysis.stats.power import power
from analysis.stats.retention import fixed_sequence, gain_test, linear_form, retention, seeds_to_settle


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def scores(seed: int, n: int = 8, share: float = 0.9, sd: float = 0.1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """kept, full and floor of a score that is better higher, all noisy; the gain is about 1."""
    noise = sd * rng(seed).normal(size=(3, n))
    return share + noise[0] + noise[2], 1 + noise[1] + noise[2], noise[2]


@given(st.integers(0, 10_000), st.integers(2, 12), st.sampled_from([0.5, 0.9, 0.95]))
@settings(max_examples=50, deadline=None)
def test_the_tests_are_scipys_of_the_linear_form(seed: int, n: int, required: float) -> None:
    kept, full, floor = scores(seed, n)
    found = retention(kept, full, floor, higher_is_better=True, required=required)
    d = (kept - floor) - required * (full - floor)
    assert found.p_holds == pytest.approx(stats.ttest_1samp(d, 0, alternative="greater").pvalue, rel=1e-9)
    assert found.p_fails == pytest.approx(stats.ttest_1samp(d, 0, alternative="less").pvalue, rel=1e-9)
    assert found.share == pytest.approx((kept - floor).mean() / (full - floor).mean(), rel=1e-12)
    assert found.n == n


@given(st.integers(0, 10_000), st.integers(2, 9))
@settings(max_examples=50, deadline=None)
def test_the_sign_flips_beside_are_all_of_those_of_the_linear_form(seed: int, n: int) -> None:
    kept, full, floor = (np.round(each, 1) for each in scores(seed, n))  # ties
    d = np.round((kept - floor) - 0.5 * (full - floor), 9)
    sums = np.array([np.dot(signs, d) for signs in itertools.product([-1, 1], repeat=n)])
    found = retention(kept, full, floor, higher_is_better=True, required=0.5)
    assert found.p_flip_holds == pytest.approx((sums >= d.sum() - 1e-6).mean())
    assert found.p_flip_fails == pytest.approx((sums <= d.sum() + 1e-6).mean())


def test_random_flips_of_many_seeds_are_close_to_the_t_test_and_one_side_is_half_of_both() -> None:
    d = rng(1).normal(0.3, 1.0, size=(3, 30))
    above = sign_flip_above(d, rng())
    np.testing.assert_allclose(above, paired_t_above(d), atol=0.02)
    np.testing.assert_allclose(sign_flip_above(-d, rng()), 1 - above, atol=1e-4)
    np.testing.assert_allclose(2 * above, sign_flip(d, rng()), atol=1e-12)


@given(st.integers(0, 10_000), st.sampled_from([-3.0, 0.01, 7.0]), st.floats(-100, 100))
@settings(max_examples=50, deadline=None)
def test_the_share_knows_neither_the_unit_nor_the_sign_nor_the_zero_of_a_score(
    seed: int, unit: float, zero: float
) -> None:
    found = retention(*scores(seed), higher_is_better=True)
    moved = retention(*(unit * each + zero for each in scores(seed)), higher_is_better=unit > 0)
    for name in ("share", "low", "high", "p_holds", "p_fails", "p_flip_holds", "p_flip_fails"):
        assert getattr(moved, name) == pytest.approx(getattr(found, name), rel=1e-6, abs=1e-9)


def textbook_fieller(x: np.ndarray, y: np.ndarray, alpha: float) -> tuple[float, float]:
    """Fieller, J. R. Statist. Soc. B 1954, in the form with g = t² v_yy / y²."""
    n = len(x)
    (v_xx, v_xy), (_, v_yy) = np.cov(x, y) / n
    t = stats.t.isf(alpha / 2, n - 1)
    ratio, g = x.mean() / y.mean(), t**2 * v_yy / y.mean() ** 2
    centre = ratio - g * v_xy / v_yy
    under = v_xx - 2 * ratio * v_xy + ratio**2 * v_yy - g * (v_xx - v_xy**2 / v_yy)
    half = t / abs(y.mean()) * np.sqrt(under)
    return (centre - half) / (1 - g), (centre + half) / (1 - g)


@given(st.integers(0, 10_000), st.integers(3, 12), st.sampled_from([0.05, 0.2]), st.sampled_from([0.05, 0.1]))
@settings(max_examples=50, deadline=None)
def test_the_interval_is_that_of_the_closed_formula(seed: int, n: int, sd: float, alpha: float) -> None:
    kept, full, floor = scores(seed, n, sd=sd)
    found = retention(kept, full, floor, higher_is_better=True, alpha=alpha)
    assume(gain_test(full, floor, higher_is_better=True, alpha=alpha).low > 0)
    expected = textbook_fieller(kept - floor, full - floor, alpha)
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-6, abs=1e-9)
    assert found.low <= found.share <= found.high


@given(st.integers(0, 10_000), st.integers(2, 8), st.floats(-1, 1))
@settings(max_examples=100, deadline=None)
def test_the_interval_has_the_ratios_that_a_t_test_lets_stand_also_where_it_is_not_bounded(
    seed: int, n: int, gain: float
) -> None:
    x, y = gain + rng(seed).normal(size=(2, n))
    grid = np.concatenate([np.linspace(-5, 5, 401), [-1e3, 1e3]])
    stands = stats.ttest_1samp(x - grid[:, None] * y, 0, axis=1).pvalue >= 0.05
    low, high = (float(end) for end in fieller(x, y, alpha=0.05))
    inside = (low <= grid) & (grid <= high) if low <= high else (grid <= high) | (low <= grid)
    near_an_end = np.isclose(grid, low, atol=1e-6) | np.isclose(grid, high, atol=1e-6)
    assert (inside == stands)[~near_an_end].all()


def test_the_interval_of_a_gain_that_may_be_none_is_everything_a_complement_or_a_half_line() -> None:
    y = np.array([1.0, -1.0, 1.0, -0.5])
    assert fieller(np.array([0.1, 0.2, -0.2, 0.1]), y, alpha=0.05) == (-np.inf, np.inf)
    low, high = fieller(np.array([5.0, 5.1, 4.9, 5.0]), y, alpha=0.05)
    assert -np.inf < high < 0 < low < np.inf
    t = stats.t.isf(0.025, 1)
    edge = np.array([1 + 1 / t, 1 - 1 / t])  # its own t is the critical value: a = 0, or the nearest to it
    widths = np.abs(fieller(np.array([2.0, 2.5]), edge, alpha=0.05))
    assert widths.max() > 1e6
    zero = np.zeros(3)
    assert fieller(zero, zero, alpha=0.05) == (-np.inf, np.inf)


def test_a_gain_at_the_edge_of_its_test_gives_a_half_line_without_a_warning() -> None:
    """Where a is 0 the end is infinite, and where rounding leaves something of it the end is as good as that.

    The other end is exact: it is c / 2b of the line that is left.
    """
    t = stats.t.isf(0.025, 1)
    edges = np.arange(1.0, 201.0)[:, None] * np.array([1 + 1 / t, 1 - 1 / t])
    kept = np.broadcast_to([2.0, 2.5], edges.shape)
    with np.errstate(all="raise"):
        (finite, high), (low, mirrored) = fieller(kept, edges, alpha=0.05), fieller(-kept, edges, alpha=0.05)
    assert finite == pytest.approx(finite[0] / np.arange(1, 201))
    assert mirrored == pytest.approx(-finite)
    for end, infinite in ((high, np.inf), (low, -np.inf)):
        assert (end == infinite).any()
        assert np.abs(end).min() > 1e6


def test_equal_linear_forms_have_the_exact_p_of_sign_flips() -> None:
    full, floor = np.full(6, 0.75), np.full(6, 0.25)
    for kept, holds, fails in ((0.74, 2**-6, 1.0), (0.725, 1.0, 1.0), (0.3, 1.0, 2**-6)):
        found = retention(np.full(6, kept), full, floor, higher_is_better=True)
        assert (found.p_holds, found.p_fails) == (found.p_flip_holds, found.p_flip_fails) == (holds, fails)
        assert found.low == found.high == found.share == pytest.approx((kept - 0.25) / 0.5)


def test_linear_forms_that_differ_by_rounding_only_are_equal() -> None:
    floor = rng(2).normal(size=8)
    gain = rng(3).uniform(0.1, 3, size=8)
    exactly = linear_form(floor + 0.95 * gain, floor + gain, floor, higher_is_better=True)
    assert exactly.tolist() == [0.0] * 8


def test_the_gain_is_that_of_scipys_t_test_and_its_interval() -> None:
    _, full, floor = scores(4, 7)
    found = gain_test(-full, -floor, higher_is_better=False)
    expected = stats.ttest_rel(full, floor, alternative="greater")
    interval = stats.ttest_rel(full, floor).confidence_interval(0.95)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-9)
    assert (found.gain, found.low, found.high) == pytest.approx(((full - floor).mean(), *interval), rel=1e-9)
    assert found.n == 7
    assert gain_test(full, full, higher_is_better=True)[:4] == (0.0, 0.0, 0.0, 1.0)
    assert gain_test(full, full - 1, higher_is_better=True)[:4] == (1.0, 1.0, 1.0, 2**-7)


def test_without_its_gate_a_loss_reads_as_a_gain_that_is_kept() -> None:
    """Targets that say nothing: training makes it worse, the truncated update less so, and the form is positive."""
    floor = np.zeros(8)
    full, kept = (-mean + 0.01 * rng(5).normal(size=8) for mean in (12.0, 3.0))
    assert retention(kept, full, floor, higher_is_better=True).p_holds < 1e-15
    assert gain_test(full, floor, higher_is_better=True).p > 0.999


def closed(p_values: dict[int, float], alpha: float) -> list[int]:
    """Those k at and above which every test rejects."""
    return [k for k in p_values if all(p <= alpha for other, p in p_values.items() if other >= k)]


@given(st.dictionaries(st.integers(1, 64), st.sampled_from([0.0, 0.01, 0.05, 0.06, 1.0]), min_size=1))
@settings(max_examples=200, deadline=None)
def test_a_sequence_rejects_down_to_its_first_failure_and_has_the_largest_p_on_the_way(
    p_values: dict[int, float],
) -> None:
    found = fixed_sequence(p_values, 0.05)
    rejected = closed(p_values, 0.05)
    assert found.least == min(rejected, default=None)
    assert found.p == max((p_values[k] for k in rejected), default=p_values[max(p_values)])
    assert (found.p <= 0.05) == bool(rejected)


@pytest.mark.parametrize("p_values", [{}, {4: float("nan")}, {4: 1.5}])
def test_a_sequence_of_no_tests_or_of_no_p_values_is_refused(p_values: dict[int, float]) -> None:
    with pytest.raises(ValueError, match=r"a sequence of tests needs a p value in \[0, 1\] for every k"):
        fixed_sequence(p_values, 0.05)


@pytest.mark.parametrize(("mean", "alpha"), [(0.5, 0.05), (-0.5, 0.05), (0.5, 0.0125), (-0.05, 0.05)])
def test_seeds_to_settle_are_the_fewest_of_which_the_one_sided_test_has_the_power(mean: float, alpha: float) -> None:
    d = rng(6).normal(size=8)
    d = mean + (d - d.mean()) / d.std(ddof=1)
    n = seeds_to_settle(d, alpha=alpha)
    assert n is not None
    assert power(mean, 1.0, n, 2 * alpha) >= 0.8 > power(mean, 1.0, n - 1, 2 * alpha)


def test_a_simulation_with_the_seeds_to_settle_decides_in_four_of_five() -> None:
    d = rng(7).normal(size=8)
    d = -0.6 + (d - d.mean()) / d.std(ddof=1)
    n = seeds_to_settle(d, alpha=0.05)
    decided = paired_t_above(-rng(8).normal(-0.6, 1.0, size=(20_000, n))) <= 0.05
    assert 0.79 < decided.mean() < 0.83


def test_seeds_to_settle_are_five_at_least_and_none_where_no_number_would_do() -> None:
    assert seeds_to_settle(np.array([1.0, 1.01, 0.99]), alpha=0.05) == 5
    assert seeds_to_settle(np.full(4, -2.0), alpha=0.05) == 5
    assert seeds_to_settle(np.full(4, -2.0), alpha=0.001) == 10
    assert seeds_to_settle(np.zeros(4), alpha=0.05) is None
    assert seeds_to_settle(np.array([-1.0, 1.0]), alpha=0.05) is None


FIVE = np.linspace(0.8, 1.0, 5)
NAN = np.array([1.0, np.nan, 1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("kept", "full", "floor", "rule"),
    [
        (FIVE[:4], FIVE, 0 * FIVE, "paired by seed; there are kept 4, full 5, floor 5"),
        (FIVE, FIVE, np.zeros(1), "paired by seed; there are kept 5, full 5, floor 1"),
        (NAN, FIVE, 0 * FIVE, "a score of kept is nan; a failed run is never a score"),
        (FIVE, -np.inf * FIVE, 0 * FIVE, "a score of full is -inf; a failed run is never a score"),
        (FIVE, FIVE, NAN, "a score of floor is nan"),
        (FIVE[:1], FIVE[:1], np.zeros(1), "needs at least two paired seeds; there are 1"),
        (FIVE[:0], FIVE[:0], np.zeros(0), "needs at least two paired seeds; there are 0"),
        (FIVE, FIVE, FIVE, "a share of a mean gain of 0 is not defined; test the gain first"),
    ],
)
def test_scores_that_give_no_share_are_refused_with_the_rule(
    kept: np.ndarray, full: np.ndarray, floor: np.ndarray, rule: str
) -> None:
    with pytest.raises(ValueError, match=rule):
        retention(kept, full, floor, higher_is_better=True)


def test_a_gain_of_unpaired_broken_or_single_scores_is_refused_and_so_are_levels_and_shares_out_of_range() -> None:
    for full, floor in ((FIVE, FIVE[:4]), (NAN, FIVE), (FIVE[:1], FIVE[:1])):
        with pytest.raises(ValueError, match=r"paired by seed|never a score|two paired seeds"):
            gain_test(full, floor, higher_is_better=True)
    with pytest.raises(ValueError, match="two paired seeds; there are 1"):
        linear_form(FIVE[:1], FIVE[:1], np.zeros(1), higher_is_better=True)
    for alpha in (0.0, 1.0):
        with pytest.raises(ValueError, match="a level alpha lies between 0 and 1"):
            retention(FIVE, FIVE, 0 * FIVE, higher_is_better=True, alpha=alpha)
    for required in (0.0, 1.0, float("nan")):
        with pytest.raises(ValueError, match="the share required of a gain lies between 0 and 1"):
            linear_form(FIVE, FIVE, 0 * FIVE, higher_is_better=True, required=required)
