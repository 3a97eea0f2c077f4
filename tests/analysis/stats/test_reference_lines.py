"""The lines that spectra are read against: closed forms, the published limits, and simulation by other code."""

from math import isclose, pi, sqrt

import numpy as np
import pytest

from analysis.stats import reference_lines
from analysis.stats.reference_lines import reference_measures, reference_sigma
from analysis.stats.singular_values import summary

# of a Gaussian matrix with p / n = beta, as shares of p: the limit
LIMITS = {
    1: {
        "entropy_rank_sigma": 0.8050, "entropy_rank_energy": np.exp(-1 / 2), "participation_ratio": 1 / 2,
        "nuclear_ratio": 64 / (9 * pi**2), "stable_rank": 1 / 4, "r90": 0.5098, "r95": 0.6094, "r99": 0.7706,
    },
    2: {
        "entropy_rank_sigma": 0.9261, "entropy_rank_energy": np.exp(-1 / 4), "participation_ratio": 2 / 3,
        "nuclear_ratio": 0.8701, "stable_rank": 0.3431, "r90": 0.6639, "r95": 0.7769, "r99": 0.9269,
    },
    4: {
        "entropy_rank_sigma": 0.9662, "entropy_rank_energy": np.exp(-1 / 8), "participation_ratio": 4 / 5,
        "nuclear_ratio": 0.9364, "stable_rank": 4 / 9, "r90": 0.7612, "r95": 0.8605, "r99": 0.9653,
    },
}  # fmt: skip
# of factors of 512 x 512, as shares of r: entropy rank of sigma, participation ratio, stable rank
FACTORS = {4: (0.998, 0.983, 0.851), 8: (0.996, 0.968, 0.771), 16: (0.992, 0.938, 0.665), 64: (0.967, 0.798, 0.442)}


@pytest.mark.parametrize("aspect", LIMITS)
@pytest.mark.parametrize(("p", "within"), [(4096, 0.004), (400, 0.025)])
def test_a_gaussian_matrix_has_the_ranks_of_marchenko_and_pasturs_law(aspect: int, p: int, within: float) -> None:
    found = reference_measures((aspect * p, p), None)
    for measure, share in LIMITS[aspect].items():
        assert found[measure] / p == pytest.approx(share, rel=within), measure
    assert found["hard_rank"] == p


@pytest.mark.parametrize("rank", FACTORS)
def test_random_factors_have_the_ranks_that_were_simulated_elsewhere(rank: int) -> None:
    found = reference_measures((512, 512), rank)
    for measure, share in zip(("entropy_rank_sigma", "participation_ratio", "stable_rank"), FACTORS[rank], strict=True):
        assert found[measure] / rank == pytest.approx(share, rel=0.02), measure
    assert found["hard_rank"] == rank


def simulated(shape: tuple[int, int], rank: int | None, draws: int) -> list[np.ndarray]:
    rng = np.random.default_rng(99)

    def drawn() -> np.ndarray:
        if rank is None:
            return rng.standard_normal(shape)
        return rng.standard_normal((shape[0], rank)) @ rng.standard_normal((rank, shape[1]))

    spectra = [np.linalg.svd(drawn(), compute_uv=False)[: min(*shape, rank or shape[0])] for _ in range(draws)]
    return [sigma / sqrt(np.sum(sigma**2)) for sigma in spectra]


@pytest.mark.parametrize(
    ("shape", "rank"),
    [
        ((20, 30), None), ((30, 20), None), ((6, 6), None), ((1, 7), None), ((64, 200), None),
        ((30, 20), 4), ((20, 30), 4), ((20, 30), 20), ((20, 30), 25), ((20, 30), 60), ((9, 40), 1),
    ],
)  # fmt: skip
def test_every_measure_is_that_of_matrices_drawn_whole(shape: tuple[int, int], rank: int | None) -> None:
    spectra = simulated(shape, rank, 200)
    drawn = [summary(sigma, shape) for sigma in spectra]
    found = reference_measures(shape, rank)
    assert set(found) == set(drawn[0]) - {"frobenius"}
    ours = min(256, 4096 // len(spectra[0]))
    for measure, value in found.items():
        values = np.array([each[measure] for each in drawn], float)
        error = values.std() * sqrt(1 / len(values) + 1 / ours)
        assert abs(value - values.mean()) <= 4 * error + 1e-9, measure
    np.testing.assert_allclose(reference_sigma(shape, rank), np.mean(spectra, axis=0), rtol=0.2, atol=0.01)


def test_the_participation_ratio_is_that_of_the_exact_moments() -> None:
    """‖·‖ and direction of a Gaussian matrix are independent: E[1 / PR] = (m + n + 1) / (m n + 2)."""
    for m, n in ((300, 300), (200, 900)):
        assert reference_measures((m, n), None)["participation_ratio"] == pytest.approx((m * n + 2) / (m + n + 1), 3e-3)


def test_the_largest_value_of_a_large_square_matrix_is_inside_the_edge_by_tracy_and_widoms_mean() -> None:
    """σ_1² has the mean 4n - 1.2065 · 2^(4/3) n^(1/3) (Johnstone, 2001), and ‖·‖² that of n²."""
    n = 4096
    largest = reference_sigma((n, n), None)[0] ** 2 * n**2
    assert 4 * n - largest == pytest.approx(1.2065 * 2 ** (4 / 3) * n ** (1 / 3), rel=0.1)


@pytest.mark.parametrize("n", [512, 900])
def test_drawn_matrices_and_the_limit_meet_where_one_takes_over(n: int) -> None:
    drawn, limit = reference_measures((512, n), None), reference_measures((513, n + 1), None)
    for measure, value in drawn.items():
        assert isclose(value, limit[measure], rel_tol=0.01), measure
    np.testing.assert_allclose(
        reference_sigma((512, n), None)[:500], reference_sigma((513, n), None)[:500], rtol=0.02, atol=2e-4
    )


def test_the_length_of_the_larger_side_costs_nothing() -> None:
    for rank in (None, 8):
        found = reference_measures((96, 10**12), rank)
        assert found["stable_rank"] == pytest.approx(rank or 96, rel=0.6)
    assert reference_measures((4096, 10**9), None)["entropy_rank_sigma"] == pytest.approx(4096, rel=1e-4)


def test_equal_arguments_give_equal_lines_also_for_the_transpose() -> None:
    first = {rank: (reference_measures((12, 30), rank), reference_sigma((12, 30), rank)) for rank in (None, 3)}
    reference_lines._measures.cache_clear()
    reference_lines._spectra.cache_clear()
    for rank, (measures, sigma) in first.items():
        assert reference_measures((30, 12), rank) == measures
        np.testing.assert_array_equal(reference_sigma((30, 12), rank), sigma)


def test_factors_without_rank_have_zeros() -> None:
    assert set(reference_measures((5, 4), 0).values()) == {0}
    assert reference_sigma((5, 4), 0).size == 0
