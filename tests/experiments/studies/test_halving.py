"""Successive halving: a trial that falls behind what earlier batches reached is pruned, whatever pack it trains in."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from in_process_search import BUDGET, HALVED, RANKS, Impatient, outcome, study_state_of, worker_on

from analysis.study_results.conclusion import conclude
from experiments.record.run_description import describe_run
from experiments.record.run_dir import RunDirectory
from experiments.studies.protocol.trials import PlannedTrial
from experiments.studies.queue.entries import Entry
from experiments.studies.search.allocations import Interval, Priority
from experiments.studies.search.budget import Budget
from experiments.studies.search.samplers import Observation, suggest
from experiments.studies.workers.worker import Worker
from experiments.terminal import Display
from experiments.training.early_stopping import Rungs, threshold
from experiments.training.interruption import Interrupted, Interruption
from experiments.training.loop import train_pack
from experiments.training.trial import RunOptions, TrialRun

RUNGS = (3, 6)  # of 12 steps
SCORES = st.lists(st.floats(-10, 10), min_size=1, max_size=20)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    worker = worker_on(tmp_path_factory.mktemp("halved"), pack=8, **HALVED)
    worker.work()
    return worker


def searched(worker: Worker, label: str) -> list[tuple[PlannedTrial, Entry]]:
    study_state = study_state_of(worker)
    arm = next(arm for arm in study_state.arms if arm.arm.label == label)
    return [(trial, study_state.entries[trial.key]) for trial in arm.tuning.trials if trial.stage == "search"]


@given(scores=SCORES, keep=st.floats(0.05, 0.95), higher=st.booleans())
def test_the_best_part_passes_a_threshold_and_no_more(scores: list[float], keep: float, *, higher: bool) -> None:
    worst = threshold(scores, keep=keep, higher_is_better=higher)
    rungs = Rungs({5: worst}, higher_is_better=higher)
    passed = [score for score in scores if rungs.prunes_at({5: score}) is None]
    assert worst in scores
    assert len([score for score in passed if score != worst]) < keep * len(scores) + 1
    assert len(passed) >= keep * len(scores) - 1e-9


def test_what_is_not_finite_misses_any_threshold_and_raises_none() -> None:
    assert threshold([float("nan"), float("inf")], keep=0.5, higher_is_better=False) is None
    assert threshold([float("nan"), 2.0], keep=0.5, higher_is_better=False) == 2.0
    assert Rungs({1: None, 2: 1.0}).prunes_at({1: float("nan")}) is None
    assert Rungs({1: None, 2: 1.0}).prunes_at({1: float("nan"), 2: float("nan")}) == 2


def test_a_trial_is_pruned_where_it_misses_the_threshold_that_earlier_batches_set(finished: Worker) -> None:
    for label in ("uniform", "priority"):
        of_arm = searched(finished, label)
        for number, (trial, entry) in enumerate(of_arm):
            before = [other.facts["reached"] for _, other in of_arm[: 4 * (number // 4)]]
            for step in RUNGS:
                found = sorted(reached[str(step)] for reached in before if str(step) in reached)
                assert trial.thresholds[step] == (found[(len(found) + 1) // 2 - 1] if found else None)
            misses = [step for step in RUNGS if _misses(trial, entry, step)]
            assert (entry.state == "pruned") == bool(misses)
            if misses:
                assert entry.score is None
                assert max(map(int, entry.facts["reached"])) == entry.facts["steps"] == misses[0]
        assert sum(entry.state == "pruned" for _, entry in of_arm) >= 2
        assert all(entry.state == "done" for _, entry in of_arm[:4])


def test_the_sampler_hears_of_a_pruned_trial_what_it_had_reached_where_it_was_pruned(finished: Worker) -> None:
    shapes = {f"matrices.{n}": (16, 16) for n in range(len(RANKS))}
    search = finished.study.config.search
    assert search is not None
    knobs = {name: Interval(low, high, log=True) for name, (low, high) in search.space.model_dump().items()}
    space = Priority(Budget.of("total_rank", BUDGET, shapes, highest_rank=8)).space() | knobs
    of_arm = [entry for _, entry in searched(finished, "priority")]

    def asked(*, told: bool) -> list[object]:
        tried = [
            Observation(e.given["point"], e.score, _last(e) if told and e.state == "pruned" else None)
            for e in of_arm[:8]
        ]
        found = suggest(space, tried, (8, 9), sampler="tpe", seed=0, higher_is_better=False)
        return [each.point for each in found]

    assert [entry.given["point"] for entry in of_arm[8:]] == asked(told=True) != asked(told=False)


def _last(entry: Entry) -> tuple[int, float]:
    return entry.facts["steps"], entry.facts["reached"][str(entry.facts["steps"])]


def _misses(trial: PlannedTrial, entry: Entry, step: int) -> bool:
    wanted, reached = trial.thresholds[step], entry.facts["reached"].get(str(step))
    return wanted is not None and reached is not None and reached > wanted


def test_trials_with_random_ranks_train_to_their_end(finished: Worker) -> None:
    assert {entry.state for _, entry in searched(finished, "random")} == {"done"}


def test_a_pruned_trial_leaves_what_it_did_and_is_no_score_anywhere(finished: Worker, tmp_path: Path) -> None:
    folder = finished.runs_dir / finished.study.name
    pruned = [(t, e) for label in ("uniform", "priority") for t, e in searched(finished, label) if e.state == "pruned"]
    for _, entry in pruned:
        record = RunDirectory(folder / str(entry.facts["folder"]))
        assert not record.finished
        assert max(row["step"] for row in record.history()) == entry.facts["steps"]
        assert record.scores("loss") == {int(k): v for k, v in entry.facts["reached"].items()}
        assert f"pruned at step {entry.facts['steps']}" in (record.path / "pruned.txt").read_text()
    concluded = conclude(finished.study, study_state_of(finished), finished.runs_dir)
    rows = concluded.table[concluded.table["state"] == "pruned"]
    assert len(rows) == len(pruned) == concluded.summary["trials"]["pruned"]
    assert rows["score"].isna().all()
    assert (rows["steps_executed"] < 12).all()


def test_optuna_knows_them_as_pruned_with_what_they_reached(finished: Worker) -> None:
    with finished.queue.store.use() as storage:
        trials = storage.get_all_trials(finished.queue._study_id)
    pruned = [trial for trial in trials if trial.state.name == "PRUNED"]
    assert len(pruned) == sum(e.state == "pruned" for e in study_state_of(finished).entries.values())
    assert all(trial.intermediate_values for trial in pruned)


def test_packs_prune_what_is_pruned_alone(finished: Worker, tmp_path: Path) -> None:
    worker = worker_on(tmp_path, pack=1, **HALVED)
    worker.work()
    assert outcome(worker) == outcome(finished)


def test_stops_of_the_worker_change_no_stop_of_a_trial(finished: Worker, tmp_path: Path) -> None:
    stops = 0
    while True:
        worker = worker_on(tmp_path, pack=8, interruption=Impatient(7 + stops), **HALVED)
        try:
            worker.work()
            break
        except Interrupted:
            stops += 1
    assert stops >= 6
    costs = [e.facts for e in study_state_of(worker).entries.values() if e.state == "pruned"]
    assert all(cost["steps_executed"] >= cost["steps"] for cost in costs)
    assert outcome(worker) == outcome(finished)


def test_a_trial_whose_record_another_one_made_is_pruned_all_the_same(finished: Worker, tmp_path: Path) -> None:
    """Two arms may come to one configuration; what becomes of a trial may not depend on which was first."""
    trial, entry = next((t, e) for t, e in searched(finished, "priority") if e.state == "pruned")
    shutil.copytree(finished.runs_dir / finished.study.name, tmp_path / finished.study.name)
    worker = worker_on(tmp_path, pack=8, **HALVED)
    record = RunDirectory(tmp_path / worker.study.name / str(entry.facts["folder"]))
    no_thresholds = Rungs(dict.fromkeys(RUNGS))  # as in the first batch of another arm
    options = RunOptions(test=None, runs_dir=tmp_path, wandb_mode="disabled", rungs=no_thresholds)
    rank_total = sum(trial.knobs["rank"].values())
    run = describe_run(trial.config, worker.context, tmp_path, rank_total=rank_total, start=None)
    whole = TrialRun(trial.config, worker.context, run, options, Display.silent())
    train_pack(worker.context, [whole], interruption=Interruption())
    assert record.finished
    (tmp_path / worker.study.name / "journal.log").unlink()
    again = worker_on(tmp_path, pack=8, **HALVED)
    again.work()
    ended, before = study_state_of(again).entries, study_state_of(finished).entries
    assert {key: (e.state, e.score) for key, e in ended.items()} == {k: (e.state, e.score) for k, e in before.items()}
