"""Run directories of a study that are not what their runs wrote are named and refused, wherever they are read."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from in_process_study import worker_on
from tiny_studies import finished_study, start, study_state_of

from experiments.record.errors import RecordError
from experiments.record.ledger import lines_of_study, note_test_read
from experiments.record.run_dir import RunDirectory
from experiments.studies.spec.study import load_study
from experiments.studies.wandb import StudyWandbLogger


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_study(tmp_path_factory)


@pytest.fixture
def copy(tmp_path: Path, finished: Path) -> Path:
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def a_trial(copy: Path, stage: str = "evaluation") -> tuple[str, RunDirectory]:
    """Its key and its run directory."""
    entries = study_state_of(copy / "tiny.yaml", copy / "runs").entries
    key = next(key for key, entry in entries.items() if entry.given["stage"] == stage)
    return key, RunDirectory(copy / "runs" / "tiny" / str(entries[key].facts["folder"]))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "adapter_model.safetensors": lambda path: path.unlink(),
    "metrics.jsonl": lambda path: os.truncate(path, 100),
    "predictions.parquet": lambda path: os.truncate(path, 100),
    "result.json": lambda path: path.write_text(""),
    "config.yaml": lambda path: path.write_text("a: [1"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_run_directory_is_not_collected(copy: Path, name: str) -> None:
    shutil.copytree(copy / "runs", copy / "other")
    _, run = a_trial(copy)
    DAMAGE[name](copy / "other" / "tiny" / run.path.name / name)
    refused = start(copy / "tiny.yaml", copy / "runs", collect=[copy / "other"])
    assert isinstance(refused.error, RecordError)
    assert str(copy / "other" / "tiny" / run.path.name / name) in str(refused.error)
    assert "restore it from a copy, or move" in str(refused.error)


def test_runs_of_an_earlier_version_are_collected_with_one_note(copy: Path) -> None:
    shutil.copytree(copy / "runs", copy / "other")
    for path in (copy / "other" / "tiny").glob("lora-*/result.json"):
        stored = json.loads(path.read_text())
        del stored["files_sha256"]
        path.write_text(json.dumps(stored))
    started = start(copy / "tiny.yaml", copy / "runs", collect=[copy / "other"])
    assert started.code == 0
    assert started.said.count("7 runs of an earlier version have no files_sha256") == 1


def test_a_damaged_result_is_named_where_the_table_is_made(copy: Path) -> None:
    _, run = a_trial(copy)
    (run.path / "result.json").write_text('{"score": ')
    refused = start(copy / "tiny.yaml", copy / "runs")
    assert isinstance(refused.error, RecordError)
    assert f"{run.path / 'result.json'} is damaged" in str(refused.error)


def test_a_finished_trial_that_a_worker_finds_damaged_has_no_score_but_the_file_and_the_way_out(tmp_path: Path) -> None:
    tuning = {"shared": True, "learning_rate_multipliers": [0.5, 1], "seeds": [100]}
    protocol = {"tuning": tuning, "evaluation": {"seeds": [0]}, "margin": 0.01}
    few = {"arms": [{"variant": "lora", "rank": 2}], "protocol": protocol}
    worker_on(tmp_path, pack=1, **few).work()
    (tmp_path / "tiny" / "journal.log").unlink()
    lost = min((tmp_path / "tiny").glob("lora-*/adapter_model.safetensors"))
    lost.unlink()
    worker = worker_on(tmp_path, pack=1, **few)
    worker.work()
    [entry] = [entry for entry in worker.queue.entries() if entry.facts.get("folder") == lost.parent.name]
    assert (entry.state, entry.score) == ("failed", None)
    assert f"{lost} is missing; restore it from a copy" in str(entry.facts["failure"])


def test_a_trial_with_changed_metrics_is_not_copied_to_wandb_and_that_is_said(copy: Path) -> None:
    key, run = a_trial(copy)
    os.truncate(run.path / "metrics.jsonl", 100)
    study, state = load_study(copy / "tiny.yaml"), study_state_of(copy / "tiny.yaml", copy / "runs")
    for other in [other for other in state.entries if other != key]:
        del state.entries[other]  # type: ignore[attr-defined]
    mirror = StudyWandbLogger(study, copy / "runs", mode="offline", planned=10, every_trial=False)
    mirror.follow(state, seconds=60)
    assert [f"not copied to W&B: {run.path / 'metrics.jsonl'}" in warning for warning in mirror.warnings] == [True]
    assert not (run.path / "wandb").exists()


def test_a_line_of_the_ledger_that_a_kill_has_torn_stays_one_of_its_own(tmp_path: Path) -> None:
    note_test_read(tmp_path, data="0", study="s", run="a", purpose="tuned")
    (ledger := tmp_path / "test_reads.jsonl").write_text(ledger.read_text() + '{"time": "20')
    note_test_read(tmp_path, data="0", study="s", run="b", purpose="tuned")
    note_test_read(tmp_path, data="0", study="another", run="c", purpose="tuned")
    assert [json.loads(line)["run"] for line in lines_of_study(tmp_path, "s")] == ["a", "b"]


@pytest.mark.parametrize("line", ["\0\0\0", '{"time": 3}', "x"])
def test_a_damaged_line_of_the_ledger_is_named(tmp_path: Path, line: str) -> None:
    note_test_read(tmp_path, data="0", study="s", run="a", purpose="tuned")
    with (tmp_path / "test_reads.jsonl").open("a") as file:
        file.write(f"{line}\n")
    note_test_read(tmp_path, data="0", study="s", run="b", purpose="tuned")
    with pytest.raises(RecordError, match=r"test_reads.jsonl, line 2: .*mend that line"):
        lines_of_study(tmp_path, "s")
