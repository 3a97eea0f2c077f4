"""ΔW cut to few directions: against Eckart-Young, exact energies and competitors drawn at random."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse.linalg
from hypothesis import given
from hypothesis import strategies as st

from analysis.stats.truncation import (
    Svd,
    activation_weighted_top,
    decompose,
    global_budget,
    random_projection,
    removed,
    shrunk,
    top,
)

SHAPES = [(9, 6), (6, 9), (7, 7), (1, 5), (5, 1)]
Cut = Callable[[np.ndarray, int], np.ndarray]
INPUTS = np.random.default_rng(5).standard_normal((40, 9))
KINDS: dict[str, Cut] = {
    "top": lambda delta, k: top(decompose(delta), k),
    "removed": lambda delta, k: delta - removed(decompose(delta), k),
    "random": lambda delta, k: random_projection(delta, k, np.random.default_rng(1)),
    "shrunk": lambda delta, k: shrunk(delta, decompose(delta), k),
    "weighted": lambda delta, k: activation_weighted_top(delta, moment(delta.shape[1]), k),
}


def moment(d_in: int, *, rank: int | None = None) -> np.ndarray:
    """The second moment of inputs that differ in size, and fill `rank` directions alone."""
    inputs = INPUTS[:, :d_in] * np.geomspace(1, 20, d_in)
    if rank is not None:
        inputs = inputs[:, :rank] @ np.random.default_rng(2).standard_normal((rank, d_in))
    return inputs.T @ inputs / len(inputs)


def matrix(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_no_direction_gives_zero_and_all_give_the_update_itself(kind: str, shape: tuple[int, int]) -> None:
    delta = matrix(shape)
    p = min(shape)
    np.testing.assert_allclose(KINDS[kind](delta, 0), np.zeros(shape), atol=1e-13)
    for k in (p, p + 3):
        np.testing.assert_allclose(KINDS[kind](delta, k), delta, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(KINDS[kind](np.zeros(shape), 1), np.zeros(shape), atol=0)


@pytest.mark.parametrize("shape", SHAPES)
def test_top_and_removed_add_up_to_the_update_and_share_its_energy(shape: tuple[int, int]) -> None:
    delta = matrix(shape)
    svd = decompose(delta)
    for k in range(min(shape) + 1):
        np.testing.assert_allclose(top(svd, k) + removed(svd, k), delta, atol=1e-13)
        assert np.sum(top(svd, k) ** 2) == pytest.approx(np.sum(svd.sigma[:k] ** 2))
        assert np.sum(removed(svd, k) ** 2) == pytest.approx(np.sum(svd.sigma[k:] ** 2))


def test_top_is_what_arpack_finds_and_no_matrix_of_its_rank_is_closer() -> None:
    rng, delta = np.random.default_rng(0), matrix((30, 20))
    for k in (1, 4, 9):
        cut = top(decompose(delta), k)
        u, sigma, vt = scipy.sparse.linalg.svds(delta, k=k, random_state=0)
        np.testing.assert_allclose(cut, (u * sigma) @ vt, atol=1e-10)
        least = np.linalg.norm(delta - cut)
        near = np.linalg.svd(cut + 0.05 * rng.standard_normal((200, *cut.shape)), full_matrices=False)
        others = (near.U[..., :k] * near.S[:, None, :k]) @ near.Vh[:, :k]
        assert np.linalg.norm(delta - others, axis=(1, 2)).min() > least


def test_a_random_projection_is_of_rank_k_leaves_what_it_keeps_and_keeps_a_share_k_of_p_of_the_energy() -> None:
    rng, k = np.random.default_rng(3), 3
    for shape in ((12, 8), (8, 12)):
        delta = matrix(shape)
        cut = random_projection(delta, k, rng)
        assert np.linalg.matrix_rank(cut) == k
        assert np.sum(cut * (delta - cut)) == pytest.approx(0, abs=1e-12)  # a projection, not rescaled
        kept = [np.sum(random_projection(delta, k, rng) ** 2) for _ in range(2000)]
        assert np.mean(kept) == pytest.approx(k / 8 * np.sum(delta**2), rel=0.02)


def test_a_random_projection_is_uniform_over_the_subspaces() -> None:
    """The share of a fixed direction in k uniform ones of n is Beta(k/2, (n-k)/2)."""
    direction, rng = np.eye(7)[:1], np.random.default_rng(0)
    tall = np.vstack([direction, np.zeros((8, 7))])
    shares = [np.sum(random_projection(tall, 2, rng) ** 2) for _ in range(1500)]
    assert scipy.stats.kstest(shares, scipy.stats.beta(1.0, 2.5).cdf).pvalue > 0.01


@pytest.mark.parametrize("shape", SHAPES)
def test_shrinking_keeps_every_direction_and_the_energy_of_the_top(shape: tuple[int, int]) -> None:
    delta = matrix(shape)
    svd = decompose(delta)
    for k in range(min(shape)):
        cut = shrunk(delta, svd, k)
        assert np.sum(cut**2) == pytest.approx(np.sum(top(svd, k) ** 2))
        np.testing.assert_allclose(cut * np.linalg.norm(delta), delta * np.linalg.norm(cut), atol=1e-12)


def error(delta: np.ndarray, cut: np.ndarray, C: np.ndarray) -> float:
    """E‖(ΔW - X) x‖² by its trace, without a root."""
    return float(np.trace((delta - cut) @ C @ (delta - cut).T))


@pytest.mark.parametrize("rank", [9, 5])
def test_the_activation_weighted_cut_has_the_least_error_of_the_outputs(rank: int) -> None:
    rng, delta, C, k = np.random.default_rng(0), matrix((7, 9)), moment(9, rank=rank), 2
    cut = activation_weighted_top(delta, C, k)
    assert np.linalg.matrix_rank(cut, tol=1e-8 * np.linalg.norm(cut)) == k
    least = error(delta, cut, C)
    assert least < 0.9 * error(delta, top(decompose(delta), k), C)
    for _ in range(200):
        u, sigma, vt = np.linalg.svd(cut + 0.02 * rng.standard_normal(cut.shape), full_matrices=False)
        assert error(delta, (u[:, :k] * sigma[:k]) @ vt[:k], C) > least
    outputs = np.linalg.svd(delta @ np.linalg.cholesky(C + 1e-12 * np.eye(9)), compute_uv=False)
    assert least == pytest.approx(np.sum(outputs[k:] ** 2), rel=1e-6)


def test_the_activation_weighted_cut_is_zero_where_no_input_goes_and_exact_from_the_rank_of_the_inputs_on() -> None:
    delta, C = matrix((9, 8)), moment(8, rank=3)
    unseen = np.linalg.svd(C).Vh[3:]
    for k in (2, 3, 5):
        np.testing.assert_allclose(activation_weighted_top(delta, C, k) @ unseen.T, 0, atol=1e-9)
    assert error(delta, activation_weighted_top(delta, C, 3), C) == pytest.approx(0, abs=1e-9 * np.sum(C))
    np.testing.assert_allclose(activation_weighted_top(delta, np.eye(8), 4), top(decompose(delta), 4), atol=1e-12)


@pytest.mark.parametrize("scale", [1e-24, 1e24])
def test_the_unit_of_the_inputs_changes_no_activation_weighted_cut_and_no_refusal(scale: float) -> None:
    delta, C = matrix((7, 9)), moment(9, rank=5)
    cut = activation_weighted_top(delta, C, 2)
    np.testing.assert_allclose(activation_weighted_top(delta, scale * C, 2), cut, rtol=1e-6, atol=1e-9)
    with pytest.raises(ValueError, match="no negative eigenvalue"):
        activation_weighted_top(delta, scale * (C - 0.01 * np.eye(9)), 2)


@given(st.lists(st.lists(st.sampled_from([0.0, 1.0, 2.0, 3.0]), max_size=5), max_size=4), st.integers(0, 25))
def test_a_global_budget_takes_the_largest_values_of_all_matrices(spectra: list[list[float]], total: int) -> None:
    ordered = {f"m{number}": sorted(sigma, reverse=True) for number, sigma in enumerate(spectra)}
    svds = {name: Svd(np.eye(len(s)), np.array(s), np.eye(len(s))) for name, s in ordered.items()}
    counts = global_budget(svds, total)
    assert list(counts) == list(svds)
    expected = sorted((-value, name) for name, sigma in ordered.items() for value in sigma)[:total]
    assert counts == {name: sum(owner == name for _, owner in expected) for name in svds}
    assert global_budget(dict(reversed(svds.items())), total) == counts
    for fewer, more in pairwise(global_budget(svds, budget) for budget in range(total + 1)):
        assert all(fewer[name] <= more[name] for name in svds)


@pytest.mark.parametrize("k", [-1, 1.5, True, None])
def test_a_k_that_is_no_number_of_directions_is_refused_with_its_value(k: object) -> None:
    delta, rng = matrix((4, 3)), np.random.default_rng(0)
    svd = decompose(delta)
    cuts: list[Callable[[], object]] = [
        lambda: top(svd, k), lambda: removed(svd, k), lambda: random_projection(delta, k, rng),
        lambda: shrunk(delta, svd, k), lambda: activation_weighted_top(delta, np.eye(3), k),
        lambda: global_budget({"m": svd}, k),
    ]  # fmt: skip
    for cut in cuts:
        with pytest.raises(ValueError, match=r"number of directions is a whole number"):
            cut()


def test_what_is_not_finite_and_what_is_no_second_moment_is_refused() -> None:
    delta, rng = matrix((4, 3)), np.random.default_rng(0)
    svd, broken = decompose(delta), np.where(np.eye(4, 3) > 0, np.nan, delta)
    for cut in (
        lambda: decompose(broken), lambda: random_projection(broken, 1, rng), lambda: shrunk(broken, svd, 1),
        lambda: activation_weighted_top(broken, np.eye(3), 1),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"entry \(0, 0\) of the ΔW is nan, one of 3"):
            cut()
    moments = {
        "entry .* of the second moment of the inputs is inf": np.diag([1.0, np.inf, 1.0]),
        r"with d_in 3 is 3 x 3; it is \(2, 2\)": np.eye(2),
        "symmetric; entries of this one differ by 1 ": np.eye(3) + np.eye(3, k=1),
        "no negative eigenvalue; this one has -2": np.diag([1.0, 1.0, -2.0]),
    }
    for message, C in moments.items():
        with pytest.raises(ValueError, match=message):
            activation_weighted_top(delta, C, 1)
