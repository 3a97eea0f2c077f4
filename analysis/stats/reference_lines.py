"""What the spectrum of a matrix without any structure looks like: the line to read a ΔW of that shape and rank against.

A dense ΔW (full fine-tuning) is read against a matrix of iid Gaussian entries, an adapter of rank r against the product
B A of two Gaussian factors. Both have ‖·‖_F = 1, and are the same for ΔW and ΔWᵀ. The draws have fixed seeds: equal
arguments give equal lines.
"""

from functools import cache

import numpy as np
import scipy
from jaxtyping import Float

from analysis.stats.singular_values import summary

VALUES_DRAWN, MOST_DRAWS = 4096, 256  # over all draws of a shape: standard errors of 1 % and less, at .1 s
LARGEST_DRAWN = 512  # the measures of a larger Gaussian matrix are within .3 % of those of the limit
MEAN_TRACY_WIDOM = -1.2065335745820  # of the law for real matrices (Bornemann, 2010)


def reference_measures(shape: tuple[int, int], rank: int | None) -> dict[str, float]:
    """The mean of every measure of `singular_values.summary` but ‖·‖_F, without structure and for ‖·‖_F = 1.

    `shape` is (d_out, d_in); `rank` is that of the factors, None for a dense matrix. Zeros for a rank of 0.
    """
    return dict(_measures(min(shape), max(shape), rank))


def reference_sigma(shape: tuple[int, int], rank: int | None) -> Float[np.ndarray, " k"]:
    """The mean singular values, descending: min(d_out, d_in) of a dense matrix, at most `rank` of factors."""
    return np.asarray(_spectra(min(shape), max(shape), rank).mean(axis=0))


@cache
def _measures(p: int, n: int, rank: int | None) -> dict[str, float]:
    found = [summary(sigma, (p, n)) for sigma in _spectra(p, n, rank)]
    return {name: float(np.mean([each[name] for each in found])) for name in found[0] if name != "frobenius"}


@cache
def _spectra(p: int, n: int, rank: int | None) -> Float[np.ndarray, "draws k"]:
    """Spectra of norm 1 drawn at random, p <= n; of a large dense matrix the limit alone."""
    count = p if rank is None else min(p, rank)
    if count == 0:
        return np.zeros((1, 0))
    draws = max(1, min(MOST_DRAWS, VALUES_DRAWN // count))
    rng = np.random.default_rng([p, n] if rank is None else [p, n, rank])
    if rank is not None:
        sigma = np.stack([_sigma_of_factors(p, n, rank, rng) for _ in range(draws)])
    elif p <= LARGEST_DRAWN:
        sigma = np.stack([_sigma_of_gaussian(p, n, rng) for _ in range(draws)])
    else:
        sigma = _limit_of_gaussian(p, n)[None]
    return np.asarray(sigma / scipy.linalg.norm(sigma, axis=1, keepdims=True))


def _sigma_of_gaussian(p: int, n: int, rng: np.random.Generator) -> Float[np.ndarray, " p"]:
    """Singular values of a p x n Gaussian matrix, from the bidiagonal one of the same law: O(p²) whatever n is.

    Its entries are chi variables of n, n-1, ... on the diagonal and of p-1, p-2, ... beside it (Dumitriu & Edelman,
    J. Math. Phys. 2002); the eigenvalues of that matrix times its transpose, a tridiagonal one, are the squares.
    """
    diagonal = rng.chisquare(n - np.arange(p))
    beside = rng.chisquare(np.arange(p - 1, 0, -1))
    squares = scipy.linalg.eigvalsh_tridiagonal(
        diagonal + np.append(0.0, beside), np.sqrt(diagonal[:-1] * beside), lapack_driver="sterf"
    )
    return np.sqrt(np.maximum(squares[::-1], 0.0))


def _sigma_of_factors(p: int, n: int, rank: int, rng: np.random.Generator) -> Float[np.ndarray, " k"]:
    """Singular values of B A with Gaussian factors (p x r and r x n), from the R of either's QR decomposition."""
    product = _r_of_gaussian(p, rank, rng) @ _r_of_gaussian(n, rank, rng).T
    return np.asarray(scipy.linalg.svdvals(product))[: min(p, rank)]


def _r_of_gaussian(rows: int, columns: int, rng: np.random.Generator) -> Float[np.ndarray, "k columns"]:
    """The R of a Gaussian matrix: chi variables on the diagonal, normal ones above (Bartlett, 1933)."""
    height = min(rows, columns)
    r = np.triu(rng.standard_normal((height, columns)), 1)
    np.fill_diagonal(r, np.sqrt(rng.chisquare(rows - np.arange(height))))
    return r


def _limit_of_gaussian(p: int, n: int) -> Float[np.ndarray, " p"]:
    """Singular values of a p x n Gaussian matrix for large p: quantiles of Marchenko and Pastur's law.

    With sigma² / n = s(t) = 1 + beta + 2 √beta cos t, beta = p / n, the density is 2 sin² t / (π s(t)) in
    t from 0 to π. The largest value fluctuates on a scale of its own: it is that of Tracy and Widom's law (Johnstone,
    2001) with the centre and scale of Ma (Bernoulli, 2012).
    """
    beta, steps = p / n, 64 * p
    t = np.pi * (np.arange(steps) + 0.5) / steps
    squares = 1 + beta + 2 * np.sqrt(beta) * np.cos(t)
    above = np.cumsum(2 * np.sin(t) ** 2 / squares) / steps  # the share of values larger than that at the step's end
    ends = 1 + beta + 2 * np.sqrt(beta) * np.cos(t + np.pi / 2 / steps)
    sigma_squared = n * np.interp((np.arange(p) + 0.5) / p, above, ends)
    a, b = np.sqrt(n - 0.5), np.sqrt(p - 0.5)
    sigma_squared[0] = (a + b) ** 2 + (a + b) * (1 / a + 1 / b) ** (1 / 3) * MEAN_TRACY_WIDOM
    return np.sqrt(sigma_squared)
