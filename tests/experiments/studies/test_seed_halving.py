"""Halving inside a seed: points that fall behind at the rung are not trained on, and nothing else changes."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
from in_process_study import TREE, interrupt_every, outcome, starts_until_over, worker_on
from project_paths import CONFIGS

from analysis.study_results.results import results_table
from experiments.config.loading import load
from experiments.record.run_dir import RunDirectory
from experiments.studies.protocol.progress import StudyState, snapshot
from experiments.studies.protocol.protocol import plan_ahead, progress_of
from experiments.studies.protocol.seed_halving import rung_of
from experiments.studies.protocol.trials import ArmProgress, PlannedTrial, TrialResult
from experiments.studies.queue.entries import Entry
from experiments.studies.spec.arm import Arm
from experiments.studies.spec.study_config import ProtocolConfig
from experiments.studies.spec.tuning_config import TuningConfig
from experiments.studies.workers.worker import Worker

SEEDS = [0, 1, 2, 3, 4]
ARM = Arm("lora", "0123456789ab", {"variant": "lora"}, load(CONFIGS / "bytes.yaml"))  # 1000 steps
HALVED = ProtocolConfig.model_validate(
    {"margin": 0.01, "tuning": {"halving": {"keep": 0.6}}, "evaluation": {"seeds": SEEDS}}
)
WHOLE = HALVED.model_copy(update={"tuning": TuningConfig()})


def finished(
    early: dict[float, float], late: dict[float, float], asked: ProtocolConfig = HALVED, failed: tuple[float, ...] = ()
) -> ArmProgress:
    """When all has ended, with these scores at the rung and at the end, by multiplier; lower is better."""
    results: dict[str, TrialResult] = {}

    def end(trial: PlannedTrial) -> TrialResult:
        if trial.multiplier in failed:
            return TrialResult(failed=True, reason="diverged")
        if trial.stage == "rung":
            (step,) = trial.thresholds
            return TrialResult(failed=False, reached={step: early.get(trial.multiplier or 0, 9.0)})
        score = late.get(trial.multiplier or 0, 9.0)
        return TrialResult(failed=False, score=score, loss=score)

    while not (progress := progress_of(ARM, asked, results, higher_is_better=False)).complete:
        results |= {trial.key: end(trial) for trial in progress.wanted if trial.key not in results}
    return progress


def test_three_of_five_points_train_on_and_the_best_of_them_is_chosen() -> None:
    early, late = {0.25: 5, 0.5: 1, 1: 2, 2: 3, 4: 4}, {0.25: 0, 0.5: 3, 1: 1, 2: 2, 4: 0}
    progress = finished(early, late)
    for replication in progress.tuning.replications:
        trained = [trial.multiplier for trial in replication.trials if trial.stage == "tuning"]
        assert trained == [0.5, 1, 2]
        assert replication.multiplier == 1  # what fell behind at the rung is not chosen, however it would have ended
    (rung,) = {step for trial in progress.wanted for step in trial.thresholds}
    assert rung == 500


def test_a_part_that_is_no_whole_number_of_points_is_rounded_up() -> None:
    grid = {"learning_rate_multipliers": [0.5, 1, 2, 4]}
    asked = HALVED.model_copy(update={"tuning": TuningConfig.model_validate({"halving": {"keep": 0.6}, "grid": grid})})
    assert sum(trial.stage == "tuning" for trial in plan_ahead(ARM, asked)) == 3 * len(SEEDS)
    progress = finished({0.5: 1, 1: 2, 2: 3, 4: 4}, {0.5: 2, 1: 1, 2: 3}, asked)
    assert sum(trial.stage == "tuning" for trial in progress.tuning.replications[0].trials) == 3


def test_a_rate_that_fell_behind_was_seen_so_that_its_neighbour_is_at_no_end() -> None:
    progress = finished({0.25: 5, 0.5: 1, 1: 2, 2: 3, 4: 4}, {0.5: 1, 1: 2, 2: 3})
    assert all(each.added == () and each.state == "tuned" for each in progress.tuning.replications)


def test_an_end_that_passed_the_rung_extends_the_grid_by_whole_runs() -> None:
    progress = finished({2: 2, 4: 1, 1: 3, 0.5: 4}, {4: 1, 2: 2, 8: 0.5})
    for replication in progress.tuning.replications:
        whole = [trial.multiplier for trial in replication.trials if trial.stage == "tuning" and trial.part == 1]
        assert whole == [8, 16]
        assert replication.multiplier == 8


def test_a_plan_has_five_halves_and_three_halves_a_seed() -> None:
    ahead = [trial for trial in plan_ahead(ARM, HALVED) if trial.run_of is None]
    assert sum(trial.part for trial in ahead) == pytest.approx(4.0 * len(SEEDS))
    progress = finished({0.5: 1, 1: 2, 2: 3}, {0.5: 2, 1: 1, 2: 3})
    assert sum(trial.part for trial in progress.tuning.trials) == pytest.approx(4.0 * len(SEEDS))


def test_a_point_that_failed_at_the_rung_has_failed_and_is_never_chosen() -> None:
    progress = finished({0.5: 1}, {0.5: 1, 0.25: 2}, failed=(1, 2, 4))
    assert {each.multiplier for each in progress.tuning.replications} == {0.5}
    assert all("failed: 0.005 (diverged)" in each.reason for each in progress.tuning.replications)
    alone = finished({1: 1}, {1: 1}, failed=(0.25, 0.5, 2, 4, 0.125, 0.0625))
    assert all(each.side == "lower" and "no effect" not in each.reason for each in alone.tuning.replications)


def test_a_lower_rate_that_failed_at_the_rung_bounds_nothing() -> None:
    early = {0.5: 1, 1: 2, 2: 3, 4: 4}
    progress = finished(early, {**early, 0.125: 9, 0.0625: 9}, failed=(0.25,))
    for replication in progress.tuning.replications:
        assert replication.side == "lower"
        assert [point.multiplier for point in replication.added] == [0.125, 0.0625]


def test_points_that_are_alike_at_the_end_had_an_effect_where_others_fell_behind_at_the_rung() -> None:
    progress = finished({0.25: 5, 0.5: 1, 1: 2, 2: 3, 4: 6}, {0.5: 1, 1: 1, 2: 1})
    assert all("no effect" not in each.reason for each in progress.tuning.replications)
    same = dict.fromkeys((0.25, 0.5, 1, 2, 4), 3.0)
    assert all("no effect" in each.reason for each in finished(same, same).tuning.replications)


def test_where_runs_were_trained_before_they_did_not_stop_at_the_rung_and_all_points_compete() -> None:
    before = TrialResult(failed=False, score=1.0, loss=1.0)
    results: dict[str, TrialResult] = {}
    while not (progress := progress_of(ARM, HALVED, results, higher_is_better=False)).complete:
        for trial in progress.wanted:
            off = abs(math.log2((trial.multiplier or 0) / 0.25))
            results.setdefault(trial.key, before if trial.stage == "rung" else TrialResult(False, off, off))
    assert {each.multiplier for each in progress.tuning.replications if each.side} == {0.25}
    alike = progress_of(ARM, HALVED, dict.fromkeys(results, before), higher_is_better=False)
    assert all("no effect" in each.reason for each in alike.tuning.replications)


@pytest.mark.parametrize(("steps", "rung"), [(1, None), (2, 1), (3, 2)])
def test_a_rung_lies_inside_a_run_and_a_run_of_one_step_has_none(steps: int, rung: int | None) -> None:
    arm = replace(ARM, config=load(CONFIGS / "bytes.yaml", overrides=[f"training.steps={steps}"]))
    found = rung_of(arm, HALVED.tuning.halving, higher_is_better=False)
    assert (None if found is None else found.step) == rung


def test_a_run_that_stops_at_its_rung_is_done_there_and_every_other_state_stays() -> None:
    (at_rung, *_), (whole, *_) = (progress_of(ARM, each, {}, higher_is_better=False).wanted for each in (HALVED, WHOLE))
    for trial, state, shown in (
        (at_rung, "pruned", "done"), (at_rung, "failed", "failed"), (at_rung, "running", "running"),
        (whole, "pruned", "pruned"), (whole, "done", "done"),
    ):  # fmt: skip
        entry = Entry(0, trial.key, state, None, None, {}, {}, {})
        assert StudyState((), {trial.key: trial}, {trial.key: entry}, ()).state(trial.key) == shown


@pytest.mark.parametrize("keep", [0.4, 0.59])
def test_fewer_than_three_of_five_are_refused(keep: float) -> None:
    with pytest.raises(ValueError, match=r"keep\n.*below 0.6: half way"):
        ProtocolConfig.model_validate({"margin": 1, "tuning": {"halving": {"keep": keep}}})


GRID = {"learning_rate_multipliers": [0.5, 1, 2, 4, 1e30]}
PROTOCOL = TREE["protocol"] | {"evaluation": {"seeds": [0, 1]}}


def studied(folder: Path, *, pack: int, halving: dict[str, float] | None = {"keep": 0.6}) -> Worker:  # noqa: B006
    protocol = PROTOCOL | {"tuning": {"grid": GRID, "halving": halving}}
    return worker_on(folder, pack=pack, protocol=protocol, arms=[{"variant": ["lora", "adalora"], "rank": [2]}])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    worker = studied(tmp_path_factory.mktemp("alone"), pack=1)
    worker.work()
    return worker


def test_a_run_that_went_on_from_its_rung_is_the_run_that_never_stopped(tmp_path: Path, alone: Worker) -> None:
    whole = studied(tmp_path, pack=4, halving=None)
    whole.work()
    state, found = snapshot(alone.study, alone.queue), 0
    for path in (alone.runs_dir / "tiny").glob("*/result.json"):
        other = whole.runs_dir / "tiny" / path.parent.name
        if (other / "result.json").exists():
            ours, theirs = RunDirectory(path.parent).result(), RunDirectory(other).result()
            assert (ours["score"], ours["validation"]) == (theirs["score"], theirs["validation"])
            adapter = "adapter_model.safetensors"
            assert (path.parent / adapter).read_bytes() == (other / adapter).read_bytes()
            found += 1
    assert found >= 8
    kept = [trial for trial in state.wanted.values() if trial.stage == "tuning" and trial.part < 1]
    runs = [RunDirectory(alone.runs_dir / "tiny" / state.entries[trial.key].facts["folder"]).result() for trial in kept]
    assert {(run["steps_executed"], *run["resumed_from"]) for run in runs} == {(20, 10)}  # no step is trained twice
    rungs = [state.entries[trial.key] for trial in state.wanted.values() if trial.stage == "rung"]
    assert {entry.state for entry in rungs} == {"pruned", "failed"}  # at 1e30
    assert {state.state(key) for key in state.wanted} == {"done", "failed"}  # stopping there was the plan
    assert all(
        math.isfinite(entry.facts["reached"]["10"])
        for entry in rungs
        if entry.state == "pruned" and entry.facts["reached"]
    )


def test_packs_and_interruptions_change_nothing(tmp_path: Path, alone: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_every(25, monkeypatch)
    starts, worker = starts_until_over(lambda: studied(tmp_path, pack=4))
    assert starts > 2
    assert outcome(worker) == outcome(alone)


def claimed_in_order(worker: Worker, order: int) -> None:
    """Have the worker take what waits in the queue's order, or in reverse."""
    claim = worker.queue.claim
    worker.queue.claim = lambda choose: claim(lambda waiting: choose(waiting[::order]))  # type: ignore[method-assign]


def test_a_fixed_rate_whose_run_is_a_point_of_a_halved_grid_waits_for_the_choices(tmp_path: Path) -> None:
    grid = {"learning_rate_multipliers": [0.5, 1, 2], "alpha_per_rank": [2, 4]}
    protocol = PROTOCOL | {"tuning": {"grid": grid, "halving": {"keep": 0.6}}, "fixed_learning_rates": [0.01]}
    tables = []
    for order in (1, -1):
        worker = worker_on(tmp_path / str(order), pack=1, protocol=protocol, arms=[{"variant": "lora", "rank": 2}])
        claimed_in_order(worker, order)
        worker.work()
        state = snapshot(worker.study, worker.queue)
        table = results_table(worker.study, state, worker.runs_dir)
        tables.append(table.drop(columns=["seconds", "note", "resumed"]))
        runs = {RunDirectory(path.parent).result()["steps_executed"] for path in worker.runs_dir.rglob("result.json")}
        assert runs == {20}
        whole = len(list(worker.runs_dir.rglob("result.json")))
        halves = [path for path in worker.runs_dir.rglob("pruned.txt") if not (path.parent / "result.json").exists()]
        assert table["steps_executed"].sum() == 20 * whole + 10 * len(halves)  # every step counts once
    assert tables[0].equals(tables[1])
