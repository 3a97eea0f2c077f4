"""Directions of ΔW that recur across seeds, tested with the run as the unit.

Nothing is assumed of how the entries of a matrix depend on each other, only that the runs of different seeds are
independent. Tests with the entry as the unit (Tracy-Widom, Marchenko-Pastur, parallel analysis, entrywise sign flips)
find "signal" in pure noise: docs/low_rank_calibration.md. What recurs need not come from the task: runs on false labels
agree with each other too, and only `contrast_test` sets the two against each other.
"""

from dataclasses import dataclass
from itertools import combinations, product
from math import comb

import numpy as np
import scipy
from jaxtyping import Float
from scipy import stats

from analysis.stats.singular_values import hard_rank, singular_vectors

SPLITS = 25  # odd: the median of the ranks is one of them
RELABELLINGS = 2048  # all 2^11 flips of 12 seeds; where there are more, as many random ones
FEWEST_RELABELLINGS = 20  # below, no p reaches .05
AT_ONCE = 2**22  # float64: 32 MiB
ROUNDING = 1e-12  # of the sum of all norms: what two orders of the same sum may differ by, so that a tie is reached
FIXED_SEED = 0  # of all random draws: the same updates give the same figures


@dataclass(frozen=True)
class ReproducibleRank:
    """How many directions recur, `k_rep`, with the evidence; `reason` says why a figure is None."""

    k_rep: int | None
    r90: int | None
    cosine: float | None
    energies: Float[np.ndarray, " p"] | None
    reason: str = ""


@dataclass(frozen=True)
class WholeSeedTest:
    """p of a test that relabels whole seeds, and how many relabellings it rests on (the observed one is of them)."""

    p: float | None
    relabellings: int
    reason: str = ""


def split_seed_rank(
    deltas: Float[np.ndarray, "seeds d_out d_in"], *, alpha: float, splits: int = SPLITS
) -> ReproducibleRank:
    """The rank of what half of the seeds predict of the other half, p = min(d_out, d_in).

    A split takes the singular directions (u_k, v_k), k = 1, ..., p, of the mean M_A of S // 2 seeds, and
    x_s = u_kᵀ ΔW_s v_k of each other seed s. A one-sided t-test asks whether E x_s > 0 at level `alpha`, in the order
    of k, and stops at the first k that is not rejected: k_rep counts those before it. Given M_A the directions are
    constants, so the t-test has its level whatever the dependence within a matrix, and the fixed sequence keeps it for
    all k together (Maurer, Hothorn & Lehmacher 1995). Where all x_s are equal, p is that of the sign flips.
    k_rep is the median over random splits; their p values are not pooled. In strongly correlated noise it may exceed
    the rank of E ΔW by one or two: directions of M_A that noise has bent still point towards what recurs.
    `energies` are c_k = s_k · u_kᵀ M_B v_k, s_k the singular values of M_A and M_B the mean of the other half, in the
    mean over the splits. Σ c_k = ⟨M_A, M_B⟩ estimates ‖E ΔW‖² without the noise that Σ s_k² adds, and r90 is the
    least k with Σ_{i<=k} c_i >= .9 Σ c. `cosine` is the mean of ⟨M_A, M_B⟩ / (‖M_A‖ ‖M_B‖).
    Under four seeds no half has a t-test: all is None. Raises ValueError for one seed or entries that are not finite.
    """
    stack, seeds = _checked(deltas), len(deltas)
    if seeds < 4:
        return ReproducibleRank(
            None, None, None, None, f"a half needs two of {seeds} seeds: train at least 4, better 8"
        )
    draw = np.random.default_rng(FIXED_SEED).permutation
    parts = (_one_split(stack[draw(seeds)], alpha) for _ in range(splits))
    ranks, all_energies, cosines = zip(*parts, strict=True)
    k_rep, energies, cosine = int(np.median(ranks)), np.mean(all_energies, axis=0), float(np.mean(cosines))
    if energies.sum() <= 0:
        return ReproducibleRank(k_rep, None, cosine, energies, "the halves of the seeds share no energy: no r90")
    r90 = int(np.argmax(np.cumsum(energies) >= 0.9 * energies.sum())) + 1
    return ReproducibleRank(k_rep, r90, cosine, energies)


def sign_flip_test(deltas: Float[np.ndarray, "seeds d_out d_in"]) -> WholeSeedTest:
    """p of E ΔW = 0 by flipping the signs of whole seeds; the statistic is sigma_1 of the mean ΔW.

    Exact where ΔW_s and -ΔW_s are equally likely, whatever the dependence within a matrix. A flip and its mirror have
    the same sigma_1, so S seeds have 2^(S-1) flips: all are taken up to 12 seeds, 2,047 random ones and the observed
    above (Phipson & Smyth, Stat. Appl. Genet. Mol. Biol. 2010). Under six seeds no p reaches .05: p is None.
    Raises ValueError as `split_seed_rank` does.
    """
    stack, seeds = _checked(deltas), len(deltas)
    if 2 ** (seeds - 1) <= RELABELLINGS:
        signs = np.array([(1.0, *rest) for rest in product((1.0, -1.0), repeat=seeds - 1)])
    else:
        drawn = np.random.default_rng(FIXED_SEED).choice([1.0, -1.0], size=(RELABELLINGS - 1, seeds))
        signs = np.concatenate([np.ones((1, seeds)), drawn])
    return _tested(stack, signs, "train at least 6 seeds")


def contrast_test(
    true: Float[np.ndarray, "seeds d_out d_in"],
    false: Float[np.ndarray, "false_seeds d_out d_in"],
    *,
    true_seeds: list[int],
    false_seeds: list[int],
) -> WholeSeedTest:
    """p of "labels do not matter to ΔW": the statistic is sigma_1 of mean ΔW(true labels) - mean ΔW(false labels).

    Seeds that both have are paired, and the others left out: labels are swapped within seeds, which are the sign flips
    of the differences (no symmetry is needed: the two runs of a seed are exchangeable). Where they share no two seeds,
    runs are relabelled, all C(S + S', S) ways or, above 2,048, 2,047 random ones and the observed. A drift that all
    runs share cancels. A small p says that runs on true and on false labels differ, not by how many directions.
    Raises ValueError as `sign_flip_test` does, and for different shapes or a list of seeds that does not fit.
    """
    ours, theirs = _checked(true), _checked(false)
    if ours.shape[1:] != theirs.shape[1:]:
        raise ValueError(f"a contrast needs updates of one shape; they are {ours.shape[1:]} and {theirs.shape[1:]}")
    for stack, seeds in ((ours, true_seeds), (theirs, false_seeds)):
        if len(stack) != len(seeds) or len(set(seeds)) != len(seeds):
            raise ValueError(f"each update needs a seed of its own; there are {len(stack)} updates and seeds {seeds}")
    shared = [seed for seed in true_seeds if seed in false_seeds]
    if len(shared) > 1:
        return sign_flip_test(ours[[*map(true_seeds.index, shared)]] - theirs[[*map(false_seeds.index, shared)]])
    runs, weights = np.concatenate([ours, theirs]), _group_relabellings(len(ours), len(theirs))
    return _tested(runs, weights, "train at least 4 runs of each, or the same seeds")


def _one_split(stack: Float[np.ndarray, "seeds m n"], alpha: float) -> tuple[int, Float[np.ndarray, " p"], float]:
    """k_rep, the energies and the cosine, with the directions from the first half of the seeds."""
    first, second = stack[: len(stack) // 2].mean(axis=0), stack[len(stack) // 2 :]
    u, s, vt = singular_vectors(first)
    x = np.stack([np.einsum("ik,ik->k", u, delta @ vt.T) for delta in second])  # (seeds, p)
    rejected = _one_sided_p(x) <= alpha
    k_rep = min(int(np.argmin([*rejected, False])), hard_rank(s, first.shape))  # beyond it x is rounding
    energies = s * x.mean(axis=0)
    norms = np.linalg.norm(first) * np.linalg.norm(second.mean(axis=0))
    return k_rep, energies, float(energies.sum() / norms) if norms else 0.0


def _one_sided_p(x: Float[np.ndarray, "seeds p"]) -> Float[np.ndarray, " p"]:
    equal = np.ptp(x, axis=0) == 0
    error = np.where(equal, 1.0, stats.sem(x, axis=0))
    when_equal = np.where(x[0] > 0, 2.0 ** -len(x), 1.0)
    return np.where(equal, when_equal, stats.t.sf(x.mean(axis=0) / error, len(x) - 1))


def _group_relabellings(ours: int, theirs: int) -> Float[np.ndarray, "ways runs"]:
    """Weights of each run in the difference of the two means, the observed first; a mirror image is left out."""
    runs, halved = ours + theirs, ours == theirs  # a group and its complement have the same sigma_1
    if comb(runs, ours) // (2 if halved else 1) <= RELABELLINGS:
        groups = np.array([group for group in combinations(range(runs), ours) if not halved or group[0] == 0])
    else:
        drawn = np.random.default_rng(FIXED_SEED).permuted(np.tile(np.arange(runs), (RELABELLINGS - 1, 1)), axis=1)
        groups = np.concatenate([np.arange(ours)[None], drawn[:, :ours]])
    weights = np.full((len(groups), runs), -1 / theirs)
    np.put_along_axis(weights, groups, 1 / ours, axis=1)
    return weights


def _tested(
    stack: Float[np.ndarray, "runs m n"], weights: Float[np.ndarray, "ways runs"], remedy: str
) -> WholeSeedTest:
    ways = len(weights)
    if ways < FEWEST_RELABELLINGS:
        reason = f"seeds can be relabelled in {ways} ways, so that no p is below 1/{ways}, which is above .05: {remedy}"
        return WholeSeedTest(None, ways, reason)
    return WholeSeedTest(_share_reaching_the_first(stack, weights), ways)


def _share_reaching_the_first(stack: Float[np.ndarray, "runs m n"], weights: Float[np.ndarray, "ways runs"]) -> float:
    """The share of the rows c of `weights` whose sigma_1(Σ c_s M_s) is at least that of row 0.

    sigma_1² is the largest eigenvalue of Σ c_s c_t M_sᵀ M_t, so the products M_sᵀ M_t are formed once. Whether it
    exceeds λ is whether λI less that sum has no Cholesky factor, a tenth of the cost of the eigenvalue.
    """
    scale = np.linalg.norm(stack, axis=(1, 2)).sum()
    if scale == 0:
        return 1.0
    wide = (stack if stack.shape[1] >= stack.shape[2] else stack.transpose(0, 2, 1)) / scale
    ones, others = np.triu_indices(len(wide))
    products = np.stack([wide[s].T @ wide[t] / (1 + (s == t)) for s, t in zip(ones, others, strict=True)])
    products += products.transpose(0, 2, 1).copy()
    size, unit = wide.shape[2], weights / np.abs(weights).max()
    coefficients = unit[:, ones] * unit[:, others]
    bound = np.linalg.eigvalsh(np.tensordot(coefficients[0], products, axes=1))[-1] - ROUNDING
    reached = 1  # the observed one
    rows = max(1, AT_ONCE // size**2)
    for start in range(1, len(coefficients), rows):
        for gram in np.tensordot(coefficients[start : start + rows], products, axes=1):
            reached += scipy.linalg.lapack.dpotrf(bound * np.eye(size) - gram)[1] > 0
    return reached / len(weights)


def _checked(deltas: Float[np.ndarray, "seeds d_out d_in"]) -> Float[np.ndarray, "seeds d_out d_in"]:
    wide = np.asarray(deltas, dtype=np.float64)
    if wide.ndim != 3 or len(wide) < 2:
        raise ValueError(f"what recurs needs the updates of at least two seeds, one matrix each; got {wide.shape}")
    broken = np.argwhere(~np.isfinite(wide))
    if len(broken):
        seed, row, column = (int(index) for index in broken[0])
        what = f"entry ({row}, {column}) of update number {seed} is {wide[seed, row, column]}, one of {len(broken)}"
        raise ValueError(f"what recurs needs finite entries; {what}: leave that run out")
    return wide
