"""What is left of an update ΔW cut to few directions: new matrices of its shape, made by linear algebra alone.

Sizes: ΔW is d_out x d_in, p = min(d_out, d_in), k counts directions. Every function works in float64 and raises
ValueError for a k that is no number of directions and for entries that are not finite.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import scipy
from jaxtyping import Float

from analysis.stats.singular_values import EPSILON, finite, singular_vectors

FLOAT32_ROUNDING = 1e-6  # second moments are averaged in float32: so far, relative to the largest, they may be off


@dataclass(frozen=True)
class Svd:
    """ΔW = u diag(sigma) vt with orthonormal columns of u and rows of vt, sigma descending."""

    u: Float[np.ndarray, "d_out p"]
    sigma: Float[np.ndarray, " p"]
    vt: Float[np.ndarray, "p d_in"]


def decompose(delta: Float[np.ndarray, "d_out d_in"]) -> Svd:
    """The singular value decomposition of ΔW in float64."""
    return Svd(*singular_vectors(delta))


def top(svd: Svd, k: int) -> Float[np.ndarray, "d_out d_in"]:
    """The k largest values with their vectors: no matrix of rank k is closer to ΔW (Eckart & Young, 1936)."""
    kept = slice(_directions(k))
    return (svd.u[:, kept] * svd.sigma[kept]) @ svd.vt[kept]


def removed(svd: Svd, k: int) -> Float[np.ndarray, "d_out d_in"]:
    """ΔW without its k largest values: what `top` leaves out."""
    kept = slice(_directions(k), None)
    return (svd.u[:, kept] * svd.sigma[kept]) @ svd.vt[kept]


def random_projection(
    delta: Float[np.ndarray, "d_out d_in"], k: int, generator: np.random.Generator
) -> Float[np.ndarray, "d_out d_in"]:
    """ΔW Q Qᵀ, not rescaled, with k orthonormal columns Q that are uniform (Haar) in the smaller of ΔW's two spaces.

    Where d_out < d_in it is Q Qᵀ ΔW: so k counts out of the p directions that ΔW can have, as it does for `top`, a
    share k / p of the energy stays on average whatever the shape, and p directions are all of ΔW.
    """
    dense = finite(delta, "ΔW")
    p = min(dense.shape)
    if _directions(k) >= p:
        return dense
    Q, _ = scipy.linalg.qr(generator.standard_normal((p, k)), mode="economic")
    return Q @ (Q.T @ dense) if dense.shape[0] < dense.shape[1] else (dense @ Q) @ Q.T


def shrunk(delta: Float[np.ndarray, "d_out d_in"], svd: Svd, k: int) -> Float[np.ndarray, "d_out d_in"]:
    """c ΔW with all directions of ΔW and the energy of its top k: ‖c ΔW‖_F² = Σ_{i<=k} sigma_i²."""
    dense = finite(delta, "ΔW")
    if _directions(k) >= min(dense.shape):
        return dense
    whole = scipy.linalg.norm(dense)
    return dense * (scipy.linalg.norm(svd.sigma[:k]) / whole if whole > 0 else 0.0)


def activation_weighted_top(
    delta: Float[np.ndarray, "d_out d_in"], second_moment: Float[np.ndarray, "d_in d_in"], k: int
) -> Float[np.ndarray, "d_out d_in"]:
    """The X of rank k with the least E‖(ΔW - X) x‖² = ‖(ΔW - X) C^½‖_F², for inputs x with C = E[x xᵀ].

    X = [ΔW C^½]_k (C^½)⁺; where C is singular, this is the minimiser of least norm: 0 on the directions that no input
    has. For k >= p it is ΔW itself. Raises ValueError for a C that is no second moment of inputs of ΔW.
    """
    dense = finite(delta, "ΔW")
    root, inverse = _roots(second_moment, dense.shape[1])
    if _directions(k) >= min(dense.shape):
        return dense
    return top(decompose(dense @ root), k) @ inverse


def global_budget(svds: Mapping[str, Svd], total: int) -> dict[str, int]:
    """How many values of every matrix are among the `total` largest of all; of equal ones those of the earlier name.

    Names are ordered as strings, whatever the order of the mapping.
    """
    names = sorted(svds)
    owners = np.repeat(np.arange(len(names)), [len(svds[name].sigma) for name in names])
    values = np.concatenate([svds[name].sigma for name in names]) if names else np.zeros(0)
    largest = np.argsort(-values, kind="stable")[: _directions(total)]
    counts = np.bincount(owners[largest], minlength=len(names))
    found = dict(zip(names, map(int, counts), strict=True))
    return {name: found[name] for name in svds}


def _directions(k: int) -> int:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 0:
        raise ValueError(f"the number of directions is a whole number from 0 on; it is {k!r}")
    return int(k)


def _roots(
    second_moment: Float[np.ndarray, "n n"], d_in: int
) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n n"]]:
    """C^½ and its pseudo-inverse. Eigenvalues below n · eps of the largest are rounding, and taken as 0."""
    C = finite(second_moment, "second moment of the inputs")
    if C.shape != (d_in, d_in):
        raise ValueError(
            f"the second moment of the inputs of a ΔW with d_in {d_in} is {d_in} x {d_in}; it is {C.shape}"
        )
    largest = float(np.abs(C).max(initial=0.0))
    if (skewed := float(np.abs(C - C.T).max(initial=0.0))) > FLOAT32_ROUNDING * largest:
        raise ValueError(
            f"a second moment is symmetric; entries of this one differ by {skewed:.3g} from those across the diagonal"
        )
    values, vectors = scipy.linalg.eigh((C + C.T) / 2, check_finite=False)
    if (least := float(values.min(initial=0.0))) < -FLOAT32_ROUNDING * largest:
        raise ValueError(f"a second moment has no negative eigenvalue; this one has {least:.3g}")
    present = values > len(values) * EPSILON * values.max(initial=0.0)
    roots = np.sqrt(np.where(present, values, 0.0))
    inverses = np.divide(1.0, roots, out=np.zeros_like(roots), where=present)
    return (vectors * roots) @ vectors.T, (vectors * inverses) @ vectors.T
