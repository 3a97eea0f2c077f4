"""How often verdicts are wrong, and how often right, on simulated studies whose truth is known."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from analysis.stats.comparisons import compare
from analysis.stats.multiplicity import holm
from analysis.stats.paired_scores import PairedScores
from analysis.stats.paired_tests import equivalence, paired_t, sign_flip
from analysis.stats.power import equivalence_power, power
from analysis.stats.sequential import words

ALPHA = 0.05
ARMS = 18
Law = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def normal(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return generator.normal(size=shape)


def heavy(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Student's t with 3 degrees of freedom: a run in a hundred is 4.5 scales off."""
    return generator.standard_t(3, size=shape)


def skewed(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return generator.exponential(size=shape)


def coarse(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """An accuracy on a few rows: most differences are ties, in many comparisons all of them."""
    return generator.binomial(1, 0.15, size=shape).astype(float)


def differences(generator: np.random.Generator, law: Law, *, families: int, seeds: int, arms: int = ARMS) -> np.ndarray:
    """(families, arms, seeds): arms equal to the reference that they share; each seed moves all arms alike."""
    scores = law(generator, (families, arms + 1, seeds)) + 3 * generator.normal(size=(families, 1, seeds))
    return np.round(scores[:, 1:] - scores[:, :1], 9)


def verdicts(compared: np.ndarray, margin: float) -> np.ndarray:
    """(families, arms) words, as `compare` finds them family by family."""
    p, p_equivalence = holm(paired_t(compared)), holm(equivalence(compared, margin))
    return words(compared.mean(axis=-1), p, p_equivalence, alpha=ALPHA)


def error(rate: float, trials: int) -> float:
    """Three standard errors of a rate."""
    return 3 * float(np.sqrt(rate * (1 - rate) / trials))


def test_the_simulated_verdicts_are_those_of_compare() -> None:
    generator = np.random.default_rng(0)
    compared = differences(generator, normal, families=20, seeds=8)
    compared[:, :9] += generator.choice([-3.0, 0.0, 3.0], size=(20, 9, 1))
    compared[:, 9:] *= 0.1
    seen = set()
    for family, expected in zip(compared, verdicts(compared, 0.5), strict=True):
        words_of_family = [
            each.verdict for each in compare([PairedScores("arm", d, np.zeros(8), True, 0.5) for d in family])
        ]
        assert words_of_family == expected.tolist()
        seen |= set(words_of_family)
    assert seen == {"better", "worse", "equivalent", "undecided"}


@pytest.mark.parametrize("law", [normal, heavy, coarse])
def test_with_all_arms_equal_a_study_rarely_says_better_or_worse(law: Law) -> None:
    families = 4000
    compared = differences(np.random.default_rng(1), law, families=families, seeds=8)
    wrong = np.isin(verdicts(compared, 1e-9), ["better", "worse"]).any(axis=1).mean()
    assert wrong <= ALPHA + error(ALPHA, families)


def test_a_single_test_is_wrong_as_often_as_it_says() -> None:
    families = 20_000
    compared = differences(np.random.default_rng(2), normal, families=families, seeds=5, arms=1)
    assert (paired_t(compared) <= ALPHA).mean() == pytest.approx(ALPHA, abs=error(ALPHA, families))
    compared += 10 * np.sqrt(2)
    assert (equivalence(compared, 10 * np.sqrt(2)) <= ALPHA).mean() == pytest.approx(ALPHA, abs=error(ALPHA, families))
    flips = sign_flip(differences(np.random.default_rng(3), heavy, families=4000, seeds=8, arms=1)[:, 0], _unused())
    assert (flips <= 0.0625).mean() == pytest.approx(0.0625, abs=error(0.0625, 4000))


@pytest.mark.parametrize("law", [normal, heavy])
@pytest.mark.parametrize("side", [-1, 1])
def test_with_all_arms_at_the_margin_a_study_rarely_says_equivalent(law: Law, side: int) -> None:
    families, margin = 4000, 6.0
    compared = differences(np.random.default_rng(4), law, families=families, seeds=8) + side * margin
    wrong = (verdicts(compared, margin) == "equivalent").any(axis=1).mean()
    assert wrong <= ALPHA + error(ALPHA, families)


def test_with_coarse_scores_at_the_margin_a_study_rarely_says_equivalent() -> None:
    """Half of the differences are ties: without the sign flips' p, all being ties would be proof of equivalence."""
    families, margin = 4000, 0.01
    compared = np.random.default_rng(5).choice([0.0, 2 * margin], size=(families, ARMS, 6))
    wrong = (verdicts(compared, margin) == "equivalent").any(axis=1).mean()
    assert (np.ptp(compared, axis=-1) == 0).any(axis=1).mean() > 0.25
    assert wrong <= ALPHA + error(ALPHA, families)


def test_power_is_the_rate_at_which_a_true_difference_is_found() -> None:
    families = 20_000
    compared = differences(np.random.default_rng(6), normal, families=families, seeds=8, arms=1)[:, 0]
    sd = np.sqrt(2)
    for level in (ALPHA, ALPHA / ARMS):
        for effect in (0.5, 1.0, 2.0):
            found = (paired_t(compared + effect * sd) <= level).mean()
            expected = power(effect, 1.0, 8, level)
            assert found == pytest.approx(expected, abs=max(error(expected, families), 1e-3))


def test_one_true_difference_among_ties_is_found_at_least_as_often_as_planned() -> None:
    families = 4000
    compared = differences(np.random.default_rng(7), normal, families=families, seeds=8)
    compared[:, 0] += 2 * np.sqrt(2)
    found = (verdicts(compared, 1e-9)[:, 0] == "better").mean()
    planned = power(2.0, 1.0, 8, ALPHA / ARMS)
    assert planned - error(planned, families) <= found <= planned + 0.05


@pytest.mark.parametrize(("seeds", "margin", "truth"), [(5, 2.0, 0.0), (8, 1.0, 0.3), (20, 0.8, 0.2), (3, 3.0, -1.0)])
def test_power_of_equivalence_is_the_rate_at_which_it_is_shown(seeds: int, margin: float, truth: float) -> None:
    families = 20_000
    compared = np.random.default_rng(8).normal(truth, 1.0, size=(families, seeds))
    expected = equivalence_power(margin, 1.0, seeds, ALPHA, truth)
    assert (equivalence(compared, margin) <= ALPHA).mean() == pytest.approx(expected, abs=error(expected, families))
    assert 0.1 < expected < 0.99


def test_a_percentile_bootstrap_would_be_wrong_twice_as_often_as_it_says() -> None:
    """Five seeds, one-sided 5 % bound, all 5^5 resamples: why verdicts rest on t and on no bootstrap of the seeds."""
    studies = np.random.default_rng(9).normal(size=(2000, 5))
    resamples = np.array(list(itertools.product(range(5), repeat=5)))
    means = np.stack([studies[:, draw].mean(axis=1) for draw in resamples], axis=1)
    bootstrap = (np.quantile(means, 0.05, axis=1) > 0).mean()
    one_sided_t = ((paired_t(studies) <= 0.10) & (studies.mean(axis=1) > 0)).mean()
    assert 0.085 < bootstrap < 0.135
    assert one_sided_t == pytest.approx(0.05, abs=error(0.05, 2000))


def test_a_rare_collapse_that_no_seed_shows_is_beyond_these_verdicts() -> None:
    """One run in ten loses 10 margins, so that the mean loss is the margin: 0.9^8 = 0.43 of studies see none of it."""
    generator = np.random.default_rng(11)
    compared = generator.normal(0, 0.1, size=(4000, 1, 8)) - 10.0 * generator.binomial(1, 0.1, size=(4000, 1, 8))
    wrong = (verdicts(compared, 1.0) == "equivalent").mean()
    assert wrong == pytest.approx(0.9**8, abs=error(0.43, 4000))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", [5, 8, 10])
@pytest.mark.parametrize("law", [normal, heavy, skewed, coarse])
def test_false_words_are_rare_in_large_simulations_also_where_some_arms_differ(law: Law, seeds: int) -> None:
    families = 40_000
    compared = differences(np.random.default_rng(10), law, families=families, seeds=seeds)
    margin = 4 * float(compared.std())
    limit = ALPHA + error(ALPHA, families)
    assert np.isin(verdicts(compared, 1e-9), ["better", "worse"]).any(axis=1).mean() <= limit
    mixed = compared.copy()
    mixed[:, :9] += 3 * compared.std()
    assert np.isin(verdicts(mixed, 1e-9)[:, 9:], ["better", "worse"]).any(axis=1).mean() <= limit
    compared += margin
    assert (verdicts(compared, margin) == "equivalent").any(axis=1).mean() <= limit


def _unused() -> np.random.Generator:
    return np.random.default_rng(0)
