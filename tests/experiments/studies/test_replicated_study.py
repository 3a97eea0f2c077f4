"""A study with replicated tuning: one run serves a seed's choice and its score, whatever packs and kills do."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from in_process_study import TREE, interrupt_every, outcome, starts_until_over, worker_on

from analysis.study_results.results import results_table
from experiments.record.ledger import LEDGER
from experiments.record.run_dir import RunDirectory
from experiments.studies.protocol.progress import snapshot
from experiments.studies.protocol.trials import BEST_POINT, TUNED
from experiments.studies.workers.worker import Worker

GRID = {"learning_rate_multipliers": [0.5, 1, 1e30], "alpha_per_rank": [2, 4]}
REPLICATED = {
    "protocol": TREE["protocol"] | {"tuning": {"grid": GRID}},
    "arms": [{"variant": ["lora", "adalora"], "rank": 2}, {"variant": "full"}],
}


def replicated(folder: Path, *, pack: int) -> Worker:
    return worker_on(folder, pack=pack, **REPLICATED)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    worker = replicated(tmp_path_factory.mktemp("alone"), pack=1)
    worker.work()
    return worker


def test_packs_give_what_trials_give_alone(tmp_path: Path, alone: Worker) -> None:
    worker = replicated(tmp_path, pack=6)
    worker.work()
    assert outcome(worker) == outcome(alone)


def test_interruptions_change_nothing(tmp_path: Path, alone: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_every(50, monkeypatch)
    starts, worker = starts_until_over(lambda: replicated(tmp_path, pack=4))
    assert starts > 3
    assert outcome(worker) == outcome(alone)


def test_each_seeds_score_is_the_test_score_of_the_run_that_it_chose_and_no_other_run_is_read(alone: Worker) -> None:
    state = snapshot(alone.study, alone.queue)
    folder = alone.runs_dir / "tiny"
    read = set()
    for progress in state.arms:
        for setting in (TUNED, BEST_POINT):
            for trial in progress.evaluations(setting):
                entry = state.entries[trial.key]
                assert trial.run_of is not None
                run = state.entries[trial.run_of]
                assert entry.facts["folder"] == run.facts["folder"]
                result = RunDirectory(folder / entry.facts["folder"]).result()
                assert (entry.facts["test"], entry.score) == (result["test"]["loss"], run.score)
                read.add(entry.facts["folder"])
    finished = [path.parent for path in folder.glob("*/result.json")]
    assert {path.name for path in finished if "test" in RunDirectory(path).result()} == read
    assert len(read) < len(finished)


def test_a_run_that_was_trained_again_for_its_read_and_came_out_otherwise_is_told_of(alone: Worker) -> None:
    state = snapshot(alone.study, alone.queue)
    reads = [trial for trial in state.wanted.values() if trial.run_of is not None]
    tuned = str(reads[0].run_of)
    entries = dict(state.entries) | {tuned: replace(state.entries[tuned], score=77.0)}
    notes = results_table(alone.study, replace(state, entries=entries), alone.runs_dir).set_index("key")["note"]
    assert "trained again" in notes[reads[0].key]
    assert "chosen for 77.0" in notes[reads[0].key]
    assert results_table(alone.study, state, alone.runs_dir)["note"].isna().all()


def test_every_run_is_trained_once(alone: Worker) -> None:
    state = snapshot(alone.study, alone.queue)
    runs = {state.entries[trial.key].facts["folder"] for trial in state.wanted.values()}
    trained = [trial for trial in state.wanted.values() if trial.run_of is None]
    assert len(runs) == len(trained)


def test_the_ledger_tells_reads_of_chosen_runs_from_those_at_the_best_point(alone: Worker) -> None:
    state = snapshot(alone.study, alone.queue)
    expected = {
        state.entries[trial.key].facts["folder"]: " and ".join(trial.settings)
        for trial in state.wanted.values()
        if trial.stage == "evaluation"
    }
    lines = [json.loads(line) for line in (alone.runs_dir / LEDGER).read_text().splitlines()]
    assert {line["run"]: line["purpose"] for line in lines} == expected
    assert len(lines) == len(expected)
    assert set(expected.values()) >= {"tuned and best point"}
