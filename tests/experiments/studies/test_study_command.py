"""A study as a user starts it: what is said before any compute, what is left at the end, and the second time."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from project_paths import ROOT
from tiny_studies import TINY, finished_study, learned, queue_of, start, study_file, study_state_of
from wandb_reading import read_offline_run

from analysis.spectra_tables import spectrum_tables
from experiments.config.errors import ConfigError
from experiments.record.errors import RecordError
from experiments.record.run_dir import RunDirectory
from experiments.studies.consistency import check_protocol, check_runs_dir
from experiments.studies.launch import LaunchOptions
from experiments.studies.protocol.progress import enqueue, families_of, snapshot, state_of
from experiments.studies.queue.storage import QueueError, storage_address
from experiments.studies.spec.frozen import changes, frozen
from experiments.studies.spec.study import load_study
from experiments.studies.status import status_of
from experiments.studies.terminal import describe_workers
from experiments.studies.wandb import StudyWandbLogger
from experiments.studies.workers.worker_process import PlainStudy, open_queue
from experiments.study import parse_arguments


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_study(tmp_path_factory)


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    """The finished study, to change."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return tmp_path


def files_of(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}


def test_every_flag_reaches_the_launch_and_none_is_dropped(tmp_path: Path) -> None:
    file = study_file(tmp_path)
    asked = parse_arguments([str(file), "--set", "protocol.margin=0.5", "--set", "training.steps=7"])
    options = LaunchOptions(**vars(asked))
    assert set(vars(asked)) == {field.name for field in fields(LaunchOptions)}
    assert options.overrides == ["protocol.margin=0.5", "training.steps=7"]
    assert load_study(options.file, options.overrides).protocol.margin == 0.5


def test_a_study_ends_with_a_record_for_each_trial_a_table_and_verdicts(finished: Path) -> None:
    study_state = study_state_of(finished / "tiny.yaml", finished / "runs")
    assert study_state.complete
    assert {entry.state for entry in study_state.entries.values()} == {"done"}
    there = {path.name for path in (finished / "runs" / "tiny").iterdir()}
    assert {entry.facts["folder"] for entry in study_state.entries.values()} <= there
    assert {"study.parquet", "summary.json", "journal.log", "logs"} <= there
    said = (finished / "said").read_text()
    assert f"{len(study_state.wanted)} of {len(study_state.wanted)} trials done" in said
    assert "squared_error of the test split" in said
    assert "\x1b" not in said


def test_only_evaluations_read_the_test_split_and_each_read_is_in_the_ledger(finished: Path) -> None:
    lines = (finished / "runs" / "test_reads.jsonl").read_text().splitlines()
    entries = study_state_of(finished / "tiny.yaml", finished / "runs").entries.values()
    evaluated = {entry.facts["folder"] for entry in entries if entry.given["stage"] == "evaluation"}
    assert {json.loads(line)["run"] for line in lines} == evaluated
    assert len(lines) == len(evaluated)


def test_a_second_start_says_that_all_is_done_and_repeats_nothing(copy: Path) -> None:
    before = files_of(copy / "runs")
    logs = sum(log.stat().st_size for log in (copy / "runs" / "tiny" / "logs").iterdir())
    again = start(copy / "tiny.yaml", copy / "runs", workers=3)
    assert again.code == 0
    assert "trials have ended already" in again.said
    assert files_of(copy / "runs") == before
    assert sum(log.stat().st_size for log in (copy / "runs" / "tiny" / "logs").iterdir()) == logs


def test_the_status_of_a_finished_study_is_read_only(finished: Path) -> None:
    journal = finished / "runs" / "tiny" / "journal.log"
    before = journal.read_bytes()
    status = start(finished / "tiny.yaml", finished / "runs", status=True)
    assert status.code == 0
    assert "0 running, 0 waiting, 0 failed" in status.said
    assert journal.read_bytes() == before


def test_the_status_of_a_study_that_nobody_started_makes_no_folder(tmp_path: Path) -> None:
    status = start(study_file(tmp_path), tmp_path / "runs", status=True)
    assert status.code == 1
    assert "0 of 10 trials done" in status.said
    assert not (tmp_path / "runs").exists()


def test_the_plan_says_arms_trials_packs_and_time_and_leaves_nothing(tmp_path: Path) -> None:
    plan = start(study_file(tmp_path), tmp_path / "runs", plan=True, pack=2)
    assert plan.code == 0
    for part in ("lora r=4", "adalora r=4", "10 trained trials", "of the chosen points", "1 worker", " s "):
        assert part in plan.said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"protocl": {}}, "did you mean 'protocol'"),
        ({"arms": [{"variant": "lora", "rank": []}]}, "an empty list makes no arm"),
        ({"arms": [{"variant": "lora", "rank": 4, "targets": [["nothing.*"]]}]}, "matches no"),
        ({"arms": [{"variant": "lora", "rank": 4, "threads": [1, 2]}]}, "training.threads is another one"),
    ],
)
def test_what_is_wrong_with_the_file_is_said_before_anything_is_made(
    tmp_path: Path, changed: dict[str, object], told: str
) -> None:
    refused = start(study_file(tmp_path, **changed), tmp_path / "runs")
    assert isinstance(refused.error, ConfigError)
    assert told in "\n".join(refused.error.errors)
    assert not (tmp_path / "runs").exists()


def test_what_is_wrong_with_many_arms_is_said_once_with_the_first_of_them(tmp_path: Path) -> None:
    arms = [{"variant": ["lora", "rslora"], "rank": [2, 4], "targets": [["nothing.*"]]}]
    refused = start(study_file(tmp_path, arms=arms), tmp_path / "runs")
    assert isinstance(refused.error, ConfigError)
    [error] = refused.error.errors
    assert error.startswith("lora r=2, rslora r=2, lora r=4 and 1 more arm: target 'nothing.*' matches no")


def test_a_runs_folder_that_cannot_be_written_is_an_error_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    refused = start(study_file(tmp_path), tmp_path / "runs")
    assert isinstance(refused.error, OSError)
    assert "--runs-dir" in str(refused.error)


@pytest.mark.parametrize("storage", ["/dev/null/queue.log", "postgresql+psycopg://nobody@127.0.0.1:1/none"])
def test_a_storage_that_cannot_be_reached_is_an_error(tmp_path: Path, storage: str) -> None:
    refused = start(study_file(tmp_path), tmp_path / "runs", storage=storage, storage_patience=0)
    assert isinstance(refused.error, QueueError)


def test_a_name_that_another_file_has_is_refused(copy: Path) -> None:
    other = study_file(copy, name="other.yaml", arms=[{"variant": "lora", "rank": [2, 4]}])
    refused = start(other, copy / "runs")
    assert isinstance(refused.error, QueueError)
    assert "file = 'tiny.yaml', here it is 'other.yaml'" in str(refused.error)
    assert "another name" in str(refused.error)


def test_what_an_evaluation_has_frozen_may_not_change(copy: Path) -> None:
    protocol = {**TINY["protocol"], "margin": 0.5}
    refused = start(study_file(copy, protocol=protocol), copy / "runs")
    assert isinstance(refused.error, QueueError)
    assert "protocol.margin: was 0.01, is 0.5" in str(refused.error)
    assert "another name" in str(refused.error)


def test_labels_that_are_exchanged_do_not_move_the_reference(tmp_path: Path) -> None:
    def labelled(first: str, second: str) -> dict[str, Any]:
        arms = [{"label": first, "variant": "lora", "rank": 4}, {"label": second, "variant": "adalora", "rank": 4}]
        protocol = {**TINY["protocol"], "reference": {"label": "ref"}}
        return frozen(load_study(study_file(tmp_path, arms=arms, protocol=protocol)))

    (first, second) = changes(labelled("ref", "other"), labelled("other", "ref"))
    assert "was a reference, and is none" in first
    assert "was no reference, and is one" in second


def test_before_an_evaluation_a_changed_file_is_taken_and_the_change_is_said(tmp_path: Path) -> None:
    file, runs_dir = study_file(tmp_path), tmp_path / "runs"
    study = load_study(file)
    queue = open_queue(study, storage_address(None, runs_dir=runs_dir, study="tiny"))
    enqueue(queue, snapshot(study, queue), at_most=3)
    assert check_protocol(study, queue, snapshot(study, queue), tmp_path) is None
    changed = load_study(study_file(tmp_path, arms=[{"variant": "lora", "rank": [4, 8]}], protocol={
        **TINY["protocol"],
        "tuning": {"shared": True, "learning_rate_multipliers": [1, 4], "seeds": [100]}}))  # fmt: skip
    change = check_protocol(changed, queue, snapshot(changed, queue), tmp_path)
    assert change is not None
    assert (change.new, change.done, change.unwanted) == (2, 0, 1)
    assert check_protocol(changed, queue, snapshot(changed, queue), tmp_path) is None


def test_an_arm_more_trains_alone_and_a_failed_trial_again_on_request(copy: Path) -> None:
    before = files_of(copy / "runs")
    file = study_file(copy, arms=[{"variant": ["lora", "adalora"], "rank": 4}, {"variant": "lora", "rank": 2}])
    study, queue = load_study(file), queue_of(file, copy / "runs")
    enqueue(queue, snapshot(study, queue), at_most=1)
    [claim] = queue.claim(lambda waiting: waiting[:1])
    queue.fail(claim, "a reason of its own", {})
    queue.leave()
    started = start(file, copy / "runs")
    assert started.code == 1
    assert "the study's file has changed: 2 trials are new, 14 are done already, 0 are no longer wanted" in started.said
    assert "a reason of its own" in started.said
    assert {path: when for path, when in files_of(copy / "runs").items() if path in before} == before
    again = start(file, copy / "runs", retry_failed=True)
    assert again.code == 0
    study_state = study_state_of(file, copy / "runs")
    assert study_state.state(claim.key) == "done"
    settled = families_of(queue.facts())
    of_family = {arm.label: settled[arm.config_hash] for arm in study.arms}
    assert of_family == {"lora r=4": 1, "adalora r=4": 1, "lora r=2": 2}  # settled before the third was there


def test_a_runs_folder_that_is_not_the_others_is_refused_unless_it_is_said(copy: Path) -> None:
    study, queue = load_study(copy / "tiny.yaml"), queue_of(copy / "tiny.yaml", copy / "runs")
    (copy / "elsewhere" / "tiny").mkdir(parents=True)
    check_runs_dir(study, queue, copy / "runs", separate=False)
    with pytest.raises(QueueError, match="--separate-runs"):
        check_runs_dir(study, queue, copy / "elsewhere", separate=False)
    check_runs_dir(study, queue, copy / "elsewhere", separate=True)


def test_records_of_several_machines_come_together(copy: Path) -> None:
    file, folder = copy / "tiny.yaml", copy / "runs" / "tiny"
    whole, records = learned(file, copy / "runs"), sorted(folder.glob("[al]*-s*"))
    shutil.copytree(copy / "runs", copy / "other")
    for record in records[:7]:
        shutil.rmtree(record)
    shutil.copytree(
        copy / "other" / "tiny" / records[0].name, copy / "other" / "tiny" / f"{records[0].name[:-12]}{'0' * 12}"
    )
    started = start(file, copy / "runs", collect=[copy / "other"])
    assert started.code == 0
    assert "collected 7 run directories; 7 were here already, 1 belong to no trial" in started.said
    assert learned(file, copy / "runs") == whole
    assert sorted(folder.glob("[al]*-s*")) == records
    lines = (copy / "runs" / "test_reads.jsonl").read_text().splitlines()
    assert len(lines) == len(set(lines)) == 4


def test_two_records_of_one_run_that_differ_are_an_error(copy: Path) -> None:
    shutil.copytree(copy / "runs", copy / "other")
    record = min((copy / "other" / "tiny").glob("lora-*"))
    result = json.loads((record / "result.json").read_text())
    (record / "result.json").write_text(json.dumps({**result, "score": 0.5}))
    refused = start(copy / "tiny.yaml", copy / "runs", collect=[copy / "other"])
    assert isinstance(refused.error, RecordError)
    assert record.name in str(refused.error)


def test_a_test_score_that_was_read_elsewhere_of_the_same_run_is_taken_over(copy: Path) -> None:
    shutil.copytree(copy / "runs", copy / "other")
    (folder,) = [path.name for path in (copy / "runs" / "tiny").glob("lora-*-s0-*") if "test" in result_of(path)][:1]
    ours = copy / "runs" / "tiny" / folder
    read, rows = result_of(ours), (ours / "predictions.parquet").read_bytes()
    RunDirectory(ours).add_test({"loss": 0.0}, {"row": torch.tensor([0]), "loss": torch.tensor([0.0]).double()})
    unread = {key: value for key, value in result_of(ours).items() if key != "test"}
    (ours / "result.json").write_text(json.dumps(unread))
    start(copy / "tiny.yaml", copy / "runs", collect=[copy / "other"])
    assert result_of(ours)["test"] == read["test"]
    assert (ours / "predictions.parquet").read_bytes() == rows


def result_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found


def test_trials_are_copied_to_wandb_from_their_records_once(copy: Path) -> None:
    study, study_state = load_study(copy / "tiny.yaml"), study_state_of(copy / "tiny.yaml", copy / "runs")
    some = [key for key, entry in study_state.entries.items() if entry.given["stage"] == "evaluation"][:2]
    study_state = replace(study_state, entries={key: study_state.entries[key] for key in some})
    folders = [copy / "runs" / "tiny" / str(study_state.entries[key].facts["folder"]) for key in some]
    for _ in range(2):
        StudyWandbLogger(study, copy / "runs", mode="auto", planned=10, every_trial=False).follow(
            study_state, seconds=60
        )
    for folder in folders:
        mirrored = read_offline_run(folder)
        result = json.loads((folder / "result.json").read_text())
        assert (mirrored.group, mirrored.name, mirrored.exit_code) == ("tiny", folder.name, 0)
        assert mirrored.summary["score"] == pytest.approx(result["score"])
        losses = [row["train/task_loss"] for row in mirrored.history if "train/task_loss" in row]
        assert len(losses) == result["steps"]
        assert any(found.type == "adapter" for found in mirrored.artifacts.values())
        assert [sigma for _, _, sigma in mirrored.tables["spectra"].rows] == [
            *spectrum_tables([folder]).values["sigma"]
        ]


def test_a_study_of_many_trials_is_not_copied_trial_by_trial(copy: Path) -> None:
    study, study_state = load_study(copy / "tiny.yaml"), study_state_of(copy / "tiny.yaml", copy / "runs")
    StudyWandbLogger(study, copy / "runs", mode="offline", planned=201, every_trial=False).follow(
        study_state, seconds=60
    )
    StudyWandbLogger(study, copy / "runs", mode="disabled", planned=10, every_trial=False).follow(
        study_state, seconds=60
    )
    assert not list((copy / "runs").rglob("wandb"))


def test_a_worker_gets_the_study_that_its_driver_read(tmp_path: Path) -> None:
    arms = [{"variant": ["lora", "adalora"], "rank": [2, {"*": 4}]}, {"variant": "lora", "seed_offset": [100, 300]}]
    study = load_study(study_file(tmp_path, arms=arms))
    again = PlainStudy.of(study).study()
    assert again.arms == study.arms
    assert [arm.seed_offset for arm in again.arms] == [0, 0, 0, 0, 100, 300]
    assert [arm.config for arm in again.arms] == [arm.config for arm in study.arms]
    assert [arm.keys for arm in again.arms] == [arm.keys for arm in study.arms]
    assert (again.config, again.score_name) == (study.config, study.score_name)


@pytest.mark.parametrize("arguments", [[], ["nowhere.yaml"]])
def test_without_a_file_the_command_names_the_studies_there_are(tmp_path: Path, arguments: list[str]) -> None:
    command = [sys.executable, str(ROOT / "experiments" / "study.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"COLUMNS": "300"})
    assert done.returncode == 2
    assert "rank.yaml, rank_per_layer.yaml, smoke.yaml" in done.stderr


@pytest.mark.parametrize(
    ("workers", "said"),
    [
        (0, "no worker trains it now; the command without --status goes on"),
        (1, "1 worker had a heartbeat in the last 5 minutes"),
        (2, "2 workers had a heartbeat in the last 5 minutes"),
    ],
)
def test_a_status_says_who_trains_an_incomplete_study(tmp_path: Path, workers: int, said: str) -> None:
    study = load_study(study_file(tmp_path))
    assert describe_workers(replace(status_of(study, state_of(study, {})), workers=workers)) == said
