"""The decision table of the low-rank hypothesis, enumerated."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.stats.multiplicity import holm
from analysis.stats.rank_hypothesis import Hypothesis, Task, Verdict, capacity_ranks, family_verdict, judge, k0_of
from analysis.stats.retention import Retention


def one_run(p_holds: float, p_fails: float, n: int) -> Retention:
    return Retention(0.9, 0.8, 1.0, p_holds, p_fails, p_holds, p_fails, n)


def both(p_holds: float, p_fails: float, n: int = 8) -> Hypothesis:
    return Hypothesis(one_run(p_holds, p_fails, n), one_run(p_holds, p_fails, n))


HOLDS, FAILS, UNDECIDED = both(1e-6, 1.0), both(1.0, 1e-6), both(0.5, 0.5)
NAMES = {id(HOLDS): "holds", id(FAILS): "fails", id(UNDECIDED): "undecided"}
TABLE = {
    ("holds", "holds"): "SUPPORTED",
    ("fails", "fails"): "CONTRADICTED",
    ("holds", "fails"): "PARTIAL",
    ("fails", "holds"): "PARTIAL",
    ("holds", "undecided"): "INCONCLUSIVE",
    ("undecided", "holds"): "INCONCLUSIVE",
    ("fails", "undecided"): "INCONCLUSIVE",
    ("undecided", "fails"): "INCONCLUSIVE",
    ("undecided", "undecided"): "INCONCLUSIVE",
}


@pytest.mark.parametrize("testable", [True, False])
@pytest.mark.parametrize(("truncation", "capacity"), [*itertools.product([HOLDS, FAILS, UNDECIDED], repeat=2)])
def test_the_verdict_of_a_task_is_the_tables(truncation: Hypothesis, capacity: Hypothesis, testable: bool) -> None:
    (found,) = judge([Task(testable, truncation, capacity)])
    words = NAMES[id(truncation)], NAMES[id(capacity)]
    assert (found.truncation.word, found.capacity.word) == (words if testable else ("undecided", "undecided"))
    assert found.verdict == (TABLE[words] if testable else "NOT TESTABLE")
    assert str(found.verdict) == found.verdict.value


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_verdict_of_a_family_is_the_tables(size: int) -> None:
    for verdicts in itertools.product(Verdict, repeat=size):
        testable = [each for each in verdicts if each is not Verdict.NOT_TESTABLE]
        if not testable:
            expected = "NOT TESTABLE"
        elif all(each == "SUPPORTED" for each in testable):
            expected = "SUPPORTED"
        elif all(each == "CONTRADICTED" for each in testable):
            expected = "CONTRADICTED"
        elif "INCONCLUSIVE" in testable:
            expected = "INCONCLUSIVE"
        else:
            expected = "PARTIAL"
        assert family_verdict(verdicts) == expected


def test_under_five_seeds_everything_is_undecided_and_counts_as_p_1() -> None:
    (few,) = judge([Task(True, both(1e-7, 1.0, n=4), both(1.0, 1e-7, n=4))])
    assert few.verdict == "INCONCLUSIVE"
    assert (few.truncation.p_holds, few.capacity.p_fails) == (1.0, 1.0)
    (enough,) = judge([Task(True, both(1e-7, 1.0, n=5), both(1.0, 1e-7, n=5))])
    assert enough.verdict == "PARTIAL"


def test_capacity_holds_by_its_support_and_fails_by_its_contradiction_only() -> None:
    cases = {
        (1e-6, None): "holds",
        (None, 1e-6): "fails",
        (0.5, 0.5): "undecided",
        (None, None): "undecided",
        (1e-6, 1e-6): "undecided",  # an adapter of a smaller rank gains enough, one of a larger rank does not
    }
    for (holds, fails), word in cases.items():
        support = None if holds is None else one_run(holds, 1e-9, 8)
        contradiction = None if fails is None else one_run(1e-9, fails, 8)
        (found,) = judge([Task(True, HOLDS, Hypothesis(support, contradiction))])
        assert found.capacity.word == word


def test_a_task_with_no_tests_is_inconclusive_and_a_family_of_none_is_not_testable() -> None:
    assert [found.verdict for found in judge([Task(True)])] == ["INCONCLUSIVE"]
    assert judge([]) == []
    assert family_verdict([]) == "NOT TESTABLE"


p_values = st.sampled_from([1e-6, 0.005, 0.01, 0.02, 0.03, 0.05, 0.3, 1.0])


@given(st.lists(st.tuples(p_values, p_values, p_values, p_values, st.booleans()), min_size=1, max_size=4))
@settings(max_examples=200, deadline=None)
def test_each_direction_is_adjusted_by_holm_over_all_the_tests_that_were_planned(
    rows: list[tuple[float, float, float, float, bool]],
) -> None:
    found = judge([Task(testable, both(a, b), both(c, d)) for a, b, c, d, testable in rows], alpha=0.05)
    holds = holm(np.array([p if row[4] else 1.0 for row in rows for p in (row[0], row[2])]))
    fails = holm(np.array([p if row[4] else 1.0 for row in rows for p in (row[1], row[3])]))
    findings = [finding for each in found for finding in (each.truncation, each.capacity)]
    assert [finding.p_holds for finding in findings] == holds.tolist()
    assert [finding.p_fails for finding in findings] == fails.tolist()
    for finding in findings:
        assert (finding.word == "holds") == (finding.p_holds <= 0.05 < finding.p_fails)
        assert (finding.word == "fails") == (finding.p_fails <= 0.05 < finding.p_holds)


def test_a_task_without_a_gain_still_counts_in_the_family_of_the_others() -> None:
    close = Task(True, both(0.02, 1.0), both(0.02, 1.0))
    assert [found.verdict for found in judge([close])] == ["SUPPORTED"]
    assert [found.verdict for found in judge([close, Task(False)])] == ["INCONCLUSIVE", "NOT TESTABLE"]


@pytest.mark.parametrize("alpha", [0.0, 0.5, float("nan")])
def test_a_level_at_which_a_test_could_both_hold_and_fail_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"a level alpha lies between 0 and 0\.5"):
        judge([Task(True, HOLDS, HOLDS)], alpha=alpha)


@pytest.mark.parametrize(
    ("rho0", "p", "k0"), [(0.1, 64, 6), (0.25, 48, 12), (0.5, 64, 32), (0.1, 384, 38), (0.29, 100, 29), (0.05, 16, 1)]
)
def test_k0_is_the_share_of_the_full_rank_rounded_down_and_at_least_one(rho0: float, p: int, k0: int) -> None:
    assert k0_of(rho0, p) == k0


@pytest.mark.parametrize("rho0", [0.0, -0.1, 0.51, 1.0, float("nan")])
def test_a_share_near_the_full_rank_or_none_is_refused_with_the_reason(rho0: float) -> None:
    with pytest.raises(ValueError, match=r"above 0 and at most 0\.5; it is .* no control can fail"):
        k0_of(rho0, 64)
    with pytest.raises(ValueError, match="full rank 2 or more; the smallest has 1"):
        k0_of(0.5, 1)


@given(st.sets(st.integers(1, 64), max_size=6), st.integers(1, 32))
def test_capacity_is_supported_from_below_k0_and_contradicted_from_above(ranks: set[int], k0: int) -> None:
    support, contradiction = capacity_ranks(ranks, k0)
    below, above = [rank for rank in sorted(ranks) if rank <= k0], [rank for rank in sorted(ranks) if rank >= k0]
    assert (support, contradiction) == (below[-1] if below else None, above[0] if above else None)
    if k0 in ranks:
        assert support == contradiction == k0
