"""Directions that recur across seeds: against brute force, planted ranks and what must not change them."""

from itertools import combinations, product

import numpy as np
import pytest
from scipy import stats

from analysis.stats.reproducible_rank import SPLITS, contrast_test, sign_flip_test, split_seed_rank

ALPHA = 0.05


def orthonormal(rng: np.random.Generator, rows: int, columns: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0]


def planted(rng: np.random.Generator, rank: int, *, seeds: int = 8, shape: tuple[int, int] = (32, 24)) -> np.ndarray:
    """Unit noise by seed and, in all seeds, `rank` directions at three times the edge of the mean of half of them."""
    edge = (shape[0] * shape[1]) ** 0.25 / np.sqrt(seeds // 2)
    signal = 3 * edge * orthonormal(rng, shape[0], rank) @ orthonormal(rng, shape[1], rank).T
    return rng.standard_normal((seeds, *shape)) + signal


def largest(matrices: np.ndarray) -> np.ndarray:
    return np.linalg.svd(matrices, compute_uv=False)[..., 0]


def share_that_reaches(stack: np.ndarray, weights: np.ndarray, observed: np.ndarray) -> float:
    reached = largest(np.tensordot(weights, stack, axes=1)) >= largest(np.tensordot(observed, stack, axes=1)) - 1e-9
    return float(reached.mean())


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (6, 1)])
@pytest.mark.parametrize("drift", [0.0, 0.7])
def test_the_sign_flip_p_is_that_of_all_flips_by_brute_force(shape: tuple[int, int], drift: float) -> None:
    stack = np.random.default_rng(0).standard_normal((7, *shape)) + drift
    every = np.array(list(product((1.0, -1.0), repeat=7)))
    assert sign_flip_test(stack).p == share_that_reaches(stack, every, np.ones(7))
    assert sign_flip_test(stack).relabellings == 64


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e6])
def test_a_flip_that_changes_nothing_is_a_tie_at_any_scale(scale: float) -> None:
    for seed in range(5):
        stack = np.random.default_rng(seed).standard_normal((7, 4, 3))
        stack[[2, 4]] = 0
        every = np.array(list(product((1.0, -1.0), repeat=7)))
        assert sign_flip_test(scale * stack).p == share_that_reaches(stack, every, np.ones(7))


@pytest.mark.parametrize(("ours", "theirs"), [(4, 4), (3, 5), (5, 4)])
def test_the_contrast_p_of_other_seeds_is_that_of_all_relabellings_by_brute_force(ours: int, theirs: int) -> None:
    stack = np.random.default_rng(1).standard_normal((ours + theirs, 4, 3))
    stack[:ours] += 0.5

    def weights(group: tuple[int, ...]) -> np.ndarray:
        return np.where(np.isin(np.arange(ours + theirs), group), 1 / ours, -1 / theirs)

    every = np.array([weights(group) for group in combinations(range(ours + theirs), ours)])
    found = contrast_test(
        stack[:ours], stack[ours:], true_seeds=list(range(ours)), false_seeds=list(range(10, 10 + theirs))
    )
    assert found.p == pytest.approx(share_that_reaches(stack, every, weights(tuple(range(ours)))))


def test_a_contrast_of_the_same_seeds_pairs_them_whatever_their_order() -> None:
    rng = np.random.default_rng(2)
    shared = 5 * rng.standard_normal((6, 4, 3))
    true, false = shared + 0.1 * rng.standard_normal((6, 4, 3)) + 0.2, shared + 0.1 * rng.standard_normal((6, 4, 3))
    order = [3, 1, 5, 0, 2, 4]
    paired = contrast_test(true, false[order], true_seeds=list(range(6)), false_seeds=order)
    assert paired == sign_flip_test(true - false)
    assert paired.p == 1 / 32
    more = np.concatenate([rng.standard_normal((2, 4, 3)), true])
    assert contrast_test(more, false[order], true_seeds=[8, 7, *range(6)], false_seeds=order) == paired
    unpaired = contrast_test(true, false, true_seeds=list(range(6)), false_seeds=list(range(6, 12)))
    assert unpaired.p is not None
    assert unpaired.p > 0.5


def test_with_many_seeds_random_flips_stand_in_for_all() -> None:
    stack = np.random.default_rng(3).standard_normal((14, 4, 3)) + 0.15
    every = np.array([(1.0, *rest) for rest in product((1.0, -1.0), repeat=13)])
    exact = share_that_reaches(stack, every, np.ones(14))
    assert 0.05 < exact < 0.95
    found = sign_flip_test(stack)
    assert found.relabellings == 2048
    assert found.p == pytest.approx(exact, abs=3 * np.sqrt(exact * (1 - exact) / 2048))
    assert found == sign_flip_test(stack)
    assert sign_flip_test(stack + 10).p == pytest.approx(1 / 2048, abs=1e-3)


def test_with_many_runs_random_relabellings_stand_in_for_all() -> None:
    rng = np.random.default_rng(6)
    true, false = rng.standard_normal((2, 8, 4, 3))
    seeds = {"true_seeds": list(range(8)), "false_seeds": list(range(8, 16))}
    groups = np.array([(0, *rest) for rest in combinations(range(1, 16), 7)])
    weights = np.where((groups[:, :, None] == np.arange(16)).any(axis=1), 1.0, -1.0)
    exact = share_that_reaches(np.concatenate([true, false]), weights, weights[0])
    assert 0.05 < exact < 0.95
    found = contrast_test(true, false, **seeds)
    assert found.relabellings == 2048
    assert found.p == pytest.approx(exact, abs=3 * np.sqrt(exact * (1 - exact) / 2048))
    assert contrast_test(true + 10, false, **seeds).p == pytest.approx(1 / 2048, abs=1e-3)


def test_the_sign_flip_p_is_uniform_where_signs_are_exchangeable() -> None:
    """Heavy tails, and rows that move together: nothing is asked of what is inside a matrix."""
    rng = np.random.default_rng(5)
    stacks = rng.standard_t(2, size=(2000, 6, 5, 1)) * rng.standard_normal((2000, 6, 5, 4)).cumsum(axis=-1)
    p = np.array([sign_flip_test(stack).p for stack in stacks])
    for count in (1, 2, 8, 16, 24):
        level = count / 32
        assert (p <= level).mean() == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / 2000))


@pytest.mark.parametrize("shape", [(10, 6), (6, 10)])
def test_one_split_counts_the_t_tests_before_the_first_that_is_not_rejected(shape: tuple[int, int]) -> None:
    seen = set()
    for seed in range(12):
        stack = planted(np.random.default_rng(seed), 2, seeds=7, shape=shape)
        order = np.random.default_rng(0).permutation(7)
        first, second = stack[order[:3]].mean(axis=0), stack[order[3:]]
        u, s, vt = np.linalg.svd(first, full_matrices=False)
        x = np.array([[u[:, k] @ delta @ vt[k] for k in range(len(s))] for delta in second])
        p = [stats.ttest_1samp(column, 0, alternative="greater").pvalue for column in x.T]
        expected = next((k for k, each in enumerate(p) if each > ALPHA), len(p))
        found = split_seed_rank(stack, alpha=ALPHA, splits=1)
        assert found.k_rep == expected
        assert found.energies == pytest.approx(s * x.mean(axis=0))
        assert found.cosine == pytest.approx(
            np.sum(first * second.mean(axis=0)) / np.linalg.norm(first) / np.linalg.norm(second.mean(axis=0))
        )
        seen.add(expected)
    assert len(seen) > 1


@pytest.mark.parametrize("rank", [1, 2, 4, 8])
def test_a_planted_rank_is_found_where_the_spectrum_of_a_run_hides_it(rank: int) -> None:
    stack = planted(np.random.default_rng(10 + rank), rank, seeds=10)
    found = split_seed_rank(stack, alpha=ALPHA)
    assert found.k_rep == rank
    assert found.r90 in (rank, max(1, rank - 1))
    energy = np.linalg.svd(stack[0], compute_uv=False) ** 2
    assert np.argmax(np.cumsum(energy) >= 0.9 * energy.sum()) + 1 > 12


def test_splits_are_odd_in_number_so_that_the_median_rank_is_that_of_one_of_them() -> None:
    assert SPLITS % 2 == 1


def test_in_noise_no_direction_recurs() -> None:
    found = split_seed_rank(np.random.default_rng(20).standard_normal((8, 32, 24)), alpha=ALPHA)
    assert found.k_rep == 0
    assert found.cosine == pytest.approx(0, abs=0.1)


def test_energies_across_halves_sum_to_the_energy_of_what_recurs() -> None:
    stack = planted(np.random.default_rng(21), 4, seeds=10)
    truth = 4 * 9 * np.sqrt(32 * 24) / 5
    found = split_seed_rank(stack, alpha=ALPHA)
    assert found.energies is not None
    assert found.energies.sum() == pytest.approx(truth, rel=0.2)
    assert np.linalg.norm(stack.mean(axis=0)) ** 2 > 1.2 * truth


@pytest.mark.parametrize("scale", [1.0, 1e-9, 1e6])
def test_rotations_on_either_side_and_the_scale_change_nothing(scale: float) -> None:
    rng = np.random.default_rng(22)
    stack = planted(rng, 3)
    left, right = orthonormal(rng, 32, 32), orthonormal(rng, 24, 24)
    for moved in (scale * left @ stack @ right, scale * stack.transpose(0, 2, 1)):
        before, after = split_seed_rank(stack, alpha=ALPHA), split_seed_rank(moved, alpha=ALPHA)
        assert (after.k_rep, after.r90) == (before.k_rep, before.r90)
        assert after.cosine == pytest.approx(before.cosine)
        assert before.energies is not None
        assert after.energies == pytest.approx(scale**2 * before.energies)
        noise, moved_noise = stack - stack.mean(axis=0) * 0.9, moved - moved.mean(axis=0) * 0.9
        assert sign_flip_test(moved_noise) == sign_flip_test(noise)


def test_updates_without_noise_have_the_rank_of_their_arithmetic() -> None:
    """Powers of two, so that what rounding left beyond the three directions recurs to the last bit."""
    rng = np.random.default_rng(23)
    signal = orthonormal(rng, 32, 3) @ orthonormal(rng, 24, 3).T
    assert split_seed_rank(signal * 2.0 ** (np.arange(8) % 2)[:, None, None], alpha=ALPHA).k_rep == 3


@pytest.mark.parametrize(("seeds", "k_rep"), [(8, 0), (10, 2)])
def test_equal_updates_are_as_sure_as_the_flips_of_their_signs(seeds: int, k_rep: int) -> None:
    """2^-4 is above .05 and 2^-5 below: t would have no scale."""
    same = np.tile(np.diag([2.0, 1.0, 0.0]), (seeds, 1, 1))
    assert split_seed_rank(same, alpha=ALPHA).k_rep == k_rep
    halves = same.copy()
    halves[np.random.default_rng(0).permutation(seeds)[seeds // 2 :]] = 0
    assert split_seed_rank(halves, alpha=ALPHA, splits=1).k_rep == 0


def test_updates_of_zero_recur_in_nothing_and_reject_nothing() -> None:
    nothing = np.zeros((6, 4, 3))
    found = split_seed_rank(nothing, alpha=ALPHA)
    assert (found.k_rep, found.r90, found.cosine) == (0, None, 0.0)
    assert "no energy" in found.reason
    assert sign_flip_test(nothing).p == 1
    assert contrast_test(nothing, nothing, true_seeds=[*range(6)], false_seeds=[*range(6)]).p == 1


def test_too_few_seeds_give_no_figure_and_the_reason() -> None:
    stack = np.random.default_rng(24).standard_normal((6, 4, 3))
    assert sign_flip_test(stack).p is not None
    five = sign_flip_test(stack[:5])
    assert five.p is None
    assert "no p is below 1/16" in five.reason
    assert "train at least 6" in five.reason
    unpaired = contrast_test(stack[:3], stack[3:], true_seeds=[0, 1, 2], false_seeds=[3, 4, 5])
    assert unpaired.p is None
    assert "no p is below 1/10" in unpaired.reason
    assert split_seed_rank(stack[:4], alpha=ALPHA).k_rep is not None
    three = split_seed_rank(stack[:3], alpha=ALPHA)
    assert (three.k_rep, three.r90, three.cosine, three.energies) == (None, None, None, None)
    assert "a half needs two of 3 seeds" in three.reason


def test_what_is_no_stack_of_finite_matrices_is_refused() -> None:
    stack = np.random.default_rng(25).standard_normal((6, 4, 3))
    broken = stack.copy()
    broken[2, 1, 0] = np.nan
    for test in (sign_flip_test, lambda deltas: split_seed_rank(deltas, alpha=ALPHA)):
        with pytest.raises(ValueError, match=r"entry \(1, 0\) of update number 2 is nan, one of 1: leave that run out"):
            test(broken)
        with pytest.raises(ValueError, match=r"at least two seeds.*\(1, 4, 3\)"):
            test(stack[:1])
    seeds = [*range(6)]
    with pytest.raises(ValueError, match=r"one shape; they are \(4, 3\) and \(4, 2\)"):
        contrast_test(stack, stack[:, :, :2], true_seeds=seeds, false_seeds=seeds)
    with pytest.raises(ValueError, match="6 updates and seeds"):
        contrast_test(stack, stack, true_seeds=seeds, false_seeds=seeds[:5])
    with pytest.raises(ValueError, match="a seed of its own"):
        contrast_test(stack, stack, true_seeds=[0, 0, 1, 2, 3, 4], false_seeds=seeds)
