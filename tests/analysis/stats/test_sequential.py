"""Verdicts at several looks: false words stay rare, true ones come early, and intervals cover what they say."""

from functools import cache

import numpy as np
import pytest
from scipy import stats

from analysis.stats.comparisons import compare
from analysis.stats.expected_seeds import Settled, expected_seeds, settle_families
from analysis.stats.multiplicity import holm
from analysis.stats.paired_scores import PairedScores
from analysis.stats.paired_tests import equivalence, paired_t
from analysis.stats.sequential import Looks, weights

LOOKS, MARGIN, FAMILIES = (5, 8, 12, 20), 0.01, 4000
RANKS = {  # bits per byte of lora, rslora and adalora at ranks 1 to 32, and of full, that a real study came to
    "lora": [2.826, 2.779, 2.731, 2.675, 2.633, 2.606],
    "rslora": [2.824, 2.777, 2.729, 2.672, 2.633, 2.604],
    "adalora": [2.818, 2.786, 2.750, 2.716, 2.681, 2.660],
}
FULL = 2.601


def of_ranks() -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Means of 19 arms, and 17 comparisons: rslora r=16 is lora r=16."""
    means = np.array([*RANKS["lora"], *RANKS["rslora"], *RANKS["adalora"], FULL])
    pairs = [(6 + i, i) for i in range(6) if i != 4] + [(12 + i, i) for i in range(6)] + [(18, i) for i in range(6)]
    return means, pairs


def many_arms() -> tuple[np.ndarray, list[tuple[int, int]]]:
    """One reference, and 18 arms at 0, 2 and 4 margins from it."""
    return MARGIN * np.array([0.0, *([0.0, 2.0, 4.0] * 6)]), [(arm, 0) for arm in range(1, 19)]


@cache
def null(tests: int, gap: float) -> tuple[np.ndarray, Settled]:
    """Advantages of arms that share a reference, all at `gap` from it, by families; and their words."""
    generator = np.random.default_rng([tests, round(1000 * gap)])
    scores = generator.standard_normal((FAMILIES, tests + 1, LOOKS[-1])) * 0.006 / 2**0.5
    advantages = scores[:, 1:] - scores[:, :1] + gap
    return advantages, settle_families(advantages, MARGIN, looks=LOOKS)


def limit(level: float) -> float:
    return level + 3 * (level * (1 - level) / FAMILIES) ** 0.5


@pytest.mark.parametrize("tests", [1, 6, 18])
def test_arms_that_are_alike_rarely_come_out_better_or_worse_at_any_look(tests: int) -> None:
    words = null(tests, 0.0)[1].words
    assert np.isin(words, ["better", "worse"]).any(axis=1).mean() <= limit(0.05)


@pytest.mark.parametrize("tests", [1, 6, 18])
def test_arms_at_the_margin_rarely_come_out_equivalent_at_any_look(tests: int) -> None:
    assert (null(tests, MARGIN)[1].words == "equivalent").any(axis=1).mean() <= limit(0.05)


def settled_of(study: tuple[np.ndarray, list[tuple[int, int]]], looks: tuple[int, ...]) -> tuple[float, float]:
    """(comparisons that get a word, seeds an arm), on average."""
    means, pairs = study
    seeds, found = expected_seeds(pairs, means, sd=0.006, margin=MARGIN, alpha=0.05, looks=looks)
    return float((found.words != "undecided").sum(axis=1).mean()), float(seeds.mean())


def share_of_fixed(study: tuple[np.ndarray, list[tuple[int, int]]]) -> float:
    """Seeds of the looks over those of one look that settles as many."""
    settled, seeds = settled_of(study, LOOKS)
    fixed = range(5, 26)
    reached = [settled_of(study, (n,))[0] for n in fixed]
    return seeds / float(np.interp(settled, reached, list(fixed)))


def test_a_study_of_ranks_settles_nearly_all_with_a_third_of_the_seeds_saved() -> None:
    settled, seeds = settled_of(of_ranks(), LOOKS)
    assert settled >= 16.5
    assert seeds <= 12.5
    assert settled_of(of_ranks(), (8,))[0] < 14
    assert share_of_fixed(of_ranks()) <= 0.75


def test_one_reference_with_arms_that_are_equal_or_clearly_apart_takes_two_thirds() -> None:
    assert share_of_fixed(many_arms()) <= 0.65


@pytest.mark.parametrize("gap", [0.0, 0.005, 0.01, 0.02])
def test_where_a_comparison_stops_the_repeated_interval_covers_and_the_ordinary_one_nearly_does(gap: float) -> None:
    advantages, settled = null(6, gap)
    seeds = settled.seeds
    counts = np.arange(advantages.shape[-1])[None, None] < seeds[..., None]
    n = seeds.astype(float)
    mean = np.where(counts, advantages, 0.0).sum(axis=-1) / n
    sd = np.sqrt((np.where(counts, advantages - mean[..., None], 0.0) ** 2).sum(axis=-1) / (n - 1))
    weight = np.select([seeds == look for look in LOOKS], weights(LOOKS))
    error = np.abs(mean - gap) / (sd / np.sqrt(n))
    ordinary = (error <= stats.t.isf(0.025, n - 1)).mean()
    repeated = (error <= stats.t.isf(0.025 * weight, n - 1)).mean()
    print(f"gap {gap:g}: ordinary {ordinary:.3f}, repeated {repeated:.3f}")
    assert ordinary >= 0.90
    assert repeated >= 0.97


def test_one_look_is_holm_on_plain_p_values() -> None:
    advantages = np.random.default_rng(0).normal(0.004, 0.006, (50, 7, 8))
    p, p_equivalence = paired_t(advantages), equivalence(advantages, MARGIN)
    looks = Looks((50, 7), alpha=0.05)
    looks.look(advantages.mean(axis=-1), p, p_equivalence, ready=np.ones((50, 7), dtype=bool), weight=1.0)
    equivalent, differs = holm(p_equivalence) <= 0.05, holm(p) <= 0.05
    sides = np.where(advantages.mean(axis=-1) > 0, "better", "worse")
    expected = np.where(equivalent, "equivalent", np.where(differs, sides, "undecided"))
    assert (looks.words == expected).all()


def test_compare_gives_each_family_the_words_of_the_looks_at_many() -> None:
    advantages, settled = null(6, 0.005)
    for family, words, seeds in zip(advantages[:40], settled.words, settled.seeds, strict=False):
        pairs = [PairedScores(str(i), each, np.zeros_like(each), True, MARGIN) for i, each in enumerate(family)]
        found = compare(pairs, looks=LOOKS)
        assert [each.verdict for each in found] == words.tolist()
        assert [each.n for each in found] == seeds.tolist()


def test_a_word_is_final_and_rests_on_the_seeds_of_its_look() -> None:
    far = np.r_[np.full(5, 0.1) + np.linspace(0, 0.001, 5), np.full(15, -5.0)]
    open_still = np.random.default_rng(0).normal(0.005, 0.02, 20)
    pairs = [PairedScores(name, each, np.zeros(20), True, MARGIN) for name, each in (("a", far), ("b", open_still))]
    first, second = compare(pairs, looks=LOOKS)
    assert (first.verdict, first.n, second.n) == ("better", 5, 20)
    assert first.difference == pytest.approx(far[:5].mean())
    assert first.interval is not None
    assert first.ordinary_interval is not None
    assert first.interval[0] < first.ordinary_interval[0]
    assert second.p == pytest.approx(float(stats.ttest_1samp(open_still, 0).pvalue))


def test_a_comparison_without_scores_for_a_look_stays_where_it_was() -> None:
    scores = np.random.default_rng(1).normal(0.004, 0.006, 8)
    pair, late = (PairedScores("a", scores[:n], np.zeros(n), True, MARGIN) for n in (8, 7))
    assert [each.n for each in compare([pair, late], looks=(5, 8))] == [8, 5]


def test_weights_are_in_proportion_to_seeds_and_spend_the_level() -> None:
    assert weights(LOOKS) == [5 / 45, 8 / 45, 12 / 45, 20 / 45]
    assert sum(weights((5, 8, 12))) == pytest.approx(1)
