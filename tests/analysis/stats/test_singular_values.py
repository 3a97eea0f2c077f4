"""The spectrum of an update from its factors, and the ranks read off it, against exact oracles."""

import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import scipy
from hypothesis import given, settings
from hypothesis import strategies as st
from project_paths import ROOT

from analysis.stats.singular_values import (
    energy_rank,
    entropy_rank_energy,
    entropy_rank_sigma,
    hard_rank,
    nuclear_ratio,
    participation_ratio,
    singular_values,
    singular_values_of_factors,
    singular_vectors,
    stable_rank,
    summary,
)

SHAPE = (64, 48)
CONTINUOUS = [stable_rank, participation_ratio, entropy_rank_energy, entropy_rank_sigma, nuclear_ratio]
EVERY = [*CONTINUOUS, lambda sigma: hard_rank(sigma, SHAPE), lambda sigma: energy_rank(sigma, 0.9)]
Measure = Callable[[np.ndarray], float]

spectra = st.lists(st.one_of(st.just(0.0), st.floats(1e-9, 1e9), st.floats(0, 1e-200)), min_size=1, max_size=48).map(
    lambda values: np.sort(np.array(values))[::-1]
)
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(0, 12), st.integers(0, 2**32 - 1))


def orthonormal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def gauged_factors(rng: np.random.Generator, d_out: int, d_in: int, sigma: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Factors of U diag(sigma) Vᵀ, mixed by a random invertible r x r matrix, so that neither shows sigma."""
    rank = len(sigma)
    gauge = rng.standard_normal((rank, rank)) + 3 * np.eye(rank)
    left = orthonormal(rng, d_out, rank) * sigma @ gauge
    return left, np.linalg.solve(gauge, orthonormal(rng, d_in, rank).T)


# below 1e-150, sigma / sigma_1 may be made of subnormal numbers, with few digits
@given(spectra.filter(lambda sigma: sigma[0] > 1e-150))
def test_the_ranks_are_ordered_from_stable_to_hard(sigma: np.ndarray) -> None:
    ordered = [1.0, stable_rank(sigma), participation_ratio(sigma), entropy_rank_energy(sigma)]
    ordered += [entropy_rank_sigma(sigma), float(hard_rank(sigma, SHAPE))]
    assert all(low <= high * (1 + 1e-9) for low, high in pairwise(ordered)), ordered


@given(spectra, st.floats(1e-6, 1e6))
def test_no_rank_depends_on_the_scale(sigma: np.ndarray, scale: float) -> None:
    sigma = np.where(sigma < 1e-100, 0.0, sigma)
    for measure in CONTINUOUS:
        assert measure(scale * sigma) == pytest.approx(measure(sigma), rel=1e-9)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_no_rank_overflows_or_underflows(scale: float) -> None:
    sigma = np.array([4.0, 2.0, 1.0])
    for measure in EVERY:
        assert measure(scale * sigma) == pytest.approx(measure(sigma), rel=1e-12)


@given(st.integers(1, 48), st.floats(1e-6, 1e6))
def test_a_flat_spectrum_of_rank_k_has_every_rank_k(k: int, height: float) -> None:
    sigma = np.concatenate([np.full(k, height), np.zeros(48 - k)])
    for measure in CONTINUOUS:
        assert measure(sigma) == pytest.approx(k, rel=1e-12)
    assert hard_rank(sigma, SHAPE) == k
    assert energy_rank(sigma, 1.0) == k
    assert [energy_rank(sigma, tenths / 10) for tenths in range(1, 11)] == [
        -(-tenths * k // 10) for tenths in range(1, 11)
    ]


@pytest.mark.parametrize("shape", [(400, 3), (3, 400), (400, 400)])
def test_the_tolerance_of_the_hard_rank_is_that_of_numpy_for_tall_wide_and_square_matrices(
    shape: tuple[int, int],
) -> None:
    """2 ulp of the largest singular value are noise beside 400 rows or columns, whichever there are more of."""
    rng, ulp = np.random.default_rng(0), float(np.finfo(np.float64).eps)
    for smallest, rank in ((2 * ulp, 2), (20 * ulp, 2), (4000 * ulp, 3)):
        sigma = np.array([1.0, 0.5, smallest])
        assert hard_rank(sigma, shape) == rank
        dense = orthonormal(rng, shape[0], 3) * sigma @ orthonormal(rng, shape[1], 3).T
        assert np.linalg.matrix_rank(dense) == rank


def test_a_spectrum_that_halves_has_stable_rank_4_3_participation_5_3_and_erank_4() -> None:
    sigma = 2.0 ** -np.arange(60)
    assert stable_rank(sigma) == pytest.approx(4 / 3, rel=1e-12)
    assert participation_ratio(sigma) == pytest.approx(5 / 3, rel=1e-12)
    assert entropy_rank_sigma(sigma) == pytest.approx(4, rel=1e-12)
    assert nuclear_ratio(sigma) == pytest.approx(3, rel=1e-12)
    assert [energy_rank(sigma, fraction) for fraction in (0.75, 0.76, 0.9, 0.99)] == [1, 2, 2, 4]


@pytest.mark.parametrize("measure", EVERY)
@pytest.mark.parametrize("sigma", [np.zeros(0), np.zeros(5)])
def test_nothing_has_rank_zero(measure: Measure, sigma: np.ndarray) -> None:
    assert measure(sigma) == 0


@pytest.mark.parametrize("measure", [*EVERY, lambda sigma: summary(sigma, SHAPE)])
@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf])
def test_a_value_no_singular_value_can_have_is_refused_by_its_number(measure: Measure, bad: float) -> None:
    with pytest.raises(ValueError, match=rf"finite and not negative; number 1 is {bad}"):
        measure(np.array([1.0, bad]))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1, np.nan])
def test_a_fraction_of_the_energy_outside_0_to_1_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \(0, 1\]; it is"):
        energy_rank(np.ones(3), fraction)


def test_the_summary_holds_the_norms_and_every_rank() -> None:
    found = summary(np.array([4.0, 3.0, 0.0]), (5, 3))
    assert found["frobenius"] == pytest.approx(5)
    assert (found["sigma_1"], found["hard_rank"], found["r90"], found["r99"]) == (4.0, 2, 2, 2)
    assert set(summary(np.zeros(0), (5, 3)).values()) == {0}


@given(sizes)
@settings(deadline=None)
def test_factors_have_the_singular_values_of_their_product(size: tuple[int, int, int, int]) -> None:
    d_out, d_in, rank, seed = size
    rng = np.random.default_rng(seed)
    left, right = rng.standard_normal((d_out, rank)), rng.standard_normal((rank, d_in))
    sigma, k = singular_values_of_factors(left, right), min(d_out, d_in, rank)
    assert sigma.shape == (k,)
    assert np.all(np.diff(sigma) <= 0)
    dense = np.linalg.svd(left @ right, compute_uv=False)
    np.testing.assert_allclose(sigma, dense[:k], atol=1e-12)
    np.testing.assert_allclose(singular_values(left @ right), dense, atol=1e-12)


@given(sizes)
@settings(deadline=None)
def test_orthogonal_maps_and_the_transpose_change_no_singular_value(size: tuple[int, int, int, int]) -> None:
    d_out, d_in, rank, seed = size
    rng = np.random.default_rng(seed)
    left, right = rng.standard_normal((d_out, rank)), rng.standard_normal((rank, d_in))
    sigma = singular_values_of_factors(left, right)
    turned = singular_values_of_factors(orthonormal(rng, d_out, d_out) @ left, right @ orthonormal(rng, d_in, d_in))
    np.testing.assert_allclose(turned, sigma, atol=1e-12)
    np.testing.assert_allclose(singular_values_of_factors(right.T, left.T), sigma, atol=1e-12)
    np.testing.assert_allclose(singular_values((left @ right).T), singular_values(left @ right), atol=1e-12)


def test_a_zero_factor_gives_zeros_and_rank_zero_gives_none() -> None:
    assert singular_values_of_factors(np.zeros((6, 3)), np.ones((3, 5))).tolist() == [0, 0, 0]
    assert singular_values_of_factors(np.zeros((6, 0)), np.zeros((0, 5))).shape == (0,)
    assert singular_values(np.zeros((6, 0))).shape == (0,)


def test_float32_factors_are_decomposed_in_float64() -> None:
    rng = np.random.default_rng(0)
    left, right = gauged_factors(rng, 40, 30, np.logspace(0, -6, 4))
    left, right = left.astype(np.float32), right.astype(np.float32)
    exact = np.linalg.svd(left.astype(np.float64) @ right.astype(np.float64), compute_uv=False)[:4]
    np.testing.assert_allclose(singular_values_of_factors(left, right), exact, rtol=1e-9)
    assert singular_values(left).dtype == np.float64


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_entry_that_is_not_finite_is_refused_by_its_place(bad: float) -> None:
    broken = np.ones((3, 2))
    broken[2, 1] = bad
    with pytest.raises(ValueError, match=rf"entry \(2, 1\) of the left factor is {bad}, one of 1"):
        singular_values_of_factors(broken, np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"of the right factor"):
        singular_values_of_factors(np.ones((4, 3)), broken)
    with pytest.raises(ValueError, match=r"of the ΔW"):
        singular_values(broken)


def test_the_factor_route_is_exact_to_1e_12_at_4096_and_rank_16() -> None:
    sigma = np.logspace(0, -1, 16)
    left, right = gauged_factors(np.random.default_rng(16), 4096, 4096, sigma)
    np.testing.assert_allclose(singular_values_of_factors(left, right), sigma, rtol=1e-12)


def test_the_factor_route_agrees_with_the_dense_one_at_512_by_384() -> None:
    left, right = gauged_factors(np.random.default_rng(3), 512, 384, np.logspace(0, -1, 16))
    dense = np.linalg.svd(left @ right, compute_uv=False)
    np.testing.assert_allclose(singular_values_of_factors(left, right), dense[:16], rtol=1e-12)
    np.testing.assert_allclose(singular_values(left @ right), dense, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_the_factor_route_agrees_with_the_dense_one_at_4096() -> None:
    rng = np.random.default_rng(4096)
    left, right = rng.standard_normal((4096, 16)), rng.standard_normal((16, 4096))
    dense = np.linalg.svd(left @ right, compute_uv=False)
    np.testing.assert_allclose(singular_values_of_factors(left, right), dense[:16], rtol=1e-12)
    assert dense[16] < 1e-12 * dense[0]


def test_where_divide_and_conquer_does_not_converge_the_other_driver_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from analysis.stats import singular_values as module

    genuine = module.scipy.linalg.svd

    def gesdd_fails(*arguments: object, lapack_driver: str, **options: object) -> object:
        if lapack_driver == "gesdd":
            raise module.scipy.linalg.LinAlgError("SVD did not converge")
        return genuine(*arguments, lapack_driver=lapack_driver, **options)

    monkeypatch.setattr(module.scipy.linalg, "svd", gesdd_fails)
    assert singular_values(np.diag([3.0, 2.0])) == pytest.approx([3, 2])
    assert singular_values_of_factors(np.diag([3.0, 2.0]), np.eye(2)) == pytest.approx([3, 2])


def test_the_pure_functions_import_neither_torch_nor_anything_of_ours() -> None:
    command = "import sys, analysis.stats.singular_values; print(*sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "torch" not in loaded
    ours = {name for name in loaded if name.split(".")[0] in ("analysis", "experiments", "lora_variants")}
    assert ours == {"analysis", "analysis.stats", "analysis.stats.singular_values"}


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_singular_vectors_give_the_update_back_also_where_divide_and_conquer_fails(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    delta = np.random.default_rng(0).standard_normal(shape)
    exact = scipy.linalg.svd

    def failing(matrix: np.ndarray, *, lapack_driver: str, **options: bool) -> object:
        if lapack_driver == "gesdd":
            raise scipy.linalg.LinAlgError("SVD did not converge")
        return exact(matrix, lapack_driver=lapack_driver, **options)

    for svd in (exact, failing):
        monkeypatch.setattr(scipy.linalg, "svd", svd)
        u, sigma, vt = singular_vectors(delta)
        assert u * sigma @ vt == pytest.approx(delta)
        assert sigma == pytest.approx(singular_values(delta))
        assert u.T @ u == pytest.approx(np.eye(4), abs=1e-12)
        assert vt @ vt.T == pytest.approx(np.eye(4), abs=1e-12)
