"""p values of paired differences: is their mean zero, and does it lie inside a margin?

Every function takes many comparisons at once; the last axis is the seeds of one comparison.
Equal differences have no spread, so t has no scale. Under the normal law that t assumes this never happens: such
scores are coarse, and a p of 0 from a handful of them would be too certain. The exact sign-flip test stands in, whose p
cannot be smaller than 2^(1-n).
"""

import numpy as np
from jaxtyping import Bool, Float
from scipy import stats

ROUNDING = 16 * float(np.finfo(np.float64).eps)  # of the largest score: what two ways to compute one mean differ by
EXHAUSTIVE_UP_TO = 20  # seeds: 2^19 sums a comparison
RANDOM_FLIPS = 99_999
SUMS_AT_ONCE = 2**22  # float64: 32 MiB


def paired_differences(first: Float[np.ndarray, "..."], second: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """first - second in float64. Those that are equal but for the rounding of the scores come out equal."""
    wide = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    differences = wide[0] - wide[1]
    if not differences.shape[-1]:
        return differences
    rounding = ROUNDING * np.max(np.abs(wide), axis=(0, -1))[..., None]
    one = np.where(np.abs(differences[..., :1]) > rounding, differences[..., :1], 0.0)
    return np.where(np.ptp(differences, axis=-1, keepdims=True) <= rounding, one, differences)


def paired_t(differences: Float[np.ndarray, "*families seeds"]) -> Float[np.ndarray, "*families"]:
    """Two-sided p of Student's paired t-test of a mean difference of 0; needs two seeds.

    Where all n differences are equal: 1 if they are 0, and the sign-flip p 2^(1-n) otherwise.
    """
    n = _seeds(differences)
    mean, standard_error, equal = _studentised(differences)
    p = 2 * stats.t.sf(np.abs(mean) / standard_error, n - 1)
    return np.where(equal, np.where(differences[..., 0] == 0, 1.0, 2.0 ** (1 - n)), p)


def paired_t_above(differences: Float[np.ndarray, "*families seeds"]) -> Float[np.ndarray, "*families"]:
    """One-sided p of the same test: small where the mean difference is above 0.

    Where all n differences are equal: the sign-flip p 2^-n if they are above 0, and 1 otherwise.
    """
    p, mean = paired_t(differences) / 2, np.mean(differences, axis=-1)
    return np.where(mean > 0, p, np.where(np.ptp(differences, axis=-1) == 0, 1.0, 1 - p))


def equivalence(differences: Float[np.ndarray, "*families seeds"], margin: float) -> Float[np.ndarray, "*families"]:
    """p of equivalence by two one-sided paired t-tests (TOST): the larger of the two; needs two seeds.

    The hypothesis rejected where p <= alpha is |mean difference| >= margin (Schuirmann, J. Pharmacokinet. Biopharm.
    1987); equivalently, the t-interval of confidence 1 - 2 alpha lies within ± margin.
    Where all n differences are equal: 2^-n (every flip around the margin but the observed one lies further out) if they
    are inside the margin, and 1 otherwise.
    """
    n = _seeds(differences)
    mean, standard_error, equal = _studentised(differences)
    p = stats.t.sf((margin - np.abs(mean)) / standard_error, n - 1)
    return np.where(equal, np.where(np.abs(differences[..., 0]) < margin, 2.0**-n, 1.0), p)


def sign_flip(
    differences: Float[np.ndarray, "*families seeds"], generator: np.random.Generator
) -> Float[np.ndarray, "*families"]:
    """Two-sided p of the sign-flip test of a mean difference of 0 (Fisher, The Design of Experiments, 1935).

    The share of flips whose |sum| reaches the observed one. It is exact for any differences that are symmetric around
    0. Up to 20 seeds all 2^n flips are taken and `generator` is untouched; above, 99,999 random ones and the observed
    (Phipson & Smyth, Stat. Appl. Genet. Mol. Biol. 2010).
    """
    rows = np.asarray(differences, dtype=np.float64).reshape(-1, differences.shape[-1])
    least = np.abs(rows.sum(axis=1)) - _rounding(rows)  # a tie counts as reached
    return _share_of_flips(rows, least, generator).reshape(differences.shape[:-1])


def sign_flip_above(
    differences: Float[np.ndarray, "*families seeds"], generator: np.random.Generator
) -> Float[np.ndarray, "*families"]:
    """One-sided p of the same test: the share of flips whose sum reaches the observed one.

    A flip and its mirror have opposite sums. So above 0 it is half of the share whose |sum| reaches the observed one,
    and otherwise what half of the share whose |sum| goes beyond it leaves of 1.
    """
    rows = np.asarray(differences, dtype=np.float64).reshape(-1, differences.shape[-1])
    total, rounding = rows.sum(axis=1), _rounding(rows)
    above = total > rounding
    beyond = np.nextafter(np.abs(total) + rounding, np.inf)
    half = _share_of_flips(rows, np.where(above, np.abs(total) - rounding, beyond), generator) / 2
    return np.where(above, half, 1 - half).reshape(differences.shape[:-1])


def _share_of_flips(
    rows: Float[np.ndarray, "comparisons seeds"],
    least: Float[np.ndarray, " comparisons"],
    generator: np.random.Generator,
) -> Float[np.ndarray, " comparisons"]:
    """Of each comparison, the share of flips whose |sum| is at least `least`."""
    if rows.shape[1] > EXHAUSTIVE_UP_TO:
        return _of_random_flips(rows, least, generator)
    at_once = max(1, SUMS_AT_ONCE // 2 ** (rows.shape[1] - 1))
    starts = range(0, max(1, len(rows)), at_once)
    return np.concatenate([_of_all_flips(rows[i : i + at_once], least[i : i + at_once]) for i in starts])


def _of_all_flips(
    rows: Float[np.ndarray, "comparisons seeds"], least: Float[np.ndarray, " comparisons"]
) -> Float[np.ndarray, " comparisons"]:
    """The first sign is held: a flip and its mirror have the same |sum|."""
    sums = rows[:, :1]
    for seed in range(1, rows.shape[1]):
        column = rows[:, seed : seed + 1]
        sums = np.concatenate([sums + column, sums - column], axis=1)
    return (np.abs(sums) >= least[:, None]).mean(axis=1)


def _of_random_flips(
    rows: Float[np.ndarray, "comparisons seeds"],
    least: Float[np.ndarray, " comparisons"],
    generator: np.random.Generator,
) -> Float[np.ndarray, " comparisons"]:
    signs = generator.choice(np.array([-1.0, 1.0]), size=(RANDOM_FLIPS, rows.shape[1]))
    reached = [np.count_nonzero(np.abs(signs @ row) >= bound) for row, bound in zip(rows, least, strict=True)]
    return (1 + np.asarray(reached, dtype=np.float64)) / (1 + RANDOM_FLIPS)


def _rounding(rows: Float[np.ndarray, "comparisons seeds"]) -> Float[np.ndarray, " comparisons"]:
    """What two orders of the same sum may differ by."""
    return 2 * rows.shape[1] * np.finfo(np.float64).eps * np.abs(rows).sum(axis=1)


def _studentised(
    differences: Float[np.ndarray, "*families seeds"],
) -> tuple[Float[np.ndarray, "*families"], Float[np.ndarray, "*families"], Bool[np.ndarray, "*families"]]:
    """Mean, its standard error (1 where there is no spread), and whether all differences are equal."""
    equal = np.asarray(np.ptp(differences, axis=-1) == 0)
    standard_error = np.std(differences, axis=-1, ddof=1) / np.sqrt(differences.shape[-1])
    return np.asarray(np.mean(differences, axis=-1)), np.where(equal, 1.0, standard_error), equal


def _seeds(differences: Float[np.ndarray, "*families seeds"]) -> int:
    n = differences.shape[-1]
    if n < 2:
        raise ValueError(f"a t-test needs at least two paired seeds; there are {n}")
    return n
