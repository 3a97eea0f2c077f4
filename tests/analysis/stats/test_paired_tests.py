"""The tests behind verdicts, their adjustment and their power, against independent oracles."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.stats.intervals import mean_interval
from analysis.stats.multiplicity import holm
from analysis.stats.paired_tests import equivalence, paired_t, sign_flip
from analysis.stats.power import (
    equivalence_power,
    minimum_detectable_difference,
    power,
    seeds_for_equivalence,
    seeds_needed,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_paired_t_test_is_scipys() -> None:
    arm, reference = rng().normal(size=(2, 6, 9))
    np.testing.assert_allclose(paired_t(arm - reference), stats.ttest_rel(arm, reference, axis=-1).pvalue, rtol=1e-12)


@pytest.mark.parametrize("margin", [0.1, 0.5, 1.0])
def test_equivalence_is_the_larger_of_two_one_sided_t_tests(margin: float) -> None:
    differences = rng().normal(0.3, 0.5, size=(20, 7))
    above = stats.ttest_1samp(differences, -margin, axis=-1, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, margin, axis=-1, alternative="less").pvalue
    np.testing.assert_allclose(equivalence(differences, margin), np.maximum(above, below), rtol=1e-10)


def test_equivalence_at_alpha_says_that_the_interval_of_confidence_one_minus_two_alpha_lies_within_the_margin() -> None:
    for differences in rng(1).normal(0.2, 0.5, size=(200, 6)):
        mean, half_width, _ = mean_interval(differences, 0.90)
        assert half_width is not None
        assert (equivalence(differences, 0.6) <= 0.05) == (abs(mean) + half_width <= 0.6)


@pytest.mark.parametrize("differences", [rng().normal(size=7), rng(1).integers(-2, 3, size=8) / 100.0])
def test_sign_flips_are_scipys_permutation_test_and_brute_force(differences: np.ndarray) -> None:
    n = differences.size
    ours = sign_flip(differences, rng())
    theirs = stats.permutation_test(
        (differences, np.zeros(n)),
        lambda x, y, axis: np.mean(x - y, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=np.inf,
    )
    reached = [
        abs(np.dot(signs, differences)) >= abs(differences.sum()) - 1e-12
        for signs in itertools.product((-1, 1), repeat=n)
    ]
    assert float(ours) == pytest.approx(theirs.pvalue, abs=1e-12) == pytest.approx(np.mean(reached), abs=1e-12)


def test_random_sign_flips_agree_with_all_of_them() -> None:
    differences = rng(3).normal(0.5, 1.0, size=(4, 20))
    padded = np.concatenate([differences, np.zeros((4, 1))], axis=1)  # 21 seeds, the same exact p
    exact, drawn = sign_flip(differences, rng()), sign_flip(padded, rng())
    assert (np.abs(drawn - exact) <= 4 * np.sqrt(exact / 99_999)).all()
    assert (drawn != exact).any()
    assert (sign_flip(np.ones((1, 30)), rng()) == 1 / 100_000).all()


def test_holm_on_an_example_by_hand() -> None:
    adjusted = holm(np.array([0.01, 0.04, 0.03, 0.005]))
    np.testing.assert_allclose(adjusted, [0.03, 0.06, 0.06, 0.02])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_test_of_bonferroni(p: list[float]) -> None:
    """The adjusted p of i is the largest |S| min(S) over all subsets S that hold i."""
    m = len(p)
    subsets = [s for size in range(1, m + 1) for s in itertools.combinations(range(m), size)]
    closed = [max(min(1.0, len(s) * min(p[j] for j in s)) for s in subsets if i in s) for i in range(m)]
    adjusted = holm(np.array(p))
    np.testing.assert_allclose(adjusted, closed, rtol=1e-12)
    order = np.argsort(p)
    assert (np.diff(adjusted[order]) >= 0).all()


def test_holm_adjusts_each_family_by_itself_and_refuses_what_is_no_p() -> None:
    p = rng().uniform(size=(5, 4))
    np.testing.assert_array_equal(holm(p), [holm(family) for family in p])
    assert holm(np.array([])).shape == (0,)
    with pytest.raises(ValueError, match=r"lies in \[0, 1\]; one is nan"):
        holm(np.array([0.1, np.nan]))


def test_an_interval_of_a_mean_is_students() -> None:
    values = rng().normal(size=5)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.99)
    mean, half_width, n = mean_interval(values, 0.99)
    assert half_width is not None
    assert [mean - half_width, mean + half_width, n] == pytest.approx([low, high, 5])
    assert mean_interval(np.array([0.3])) == (0.3, None, 1)
    with pytest.raises(ValueError, match="finite values"):
        mean_interval(np.array([0.3, np.nan]))


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15)])
def test_seeds_needed_for_cohens_effects_are_the_published_ones(effect: float, seeds: int) -> None:
    """Paired t-test, two-sided 0.05, power 0.80 (G*Power 3, Faul et al., Behav. Res. Methods 2007)."""
    assert seeds_needed(effect * 3, 3.0, alpha=0.05) == seeds
    assert power(effect, 1.0, seeds - 1, 0.05) < 0.8 <= power(effect, 1.0, seeds, 0.05)


@pytest.mark.parametrize("n", [2, 5, 8, 30])
@pytest.mark.parametrize("alpha", [0.05, 0.05 / 18])
def test_the_minimum_detectable_difference_is_detected_with_the_power_asked_for(n: int, alpha: float) -> None:
    difference = minimum_detectable_difference(0.3, n, alpha=alpha, at_power=0.9)
    assert power(difference, 0.3, n, alpha) == power(-difference, 0.3, n, alpha) == pytest.approx(0.9)
    assert power(0.0, 0.3, n, alpha) == pytest.approx(alpha)
    assert power(1000.0, 0.3, n, alpha) > 0.99  # the far tail is a number as well


def test_seeds_for_equivalence_are_the_fewest_with_the_power_and_none_where_no_number_would_do() -> None:
    n = seeds_for_equivalence(0.7, 1.0, alpha=0.05, difference=0.2)
    assert n is not None
    before, after = (equivalence_power(0.7, 1.0, seeds, 0.05, 0.2) for seeds in (n - 1, n))
    assert before < 0.8 <= after
    assert seeds_for_equivalence(0.7, 1.0, alpha=0.05, difference=0.7) is None
    assert seeds_needed(0.0, 1.0, alpha=0.05) is None
    assert equivalence_power(1e-3, 1.0, 30, 0.05) == 0  # no sd that 30 seeds may show is small enough
    with pytest.raises(ValueError, match="positive sd"):
        seeds_needed(1.0, 0.0, alpha=0.05)
