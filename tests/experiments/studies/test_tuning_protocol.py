"""The protocol: equal budgets, a rate chosen on validation alone, and an evaluation that waits for it."""

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from project_paths import CONFIGS

from experiments.config.loading import load
from experiments.studies.protocol.protocol import plan_ahead, progress_of, settings_of
from experiments.studies.protocol.trials import ArmProgress, PlannedTrial, Replication, TrialResult
from experiments.studies.spec.arm import Arm
from experiments.studies.spec.study import load_study
from experiments.studies.spec.study_config import ProtocolConfig

BYTES = CONFIGS / "bytes.yaml"
CONFIG = load(BYTES)  # lora, centre 5e-3
ARM = Arm("lora r=16", "0123456789ab", {"variant": "lora", "rank": 16}, CONFIG)
Outcome = Callable[[PlannedTrial], TrialResult]


def protocol(**changes: object) -> ProtocolConfig:
    knobs = {
        "margin": 0.01,
        "tuning": {"shared": True, "learning_rate_multipliers": [0.25, 0.5, 1, 2, 4], "seeds": [100, 101]},
        "evaluation": {"seeds": [0, 1, 2]},
    }
    return ProtocolConfig.model_validate(knobs | changes)


def finished(outcome: Outcome, asked: ProtocolConfig | None = None, *, higher_is_better: bool = False) -> ArmProgress:
    """The arm's progress when everything that it wants has ended."""
    asked = asked or protocol()
    results: dict[str, TrialResult] = {}
    while True:
        progress = progress_of(ARM, asked, results, higher_is_better=higher_is_better)
        if progress.complete:
            return progress
        missing = [trial for trial in progress.wanted if trial.key not in results]
        assert missing
        results |= {trial.key: outcome(trial) for trial in missing}


def choice(progress: ArmProgress) -> Replication:
    """The one that all evaluation seeds share."""
    (only,) = progress.tuning.replications
    return only


def multipliers(replication: Replication) -> tuple[float, ...]:
    return tuple(point.multiplier for point in replication.added)


def scored(scores: Mapping[float, float | None]) -> Outcome:
    """Results by multiplier; None is a failure, a multiplier that is not there scores badly."""

    def outcome(trial: PlannedTrial) -> TrialResult:
        if trial.stage == "evaluation":
            return TrialResult(failed=False, score=1.0, loss=1.0)
        score = scores.get(trial.multiplier or 0.0, 9.0)
        if score is None:
            return TrialResult(failed=True, reason="the loss is not finite")
        return TrialResult(failed=False, score=score, loss=score)

    return outcome


def rates(trials: tuple[PlannedTrial, ...]) -> set[float | None]:
    return {trial.learning_rate for trial in trials}


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_in_any_order_of_results_nothing_wanted_is_dropped_and_nothing_is_evaluated_before_it_is_tuned(
    data: st.DataObject,
) -> None:
    grid = data.draw(st.sampled_from([[0.25, 0.5, 1, 2, 4], [2, 1], [0.1, 1, 3]]))
    fixed = data.draw(st.sampled_from([[], [5e-3], [1e-2, 3e-2]]))
    asked = protocol(
        fixed_learning_rates=fixed, tuning={"shared": True, "learning_rate_multipliers": grid, "seeds": [100, 101]}
    )
    higher = data.draw(st.booleans())
    order = random.Random(data.draw(st.integers(0, 999)))
    ends = st.one_of(st.none(), st.integers(0, 3), st.just(math.nan))
    results: dict[str, TrialResult] = {}
    before = progress_of(ARM, asked, results, higher_is_better=higher)
    while not before.complete:
        trial = order.choice([trial for trial in before.wanted if trial.key not in results])
        end = data.draw(ends)
        results[trial.key] = TrialResult(failed=end is None, score=end, loss=end, reason=None)
        after = progress_of(ARM, asked, results, higher_is_better=higher)
        assert {t.key for t in before.wanted} <= {t.key for t in after.wanted}
        assert after == progress_of(ARM, asked, dict(reversed(results.items())), higher_is_better=higher)
        keys = [t.key for t in after.wanted]
        assert len(keys) == len(set(keys))
        if after.evaluations("tuned"):
            assert all(t.key in results for t in after.wanted if t.stage == "tuning")
        if before.tuning.state != "open":
            assert after.tuning == before.tuning
        before = after
    assert all(t.key in results for t in before.wanted)
    tuning = choice(before)
    if tuning.chosen is not None:
        at_chosen = [results[t.key] for t in tuning.trials if t.learning_rate == tuning.chosen]
        assert len(at_chosen) == 2
        assert all(not r.failed and r.score is not None and math.isfinite(r.score) for r in at_chosen)
        assert [t.seed for t in before.evaluations("tuned")] == [0, 1, 2]
    assert len(tuning.trials) == 2 * (len(grid) + len(tuning.added))
    assert len(tuning.added) in (0, 2)


def test_a_tuning_that_is_not_over_says_what_it_waits_for() -> None:
    alone = progress_of(ARM, protocol(), {}, higher_is_better=False)
    assert alone.tuning.reason == "trials of the grid are pending"
    seeds = progress_of(ARM, protocol(tuning={}, evaluation={"seeds": [0, 1]}), {}, higher_is_better=False)
    assert seeds.tuning.reason == "2 of 2 replications are not over"


def test_every_arm_is_given_the_same_number_of_tuning_trials_whatever_its_variant_and_rank() -> None:
    asked = protocol()
    arms = [Arm(name, f"{i:012x}", {}, load(BYTES, variant=name)) for i, name in enumerate(["lora", "full", "adalora"])]
    wanted = [progress_of(arm, asked, {}, higher_is_better=False).wanted for arm in arms]
    assert {len(trials) for trials in wanted} == {10}
    assert all(trial.stage == "tuning" for trials in wanted for trial in trials)


@pytest.mark.parametrize("higher", [True, False])
def test_the_rate_with_the_best_mean_score_is_evaluated_on_fresh_seeds(higher: bool) -> None:
    sign = 1 if higher else -1
    progress = finished(scored({0.25: 1, 0.5: sign * 5, 1: 2, 2: 1, 4: 1}), higher_is_better=higher)
    assert (progress.tuning.state, choice(progress).multiplier) == ("tuned", 0.5)
    assert rates(progress.evaluations("tuned")) == {2.5e-3}
    assert choice(progress).added == ()


@pytest.mark.parametrize("higher", [True, False])
def test_a_rate_is_judged_by_the_mean_of_its_seeds_not_by_the_best_nor_the_worst_of_them(higher: bool) -> None:
    sign = 1 if higher else -1
    lucky, steady, careful = (
        {100: 9.0, 101: 0.0, 102: 0.0},
        {100: 3.0, 101: 5.0, 102: 2.0},
        {100: 3.0, 101: 3.0, 102: 3.0},
    )
    scores = {0.5: lucky, 1: steady, 2: careful}  # the best single score, the best mean, the best worst one

    def outcome(trial: PlannedTrial) -> TrialResult:
        score = scores.get(trial.multiplier or 0, {}).get(trial.seed, -1.0)
        return TrialResult(failed=False, score=sign * score, loss=1.0)

    asked = protocol(
        tuning={"shared": True, "learning_rate_multipliers": [0.25, 0.5, 1, 2, 4], "seeds": [100, 101, 102]}
    )
    tuning = choice(finished(outcome, asked, higher_is_better=higher))
    assert (tuning.state, tuning.multiplier) == ("tuned", 1)
    assert f"with a mean score of {sign * fmean(steady.values()):.6g}" in tuning.reason


def test_a_rate_at_which_one_seed_failed_is_never_chosen_however_good_the_other() -> None:
    def outcome(trial: PlannedTrial) -> TrialResult:
        if trial.multiplier == 1 and trial.seed == 101:
            return TrialResult(failed=True, reason="diverged")
        return TrialResult(failed=False, score=0.0 if trial.multiplier == 1 else abs(trial.multiplier or 0), loss=0.0)

    progress = finished(outcome)
    assert choice(progress).multiplier != 1
    assert "0.005 (diverged)" in choice(progress).reason


def test_ties_go_to_the_lower_loss_and_then_to_the_smaller_rate() -> None:
    def with_losses(losses: Mapping[float, float]) -> Outcome:
        return lambda trial: TrialResult(failed=False, score=0.5, loss=losses.get(trial.multiplier or 0, 1.0))

    assert choice(finished(with_losses({2: 0.9}))).multiplier == 2
    assert choice(finished(with_losses({2: 0.9, 0.5: 0.9}))).multiplier == 0.5


def test_a_missing_loss_loses_a_tie() -> None:
    def outcome(trial: PlannedTrial) -> TrialResult:
        return TrialResult(failed=False, score=0.5, loss=0.7 if trial.multiplier == 2 else None)

    assert choice(finished(outcome)).multiplier == 2


@pytest.mark.parametrize(
    ("scores", "added", "state", "multiplier"),
    [
        ({4: 1}, (8, 16), "tuned", 4),
        ({4: 2, 8: 1}, (8, 16), "tuned", 8),
        ({4: 3, 8: 2, 16: 1}, (8, 16), "not tuned", 16),
        ({0.25: 1}, (0.125, 0.0625), "tuned", 0.25),
        ({0.25: 2, 0.125: 1}, (0.125, 0.0625), "tuned", 0.125),
        ({0.25: 3, 0.125: 2, 0.0625: 1}, (0.125, 0.0625), "not tuned", 0.0625),
    ],
)
def test_a_best_rate_at_an_end_extends_the_grid_once_on_that_side(
    scores: dict[float, float | None], added: tuple[float, ...], state: str, multiplier: float
) -> None:
    progress = finished(scored(scores))
    tuning = choice(progress)
    assert (multipliers(tuning), tuning.state, tuning.multiplier) == (added, state, multiplier)
    assert tuning.side == ("higher" if added[0] > 1 else "lower")
    assert len(tuning.trials) == 14
    assert rates(progress.evaluations("tuned")) == {tuning.chosen}  # evaluated all the same, excluded from verdicts
    assert "extended" in tuning.reason


def test_a_higher_rate_that_failed_bounds_the_best_one_and_the_reason_says_so() -> None:
    tuning = choice(finished(scored({2: 1, 4: None})))
    assert (tuning.state, tuning.multiplier, tuning.added) == ("tuned", 2, ())
    assert "between 0.005 and 0.02, which failed" in tuning.reason
    after = choice(finished(scored({4: 1, 8: None, 16: None})))
    assert (after.state, after.multiplier) == ("tuned", 4)


def test_a_lower_rate_that_failed_bounds_nothing() -> None:
    tuning = choice(finished(scored({0.25: None, 0.5: 1})))
    assert (tuning.side, multipliers(tuning)) == ("lower", (0.125, 0.0625))
    assert finished(scored({0.25: None, 0.5: 1, 0.125: None, 0.0625: None})).tuning.state == "not tuned"
    assert tuning.state == "tuned"  # here the lower ones finished, with worse scores


def test_a_single_rate_that_finished_is_not_tuned_unless_its_neighbours_are_seen() -> None:
    only = {0.25: None, 0.5: None, 1: None, 2: None, 4: 1.0}
    tuning = choice(finished(scored(only)))
    assert (tuning.state, tuning.chosen, tuning.side) == ("not tuned", 2e-2, "higher")


def test_where_every_rate_failed_nothing_is_evaluated() -> None:
    progress = finished(lambda trial: TrialResult(failed=True, reason="out of memory"))
    assert (progress.tuning.state, choice(progress).chosen) == ("not tuned", None)
    assert choice(progress).reason == "every point failed: out of memory"
    assert progress.evaluations("tuned") == ()
    assert len(progress.wanted) == 10


def test_a_score_that_is_not_finite_is_a_failure() -> None:
    def outcome(trial: PlannedTrial) -> TrialResult:
        score = math.inf if trial.multiplier == 1 else float(abs((trial.multiplier or 0) - 1))
        return TrialResult(failed=False, score=score, loss=0.0)

    tuning = choice(finished(outcome, higher_is_better=True))
    assert tuning.multiplier != 1
    assert "0.005 (no finite score)" in tuning.reason


def test_a_rate_without_effect_is_tuned_at_the_centre() -> None:
    progress = finished(lambda trial: TrialResult(failed=False, score=2.0 + trial.seed, loss=1.0))
    assert (progress.tuning.state, choice(progress).multiplier, choice(progress).added) == ("tuned", 1, ())
    assert "no effect" in choice(progress).reason
    beside = protocol(tuning={"shared": True, "learning_rate_multipliers": [0.2, 0.8, 3], "seeds": [9]})
    assert choice(finished(lambda _: TrialResult(failed=False, score=1.0, loss=1.0), beside)).multiplier == 0.8


def test_fixed_rates_are_wanted_from_the_start_and_whatever_the_tuning_says() -> None:
    asked = protocol(fixed_learning_rates=[3e-3, 3e-2])
    assert settings_of(asked) == ("tuned", "fixed 0.003", "fixed 0.03")
    at_start = progress_of(ARM, asked, {}, higher_is_better=False)
    assert rates(at_start.evaluations("fixed 0.003")) == {3e-3}
    assert len(at_start.wanted) == 10 + 6
    failed = finished(lambda trial: TrialResult(failed=True), asked)
    assert len(failed.evaluations("fixed 0.03")) == 3


def test_a_fixed_rate_that_is_the_chosen_one_is_evaluated_once_and_counts_for_both() -> None:
    asked = protocol(
        fixed_learning_rates=[1e-2],
        tuning={"shared": True, "learning_rate_multipliers": [0.5, 1, 2, 3], "seeds": [100]},
    )
    progress = finished(scored({2: 1}), asked)
    assert choice(progress).chosen == 1e-2
    assert progress.evaluations("tuned") == progress.evaluations("fixed 0.01")
    assert len(progress.wanted) == 4 + 3
    assert progress.evaluations("tuned")[0].settings == ("tuned", "fixed 0.01")


def test_a_trial_is_the_arms_run_at_its_rate_and_seed_and_nothing_else_changes() -> None:
    trial = progress_of(ARM, protocol(), {}, higher_is_better=False).wanted[-1]
    assert trial.key == "0123456789ab-tuning-lr0.02-s101"
    tree, expected = trial.config.tree(), CONFIG.tree()
    expected["seed"], expected["training"]["learning_rate"] = 101, 2e-2
    assert tree == expected
    assert type(trial.config) is type(CONFIG)


def test_rates_have_six_digits_so_that_a_trials_name_is_its_run() -> None:
    third = CONFIG.model_copy(update={"training": CONFIG.training.model_copy(update={"learning_rate": 0.1 / 3})})
    wanted = progress_of(replace(ARM, config=third), protocol(), {}, higher_is_better=False).wanted
    assert {f"{trial.learning_rate:.17g}" for trial in wanted} >= {"0.033333300000000003", "0.13333300000000001"}


def test_the_plan_counts_what_a_tuning_without_surprises_takes() -> None:
    asked = protocol(fixed_learning_rates=[3e-3])
    ahead = plan_ahead(ARM, asked)
    assert len(ahead) == len({trial.key for trial in ahead}) == len(finished(scored({1: 1}), asked).wanted)
    (unknown,) = {trial.learning_rate for trial in ahead if trial.stage == "evaluation"} - {3e-3}
    assert unknown is None
    with pytest.raises(ValueError, match="is chosen when the tuning of 'lora r=16' is over"):
        _ = ahead[-1].config


def test_ten_thousand_trials_are_planned_in_seconds(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text(
        f"name: large\nconfig: {BYTES}\n"
        "arms: [{variant: [lora, adalora], rank: [1, 2, 3, 4, 5], dropout: "
        "[0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09]}]\n"
        f"protocol: {{margin: 0.1, tuning: {{shared: true, seeds: {[*range(100, 110)]}}}, "
        f"evaluation: {{seeds: {[*range(50)]}}}}}\n"
    )
    since = time.process_time()
    study = load_study(path)
    results: dict[str, TrialResult] = {}
    for _ in range(2):
        progress = [progress_of(arm, study.protocol, results, higher_is_better=False) for arm in study.arms]
        trials = [trial for of_arm in progress for trial in of_arm.wanted]
        results = {t.key: TrialResult(failed=False, score=abs((t.multiplier or 0) - 1), loss=0.0) for t in trials}
    seeds = {trial.config.seed for trial in trials}
    assert len(trials) == 10_000
    assert len(seeds) == 60
    assert time.process_time() - since < 3
