"""Replicated tuning: each evaluation seed trains the grid once, keeps its best point, and is scored by the same run."""

import math
import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from project_paths import CONFIGS

from experiments.config.loading import load
from experiments.studies.protocol.grid import points_of
from experiments.studies.protocol.protocol import plan_ahead, progress_of
from experiments.studies.protocol.trials import BEST_POINT, TUNED, ArmProgress, PlannedTrial, TrialResult
from experiments.studies.spec.arm import Arm
from experiments.studies.spec.study_config import ProtocolConfig

SEEDS = [0, 1, 2, 3, 4]
MULTIPLIERS = [0.25, 0.5, 1, 2, 4]
Score = Callable[[PlannedTrial], float | None]


def arm_of(variant: str, **knobs: Any) -> Arm:
    config = load(CONFIGS / "bytes.yaml", variant=variant, overrides=[f"{k}={v}" for k, v in knobs.items()])
    return Arm(variant, f"{variant:0<12.12}", {"variant": variant}, config)


LORA = arm_of("lora")


def protocol(**grid: list[float]) -> ProtocolConfig:
    grid = {"learning_rate_multipliers": MULTIPLIERS} | grid
    return ProtocolConfig.model_validate({"margin": 0.01, "tuning": {"grid": grid}, "evaluation": {"seeds": SEEDS}})


def finished(score: Score, asked: ProtocolConfig | None = None, arm: Arm = LORA) -> ArmProgress:
    """The arm's progress when everything that it wants has ended; lower is better, None is a failure."""
    results: dict[str, TrialResult] = {}
    while not (progress := progress_of(arm, asked or protocol(), results, higher_is_better=False)).complete:
        for trial in progress.wanted:
            if trial.key not in results:
                of = score(trial)
                results[trial.key] = TrialResult(failed=of is None, score=of, loss=of, reason="diverged")
    return progress


def valley(best: Mapping[int, float]) -> Score:
    """By seed, the multiplier at which it scores best."""
    return lambda trial: abs(math.log2((trial.multiplier or 1) / best[trial.seed])) + 0.001 * trial.seed


def chosen(progress: ArmProgress) -> dict[int, float | None]:
    return {seed: each.multiplier for each in progress.tuning.replications for seed in each.seeds}


def test_each_seed_goes_by_its_own_best_point_and_by_nothing_of_the_others() -> None:
    best = {0: 0.5, 1: 1, 2: 2, 3: 1, 4: 2}
    progress = finished(valley(best))
    assert chosen(progress) == best
    assert progress.tuning.state == "tuned"
    read = {trial.seed: trial for trial in progress.evaluations(TUNED)}
    assert {seed: trial.multiplier for seed, trial in read.items()} == best


def test_the_test_split_is_read_of_the_very_runs_that_were_chosen_and_of_those_at_the_best_point() -> None:
    progress = finished(valley({0: 0.5, 1: 1, 2: 2, 3: 1, 4: 1}))
    trained = {trial.key: trial for trial in progress.tuning.trials}
    assert {trial.stage for trial in trained.values()} == {"tuning"}
    evaluated = [trial for trial in progress.wanted if trial.stage == "evaluation"]
    for trial in evaluated:
        assert trial.run_of is not None
        assert trial.config == trained[trial.run_of].config  # the same run, so that nothing is trained
    assert progress.tuning.best_point is not None
    assert progress.tuning.best_point.multiplier == 1
    assert {(trial.seed, trial.multiplier) for trial in progress.evaluations(BEST_POINT)} == {(s, 1) for s in SEEDS}
    assert len(evaluated) == 5 + 2  # seeds 0 and 2 chose another one
    assert all(set(trial.settings) <= {TUNED, BEST_POINT} for trial in evaluated)


def test_no_run_is_trained_for_tuning_alone_and_every_arm_has_the_same_number_of_points() -> None:
    asked = protocol(alpha_per_rank=[2, 8, 32])
    for arm in (LORA, arm_of("rslora"), arm_of("adalora"), arm_of("full")):
        ahead = plan_ahead(arm, asked)
        assert sum(trial.run_of is None for trial in ahead) == 15 * len(SEEDS)
        assert {trial.seed for trial in ahead} == set(SEEDS)
        assert len({trial.key for trial in ahead}) == len(ahead)


def test_an_arm_without_a_knob_has_finer_rates_over_the_same_range() -> None:
    full = points_of(arm_of("full"), protocol(alpha_per_rank=[2, 8, 32]).tuning.points)
    multipliers = [point.multiplier for point in full]
    assert (len(full), multipliers[0], multipliers[-1]) == (15, 0.25, 4)
    ratios = [higher / lower for lower, higher in pairwise(multipliers)]
    assert ratios == pytest.approx([16 ** (1 / 14)] * 14, rel=1e-4)
    assert all(not point.values for point in full)


@pytest.mark.parametrize(("best", "beyond"), [(256, [9, 27]), (2**-8, [0.05, 0.1])])
def test_a_grid_goes_on_by_the_ratio_of_its_last_two_on_that_side(best: float, beyond: list[float]) -> None:
    asked = protocol(learning_rate_multipliers=[0.2, 0.4, 1, 3])
    for replication in finished(valley(dict.fromkeys(SEEDS, best)), asked).tuning.replications:
        assert sorted(point.multiplier for point in replication.added) == pytest.approx(beyond)


@pytest.mark.parametrize(("best", "beyond"), [(64, [8, 16]), (2**-8, [0.0625, 0.125])])
def test_an_arm_with_finer_rates_is_extended_as_far_as_the_others(best: float, beyond: list[float]) -> None:
    asked = protocol(alpha_per_rank=[2, 8, 32])
    for arm in (arm_of("full"), LORA):
        progress = finished(valley(dict.fromkeys(SEEDS, best)), asked, arm)
        for replication in progress.tuning.replications:
            assert sorted(point.multiplier for point in replication.added) == pytest.approx(beyond)


def test_a_point_sets_the_knob_that_scales_the_variant_and_no_other() -> None:
    asked = protocol(alpha_per_rank=[2, 8, 32])
    for arm, knob in ((LORA, "alpha_per_rank"), (arm_of("rslora"), "alpha"), (arm_of("adalora"), "alpha_per_rank")):
        trials = progress_of(arm, asked, {}, higher_is_better=False).wanted
        configs = [trial.config.variant.model_dump() for trial in trials]
        own = arm.config.variant.model_dump()
        assert len({config[knob] for config in configs}) == 3
        for config in configs:
            assert {name for name in config if config[name] != own[name]} <= {"alpha", "alpha_per_rank"}
            assert (config["alpha"] is None) != (config["alpha_per_rank"] is None)


def test_the_best_point_of_all_knobs_is_chosen() -> None:
    def score(trial: PlannedTrial) -> float:
        alpha = trial.config.variant.model_dump()["alpha_per_rank"]
        return abs(math.log2((trial.multiplier or 0) / 2)) + abs(math.log2(alpha / 8))

    progress = finished(score, protocol(alpha_per_rank=[2, 8, 32]))
    assert {tuple(each.values.items()) for each in progress.tuning.replications} == {(("alpha_per_rank", 8.0),)}
    assert set(chosen(progress).values()) == {2}
    assert "0.01 alpha_per_rank=8 (5 of 5 seeds)" in progress.tuning.reason


@pytest.mark.parametrize(
    ("best", "end"), [(2, " (the lowest of its grid)"), (4, ""), (8, " (the highest of its grid)")]
)
def test_a_choice_at_the_end_of_another_knob_is_said_and_extends_nothing(best: int, end: str) -> None:
    def score(trial: PlannedTrial) -> float:
        return abs(math.log2(trial.multiplier or 0)) + abs(trial.config.variant.model_dump()["alpha_per_rank"] - best)

    progress = finished(score, protocol(alpha_per_rank=[2, 4, 8]))
    assert progress.tuning.state == "tuned"
    assert all(f", alpha_per_rank {best}{end}, with a mean" in each.reason for each in progress.tuning.replications)
    assert len(progress.tuning.trials) == 15 * len(SEEDS)


def test_a_seed_whose_best_rate_is_at_an_end_trains_two_more_points_there_and_the_others_do_not() -> None:
    progress = finished(valley({0: 8, 1: 1, 2: 1, 3: 1, 4: 1}))
    trials = {seed: [t for t in progress.tuning.trials if t.seed == seed] for seed in SEEDS}
    assert {seed: len(of) for seed, of in trials.items()} == {0: 7, 1: 5, 2: 5, 3: 5, 4: 5}
    assert sorted(trial.multiplier or 0 for trial in trials[0])[-2:] == [8, 16]
    assert (progress.tuning.state, chosen(progress)[0]) == ("tuned", 8)
    assert progress.tuning.best_point is not None
    assert progress.tuning.best_point.multiplier == 1  # of the points that every seed has


@pytest.mark.parametrize(("beyond", "state"), [(2, "tuned"), (3, "not tuned")])
def test_an_arm_is_not_tuned_where_more_than_half_of_its_seeds_chose_the_end_of_their_extended_grid(
    beyond: int, state: str
) -> None:
    progress = finished(valley({seed: 64 if seed < beyond else 1 for seed in SEEDS}))
    assert progress.tuning.state == state
    assert f"at the end of an extended grid: {beyond}" in progress.tuning.reason
    assert len(progress.evaluations(TUNED)) == 5  # it is evaluated all the same


def test_half_of_the_seeds_at_an_end_are_not_more_than_half() -> None:
    even = protocol()
    even = even.model_copy(update={"evaluation": even.evaluation.model_copy(update={"seeds": SEEDS[:4]})})
    states = {n: finished(valley({s: 64 if s < n else 1 for s in SEEDS}), even).tuning.state for n in (2, 3)}
    assert states == {2: "tuned", 3: "not tuned"}


def test_an_end_is_one_at_the_chosen_other_knobs_and_so_are_the_points_beyond_it() -> None:
    def score(trial: PlannedTrial) -> float | None:
        alpha, multiplier = trial.config.variant.model_dump()["alpha_per_rank"], trial.multiplier or 0
        if alpha == 8 and trial.stage == "tuning" and multiplier < 1:
            return None  # whatever finished at the other alpha says nothing of this one
        return abs(math.log2(multiplier)) - (alpha == 8)

    for replication in finished(score, protocol(alpha_per_rank=[2, 8])).tuning.replications:
        assert (replication.side, replication.multiplier) == ("lower", 1)
        assert [(p.multiplier, p.values) for p in replication.added] == [
            (0.125, {"alpha_per_rank": 8.0}), (0.0625, {"alpha_per_rank": 8.0})
        ]  # fmt: skip


def test_a_point_that_failed_at_a_seed_is_out_there_alone() -> None:
    def score(trial: PlannedTrial) -> float | None:
        lost = trial.stage == "tuning" and trial.multiplier == 1 and trial.seed == 3
        return None if lost else abs(math.log2(trial.multiplier or 0)) + 0.1 * ((trial.multiplier or 0) < 1)

    progress = finished(score)
    assert chosen(progress) == {0: 1, 1: 1, 2: 1, 3: 2, 4: 1}
    assert progress.tuning.best_point is not None
    assert progress.tuning.best_point.multiplier == 2  # at 1 there is no mean over all seeds


def test_a_seed_at_which_every_point_failed_has_no_choice_and_is_not_evaluated() -> None:
    progress = finished(lambda trial: None if trial.seed == 2 else abs(math.log2(trial.multiplier or 0)))
    assert chosen(progress)[2] is None
    assert {trial.seed for trial in progress.evaluations(TUNED)} == {0, 1, 3, 4}
    assert progress.tuning.best_point is None
    assert "without a choice: 1 (every point failed: diverged)" in progress.tuning.reason


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_in_any_order_of_results_nothing_wanted_is_dropped_and_no_test_score_is_read_before_the_tuning_is_over(
    data: st.DataObject,
) -> None:
    grid = data.draw(st.sampled_from([{}, {"alpha_per_rank": [2, 8]}]))
    asked = protocol(learning_rate_multipliers=[0.5, 1, 2], **grid)
    asked = asked.model_copy(update={"evaluation": asked.evaluation.model_copy(update={"seeds": [0, 1]})})
    order, results = random.Random(data.draw(st.integers(0, 999))), dict[str, TrialResult]()
    ends = st.one_of(st.none(), st.integers(0, 3), st.just(math.nan))
    before = progress_of(LORA, asked, results, higher_is_better=True)
    while not before.complete:
        trial = order.choice([trial for trial in before.wanted if trial.key not in results])
        end = data.draw(ends)
        results[trial.key] = TrialResult(failed=end is None, score=end, loss=end)
        after = progress_of(LORA, asked, results, higher_is_better=True)
        assert {t.key for t in before.wanted} <= {t.key for t in after.wanted}
        if any(t.stage == "evaluation" for t in after.wanted):
            assert all(t.key in results for t in after.tuning.trials)
        if before.tuning.state != "open":
            assert after.tuning == before.tuning
        before = after
    assert all(len(each.added) in (0, 2) for each in before.tuning.replications)


def test_a_shared_tuning_of_one_seed_chooses_what_a_replication_of_that_seed_does() -> None:
    score = valley(dict.fromkeys((*SEEDS, 100), 2))
    tuning = {"shared": True, "grid": {"learning_rate_multipliers": MULTIPLIERS}, "seeds": [100]}
    shared = ProtocolConfig.model_validate({"margin": 0.01, "tuning": tuning, "evaluation": {"seeds": SEEDS}})
    (once,) = finished(score, shared).tuning.replications
    alone = finished(score).tuning.replications[0]
    assert replace(once, seeds=(), trials=(), reason="") == replace(alone, seeds=(), trials=(), reason="")


def test_a_fixed_rate_of_the_grid_is_read_of_the_run_that_tuning_trains_and_says_all_that_it_is() -> None:
    asked = protocol().model_copy(update={"fixed_learning_rates": [5e-3, 3e-3]})
    progress = finished(valley({0: 0.5, 1: 1, 2: 2, 3: 1, 4: 1}), asked)
    of_grid = {trial.seed: trial for trial in progress.evaluations("fixed 0.005")}
    assert all(trial.run_of is not None for trial in of_grid.values())
    assert of_grid[1].settings == (TUNED, BEST_POINT, "fixed 0.005")
    assert of_grid[0].settings == (BEST_POINT, "fixed 0.005")
    beside = progress.evaluations("fixed 0.003")
    assert [trial.run_of for trial in beside] == [None] * 5
