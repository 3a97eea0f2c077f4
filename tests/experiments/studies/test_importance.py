"""Which knob decides about a score, where that is known."""

import random
from collections.abc import Callable

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.importance import PedAnovaImportanceEvaluator

from experiments.studies.search.importance import BEST, FEWEST, Importance, importances

Point = dict[str, float]


def of_random_points(trials: int, score: Callable[[Point], float], seed: int = 0) -> list[Importance]:
    own = random.Random(seed)
    points = [{name: own.uniform(-1.0, 1.0) for name in "abcd"} for _ in range(trials)]
    return importances(points, [score(point) for point in points])


def test_of_two_knobs_the_one_with_four_fifths_of_the_variance_comes_first_in_both_measures() -> None:
    found = of_random_points(32, lambda point: 2.0 * point["b"] + point["c"])
    shares = {
        name: {each.knob: each.value for each in found if each.evaluator == name} for name in ("fANOVA", "PED-ANOVA")
    }
    for of in shares.values():
        assert sum(of.values()) == pytest.approx(1.0)
        assert max(of, key=lambda knob: of[knob]) == "b"
    assert 0.65 < shares["fANOVA"]["b"] < 1.0
    assert all(each.low <= each.high and each.n == 32 for each in found)


def test_too_few_trials_equal_scores_and_knobs_that_do_not_vary_explain_nothing() -> None:
    assert of_random_points(FEWEST - 1, lambda point: point["a"]) == []
    assert of_random_points(FEWEST, lambda point: 1.0) == []
    assert importances([{"a": 1.0}] * 20, [float(i) for i in range(20)]) == []
    assert importances([{"a": 1.0}], [1.0]) == []
    assert importances([], []) == []


@pytest.fixture(scope="module")
def of_two_knobs() -> tuple[list[Point], list[float], list[Importance]]:
    own = random.Random(1)
    points = [{"a": own.random(), "b": own.random()} for _ in range(FEWEST)]
    scores = [2.0 * point["a"] + point["b"] for point in points]
    return points, scores, importances(points, scores)


def test_the_fewest_trials_are_enough_for_what_ped_anova_sets_against_all(
    of_two_knobs: tuple[list[Point], list[float], list[Importance]],
) -> None:
    assert BEST < FEWEST
    assert len(of_two_knobs[-1]) == 2 * 2


def test_ped_anova_sets_five_of_few_trials_against_all(
    of_two_knobs: tuple[list[Point], list[float], list[Importance]],
) -> None:
    points, scores, found = of_two_knobs
    study = optuna.create_study()
    ends = {name: FloatDistribution(min(p[name] for p in points), max(p[name] for p in points)) for name in "ab"}
    for point, score in zip(points, scores, strict=True):
        study.add_trial(optuna.create_trial(params=point, distributions=dict(ends), value=score))
    theirs = PedAnovaImportanceEvaluator(target_quantile=5 / FEWEST).evaluate(study)
    ours = {of.knob: of.value for of in found if of.evaluator == "PED-ANOVA"}
    assert ours == pytest.approx({name: value / sum(theirs.values()) for name, value in theirs.items()})


def test_of_two_knobs_the_tenth_percentile_of_one_is_what_the_ninetieth_of_the_other_leaves(
    of_two_knobs: tuple[list[Point], list[float], list[Importance]],
) -> None:
    first, second = [of for of in of_two_knobs[-1] if of.evaluator == "fANOVA"]
    assert 0.0 < first.low < first.high < 1.0
    assert (first.low, first.high) == pytest.approx((1.0 - second.high, 1.0 - second.low))
