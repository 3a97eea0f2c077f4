"""Singular values of an update ΔW, from its factors where it has any, and the ranks read off them."""

from collections.abc import Callable
from typing import Literal, TypeVar

import numpy as np
import scipy
from jaxtyping import Float

EPSILON = float(np.finfo(np.float64).eps)
T = TypeVar("T")


def singular_values_of_factors(
    left: Float[np.ndarray, "d_out r"], right: Float[np.ndarray, "r d_in"]
) -> Float[np.ndarray, " k"]:
    """The singular values of ΔW = left @ right in float64, descending, k = min(d_out, d_in, r).

    ΔW is never formed: left = Q_L R_L and rightᵀ = Q_R R_R (QR), and R_L R_Rᵀ has its singular values. The cost is
    O((d_out + d_in) r² + r³), and unlike the eigenvalues of (leftᵀ left)(right rightᵀ) it does not square the
    condition number. Raises ValueError for entries that are not finite.
    """
    (r_left,) = scipy.linalg.qr(finite(left, "left factor"), mode="r", check_finite=False)
    (r_right,) = scipy.linalg.qr(finite(right, "right factor").T, mode="r", check_finite=False)
    rank = left.shape[1]
    return singular_values(r_left[:rank] @ r_right[:rank].T)


def singular_values(delta: Float[np.ndarray, "d_out d_in"]) -> Float[np.ndarray, " k"]:
    """The singular values of a dense ΔW in float64, descending, k = min(d_out, d_in).

    Raises ValueError for entries that are not finite.
    """
    dense = finite(delta, "ΔW")
    sigma = by_first_driver(
        lambda driver: scipy.linalg.svd(dense, compute_uv=False, lapack_driver=driver, check_finite=False)
    )
    return np.asarray(sigma, dtype=np.float64)


def singular_vectors(
    delta: Float[np.ndarray, "d_out d_in"],
) -> tuple[Float[np.ndarray, "d_out k"], Float[np.ndarray, " k"], Float[np.ndarray, "k d_in"]]:
    """U, sigma and Vᵀ of a dense ΔW = U diag(sigma) Vᵀ in float64, k = min(d_out, d_in).

    Raises ValueError for entries that are not finite.
    """
    dense = finite(delta, "ΔW")
    u, sigma, vt = by_first_driver(
        lambda driver: scipy.linalg.svd(dense, full_matrices=False, lapack_driver=driver, check_finite=False)
    )
    return u, sigma, vt


def hard_rank(sigma: Float[np.ndarray, " k"], shape: tuple[int, int]) -> int:
    """#{i: sigma_i > sigma_1 · max(d_out, d_in) · eps}: the rank float64 can vouch for.

    `shape` is (d_out, d_in) of the matrix. The tolerance is that of `numpy.linalg.matrix_rank`
    (Press et al., Numerical Recipes, section 2.6).
    """
    relative = _relative_to_largest(sigma)
    return int(np.count_nonzero(relative > max(shape) * EPSILON))


def stable_rank(sigma: Float[np.ndarray, " k"]) -> float:
    """Σ sigma² / sigma_1² = ‖ΔW‖_F² / ‖ΔW‖₂² (Rudelson & Vershynin, J. ACM 2007)."""
    return float(np.sum(_relative_to_largest(sigma) ** 2))


def participation_ratio(sigma: Float[np.ndarray, " k"]) -> float:
    """(Σ sigma²)² / Σ sigma⁴ = 1 / Σ q², q_i = sigma_i² / Σ sigma² (Bell & Dean, 1970)."""
    return _inverse_simpson(_shares(_relative_to_largest(sigma) ** 2))


def entropy_rank_energy(sigma: Float[np.ndarray, " k"]) -> float:
    """exp(-Σ q ln q), q_i = sigma_i² / Σ sigma²: the entropy is that of the *energy* (Hill, 1973, order 1).

    Not Roy & Vetterli's effective rank, which takes sigma itself: see `entropy_rank_sigma`.
    """
    return _exponential_of_entropy(_shares(_relative_to_largest(sigma) ** 2))


def entropy_rank_sigma(sigma: Float[np.ndarray, " k"]) -> float:
    """exp(-Σ p ln p), p_i = sigma_i / Σ sigma: the effective rank, "erank" (Roy & Vetterli, EUSIPCO 2007)."""
    return _exponential_of_entropy(_shares(_relative_to_largest(sigma)))


def nuclear_ratio(sigma: Float[np.ndarray, " k"]) -> float:
    """(Σ sigma)² / Σ sigma² = ‖ΔW‖_*² / ‖ΔW‖_F² = 1 / Σ p², p_i = sigma_i / Σ sigma."""
    return _inverse_simpson(_shares(_relative_to_largest(sigma)))


def energy_rank(sigma: Float[np.ndarray, " k"], fraction: float) -> int:
    """min{n: Σ_{i<=n} sigma_i² >= fraction · Σ sigma²}: r90 is `energy_rank(sigma, 0.90)`.

    A tie is a hit: the sum may fall short by k · eps, the rounding of a sum of k terms.
    Raises ValueError for a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the fraction of the energy must lie in (0, 1]; it is {fraction}")
    shares = np.sort(_shares(_relative_to_largest(sigma) ** 2))[::-1]
    if shares.size == 0:
        return 0
    reached = np.cumsum(shares) >= fraction - shares.size * EPSILON
    return int(np.argmax(reached)) + 1


def summary(sigma: Float[np.ndarray, " k"], shape: tuple[int, int]) -> dict[str, float | int]:
    """‖ΔW‖_F, sigma_1 and every measure of this file for a ΔW of `shape` (d_out, d_in); zeros for ΔW = 0."""
    return {
        "frobenius": float(scipy.linalg.norm(_checked(sigma))),
        "sigma_1": float(np.max(sigma, initial=0.0)),
        "hard_rank": hard_rank(sigma, shape),
        "stable_rank": stable_rank(sigma),
        "participation_ratio": participation_ratio(sigma),
        "entropy_rank_energy": entropy_rank_energy(sigma),
        "entropy_rank_sigma": entropy_rank_sigma(sigma),
        "nuclear_ratio": nuclear_ratio(sigma),
        "r90": energy_rank(sigma, 0.90),
        "r95": energy_rank(sigma, 0.95),
        "r99": energy_rank(sigma, 0.99),
    }


def by_first_driver(decompose: Callable[[Literal["gesdd", "gesvd"]], T]) -> T:
    """What `decompose` makes with LAPACK's gesdd, or with gesvd where that fails.

    Divide and conquer can fail to converge where QR iteration does not.
    """
    try:
        return decompose("gesdd")
    except scipy.linalg.LinAlgError:
        return decompose("gesvd")


def finite(matrix: Float[np.ndarray, "m n"], what: str) -> Float[np.ndarray, "m n"]:
    """The matrix in float64. Raises ValueError that names the first entry that is not finite."""
    wide = np.asarray(matrix, dtype=np.float64)
    broken = np.argwhere(~np.isfinite(wide))
    if len(broken):
        row, column = (int(index) for index in broken[0])
        raise ValueError(
            f"a singular value decomposition needs finite entries; entry ({row}, {column}) of the {what} "
            f"is {wide[row, column]}, one of {len(broken)}"
        )
    return wide


def _checked(sigma: Float[np.ndarray, " k"]) -> Float[np.ndarray, " k"]:
    wide = np.asarray(sigma, dtype=np.float64)
    broken = np.flatnonzero(~(np.isfinite(wide) & (wide >= 0)))
    if broken.size:
        first = int(broken[0])
        raise ValueError(f"singular values are finite and not negative; number {first} is {wide[first]}")
    return wide


def _relative_to_largest(sigma: Float[np.ndarray, " k"]) -> Float[np.ndarray, " n"]:
    """sigma / max(sigma), so that no power overflows; empty for ΔW = 0, of which every measure is then 0."""
    wide = _checked(sigma)
    largest = np.max(wide, initial=0.0)
    return wide / largest if largest > 0 else wide[:0]


def _shares(parts: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return parts / parts.sum() if parts.size else parts


def _inverse_simpson(shares: Float[np.ndarray, " n"]) -> float:
    return float(1 / np.sum(shares**2)) if shares.size else 0.0


def _exponential_of_entropy(shares: Float[np.ndarray, " n"]) -> float:
    present = shares[shares > 0]
    return float(np.exp(-np.sum(present * np.log(present)))) if present.size else 0.0
