"""Verdicts on paired scores: what each of the four words takes, and what a comparison says beside it."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from analysis.stats.comparisons import compare
from analysis.stats.multiplicity import holm
from analysis.stats.paired_scores import PairedScores
from analysis.stats.power import equivalence_power, minimum_detectable_difference, power

MARGIN = 0.01


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pairs(
    differences: list[float] | np.ndarray, *, margin: float = MARGIN, higher_is_better: bool = True
) -> PairedScores:
    """Scores around 0.8 whose differences are, to rounding, the given ones."""
    reference = 0.8 + 0.05 * np.sin(np.arange(len(differences)))
    return PairedScores("arm", reference + np.asarray(differences), reference, higher_is_better, margin)


def test_a_comparison_reports_the_direction_and_the_numbers_of_its_tests() -> None:
    differences = rng(2).normal(-0.03, 0.01, size=8)
    (lower,) = compare([pairs(differences, higher_is_better=False)])
    t = stats.ttest_1samp(-differences, 0)
    assert (lower.verdict, lower.n, lower.note) == ("better", 8, "")
    assert lower.advantage == pytest.approx(-differences.mean())
    assert lower.difference == pytest.approx(differences.mean())
    sd = differences.std(ddof=1)
    assert lower.sd == pytest.approx(sd)
    assert lower.interval == pytest.approx(tuple(t.confidence_interval(0.95)))
    assert lower.p == lower.p_holm == pytest.approx(t.pvalue)
    assert lower.p_sign_flip == 2 / 2**8
    assert lower.minimum_detectable_difference == pytest.approx(minimum_detectable_difference(sd, 8, alpha=0.05))
    assert lower.seeds_to_settle is None
    assert compare([pairs(differences)])[0].verdict == "worse"


def test_a_certain_difference_inside_the_margin_is_equivalent_and_the_note_gives_its_sign() -> None:
    (tiny,) = compare([pairs(rng().normal(-0.004, 0.001, size=8))])
    assert tiny.p_holm is not None
    assert tiny.p_holm < 0.05
    assert (tiny.verdict, tiny.note) == ("equivalent", "worse, by less than the margin")


def test_a_family_is_judged_by_holm_and_the_note_says_what_one_test_alone_would_have_said() -> None:
    certain, weak = rng(1).normal(0.1, 0.01, size=8), rng(1).normal(0.035, 0.04, size=8)
    noise = rng(5).normal(0, 0.2, size=(17, 8))
    alone = compare([pairs(weak)])[0]
    family = compare([pairs(differences) for differences in (certain, weak, *noise)])
    assert alone.verdict == "better"
    assert [each.verdict for each in family[:2]] == ["better", "undecided"]
    assert family[1].note == f"different when tested alone (p = {alone.p:.2g}), not in a family of 19"
    assert [each.p_holm for each in family] == pytest.approx(holm(np.array([each.p for each in family])))
    assert family[0].minimum_detectable_difference == pytest.approx(
        minimum_detectable_difference(family[0].sd or 0, 8, alpha=0.05 / 19)
    )


def test_seeds_to_settle_suffice_for_one_of_the_words_if_the_truth_is_what_was_observed() -> None:
    reached = {"detection": 0, "equivalence": 0}
    for seed in range(30):
        each = compare([pairs(rng(seed).normal(0.005, 0.02, size=7))] * 3)[0]
        if each.verdict != "undecided":
            continue
        assert each.seeds_to_settle is not None
        assert each.seeds_to_settle > each.n
        assert each.advantage is not None
        assert each.sd is not None
        settings_now = {
            n: (each.advantage, each.sd, n, 0.05 / 3) for n in (each.seeds_to_settle - 1, each.seeds_to_settle)
        }
        detection = [power(*setting) for setting in settings_now.values()]
        shown = [equivalence_power(MARGIN, sd, n, alpha, mean) for mean, sd, n, alpha in settings_now.values()]
        assert max(detection[0], shown[0]) < 0.8 <= max(detection[1], shown[1])
        reached["detection" if detection[1] >= 0.8 else "equivalence"] += 1
    assert min(reached.values()) > 0


def test_fewer_than_five_pairs_get_no_verdict_and_still_count_in_the_family() -> None:
    plenty = pairs(rng().normal(0.03, 0.01, size=6))
    for n in range(5):
        few, judged = compare([pairs([0.1, 0.11, 0.12, 0.13][:n]), plenty])
        assert (few.verdict, few.n, few.p, few.seeds_to_settle) == ("undecided", n, None, None)
        assert few.note == f"verdicts need 5 evaluation seeds, there are {n}"
        assert (few.interval is None) == (n < 2)
        assert judged.p is not None
        assert judged.p_holm == pytest.approx(2 * judged.p)
    assert compare([]) == []


def test_without_spread_the_exact_sign_flips_decide() -> None:
    (tie,) = compare([pairs(np.zeros(5))])
    assert (tie.verdict, tie.p, tie.p_equivalence, tie.sd) == ("equivalent", 1.0, 2**-5, 0.0)
    assert (tie.interval, tie.minimum_detectable_difference) == (None, None)
    assert tie.note.startswith("all 5 differences are 0: without spread t has no scale")
    (shift,) = compare([pairs(np.full(6, 0.02))])
    assert (shift.verdict, shift.p, shift.p_equivalence) == ("better", 2**-5, 1.0)
    assert compare([pairs(np.full(5, 0.02))])[0].verdict == "undecided"  # p = 1/16


@pytest.mark.parametrize("step", [0.0, 0.02, -0.004])
def test_without_spread_the_seeds_to_settle_are_exact(step: float) -> None:
    verdicts = {n: compare([pairs(np.full(n, step))] * 18)[0] for n in range(5, 12)}
    planned = {each.seeds_to_settle for each in verdicts.values() if each.verdict == "undecided"}
    assert planned == {min(n for n, each in verdicts.items() if each.verdict != "undecided")}


def test_differences_that_only_rounding_tells_apart_are_equal() -> None:
    reference = np.array([0.1, 0.3, 0.5, 0.6, 0.7, 0.9])
    scores = PairedScores("arm", reference + 0.02, reference, True, MARGIN)
    assert np.ptp(scores.arm - scores.reference) > 0
    assert compare([scores])[0].p == 2**-5


def test_a_verdict_that_sign_flips_do_not_confirm_says_so_and_stands() -> None:
    differences = [0.03, 0.03, 0.03, 0.03, 0.03, 0.03, 0.03, -0.015]
    (each,) = compare([pairs(differences)])
    assert each.p_sign_flip is not None
    assert each.p_sign_flip <= 0.05
    assert each.note == ""
    (each,) = compare([pairs([0.04, 0.05, 0.06, 0.05, 0.05, -0.0001])])
    assert (each.verdict, each.p_sign_flip) == ("better", 0.0625)
    assert each.note == "exact sign flips do not confirm it (p = 0.062)"
    (each,) = compare([pairs([0.04, 0.05, 0.06, 0.05, 0.05])])  # no flips of five seeds reach 0.05
    assert (each.verdict, each.p_sign_flip, each.note) == ("better", 0.0625, "")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-20, 20), min_size=5, max_size=9).map(lambda steps: np.array(steps) / 500),
    st.floats(0.01, 100),
)
def test_verdicts_know_neither_the_unit_nor_the_sign_nor_the_order_of_the_scores(
    differences: np.ndarray, unit: float
) -> None:
    scores = pairs(differences)
    (plain,) = compare([scores])
    turned = PairedScores(
        "arm", -unit * scores.arm[::-1], -unit * scores.reference[::-1], not scores.higher_is_better, unit * MARGIN
    )
    (other,) = compare([turned])
    assert other.verdict == plain.verdict
    assert other.seeds_to_settle == plain.seeds_to_settle
    assert other.p == pytest.approx(plain.p)
    assert other.advantage == pytest.approx(unit * (plain.advantage or 0))
    for value in dataclasses.astuple(plain):
        assert not (isinstance(value, float) and math.isnan(value))


def test_above_twenty_seeds_the_flips_are_drawn_and_the_same_scores_give_the_same_p() -> None:
    scores = pairs(rng().normal(0.001, 0.02, size=24))
    first, again = compare([scores])[0], compare([scores, scores])[1]
    other = compare([scores], generator=rng(7))[0]
    assert first.p_sign_flip == again.p_sign_flip != other.p_sign_flip
    assert first.p_sign_flip == pytest.approx(other.p_sign_flip, abs=0.02)


@pytest.mark.parametrize(
    ("arm", "reference", "margin", "message"),
    [
        ([0.1, 0.2], [0.1], 0.1, "lora: scores are paired by seed; the arm has 2 and the reference 1"),
        ([0.1, np.nan], [0.1, 0.2], 0.1, "lora: score 1 of the arm is nan; a failed run is never a score"),
        ([0.1, 0.2], [np.inf, 0.2], 0.1, "lora: score 0 of the reference is inf"),
        ([0.1, 0.2], [0.1, 0.2], 0.0, "lora: the margin of equivalence is a positive number"),
        ([0.1, 0.2], [0.1, 0.2], np.nan, "the margin of equivalence is a positive number"),
    ],
)
def test_scores_that_cannot_be_compared_are_refused(
    arm: list[float], reference: list[float], margin: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        PairedScores("lora", np.array(arm), np.array(reference), True, margin)


def test_an_alpha_that_is_no_level_is_refused() -> None:
    with pytest.raises(ValueError, match="alpha lies between 0 and 1"):
        compare([], alpha=5.0)
