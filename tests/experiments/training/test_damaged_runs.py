"""A run whose files are damaged or deleted is refused, or fails with the reason; what can be mended goes on."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_runs import EVERY, STEPS, at_step, is_as, only_run, tiny_run, unfinished_run

from experiments.record.run_dir import RunDirectory

FROM_THE_START = "to start this run again from its first step"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The run, never interrupted."""
    runs_dir = tmp_path_factory.mktemp("whole")
    assert tiny_run(runs_dir) == 0
    return only_run(runs_dir)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs folder of the run, stopped after step 6; not to change."""
    runs_dir = tmp_path_factory.mktemp("stopped")
    unfinished_run(runs_dir)
    return runs_dir


@pytest.fixture
def cut(tmp_path: Path, stopped: Path) -> RunDirectory:
    """A copy of that run."""
    shutil.copytree(stopped, tmp_path / "runs")
    return only_run(tmp_path / "runs")


def resumes(run: RunDirectory) -> int:
    return tiny_run(run.path.parents[1])


# The checkpoint


def change_two_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    content[-300] ^= 16
    path.write_bytes(content)


def change_metadata(**changed: str | None) -> Callable[[Path], None]:
    """Other metadata, None for a key that is gone."""

    def change(path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() | changed
        save_file(load_file(path), path, metadata={key: value for key, value in meta.items() if value is not None})

    return change


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (change_two_bytes, "is damaged: its content is not what was written"),
        (change_metadata(step="8"), "is damaged"),
        (change_metadata(seconds="0.5"), "is damaged"),
        (change_metadata(metrics_bytes="1"), "is damaged"),
        (change_metadata(digest=None, step="four"), "says no step, seconds and metrics_bytes"),
        (change_metadata(digest=None, metrics_bytes=None), "says no step, seconds and metrics_bytes"),
        (change_metadata(digest=None, step="-1"), "is of no step that a run makes"),
        (change_metadata(digest=None, step="999"), f"is of step 999, this run has {STEPS}"),
    ],
)
def test_a_changed_checkpoint_is_refused_with_the_way_out(
    cut: RunDirectory,
    whole: RunDirectory,
    damage: Callable[[Path], None],
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damage(cut.path / "checkpoint.safetensors")
    capsys.readouterr()
    assert resumes(cut) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert f"{cut.path / 'checkpoint.safetensors'} {says}" in error
    assert FROM_THE_START in error
    (cut.path / "checkpoint.safetensors").unlink()
    assert resumes(cut) == 0
    assert is_as(cut, whole)


def test_a_checkpoint_of_an_earlier_version_is_gone_on_from_with_a_note(
    cut: RunDirectory, whole: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    change_metadata(digest=None, metrics_sha256=None)(cut.path / "checkpoint.safetensors")
    assert resumes(cut) == 0
    assert capsys.readouterr().out.count("by an earlier version without a digest") == 1
    assert is_as(cut, whole)
    assert cut.result()["resumed_from"] == [EVERY]


# The metrics


@pytest.mark.parametrize("left", [0, 100, None])
def test_metrics_that_a_power_cut_has_shortened_are_written_again_from_the_first_step(
    cut: RunDirectory, whole: RunDirectory, left: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cut.path / "metrics.jsonl"
    path.unlink() if left is None else os.truncate(path, left)
    assert resumes(cut) == 0
    printed = capsys.readouterr().out
    assert f"{path} has lost some of the" in printed
    assert "starting again from the first step" in printed
    assert "going on from the checkpoint" not in printed
    assert is_as(cut, whole)
    assert cut.result()["steps_executed"] == STEPS + EVERY, "at least so many were executed and lost"


def test_a_kill_that_tears_the_last_row_costs_nothing(cut: RunDirectory, whole: RunDirectory) -> None:
    path = cut.path / "metrics.jsonl"
    os.truncate(path, path.stat().st_size - 20)
    assert resumes(cut) == 0
    assert is_as(cut, whole)


@pytest.mark.parametrize("earlier", [False, True])
def test_metrics_that_are_damaged_in_the_middle_are_named_with_the_way_out(
    cut: RunDirectory, earlier: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    path, checkpoint = cut.path / "metrics.jsonl", cut.path / "checkpoint.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:50] + bytes(30) + content[80:])
    if earlier:
        change_metadata(digest=None, metrics_sha256=None)(checkpoint)
    capsys.readouterr()
    assert resumes(cut) == 2
    error = capsys.readouterr().err
    assert str(path) in error
    assert f"restore that file from a copy, or delete {checkpoint}" in error
    checkpoint.unlink()
    assert resumes(cut) == 0


def test_rows_are_on_the_disk_before_the_checkpoint_that_speaks_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(os, "fsync", lambda number: done.append(Path(f"/proc/self/fd/{number}").readlink().name))
    monkeypatch.setattr(Path, "replace", lambda path, to: done.append(f"renamed {to.name}") or replace(path, to))
    run = unfinished_run(tmp_path)
    at = done.index("renamed checkpoint.safetensors")
    assert done[at - 2] == "metrics.jsonl"
    assert done[at - 1].startswith("checkpoint.safetensors.")
    assert done[at + 1] == run.path.name, "and the folder after it"


# The other files


@pytest.mark.parametrize("content", [None, "", "a: [1", "[1, 2]"])
@pytest.mark.parametrize("name", ["config.yaml", "environment.json"])
def test_a_lost_or_damaged_description_is_written_again_when_a_run_goes_on(
    cut: RunDirectory, whole: RunDirectory, name: str, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (cut.path / name).unlink() if content is None else (cut.path / name).write_text(content)
    assert resumes(cut) == 0
    assert f"{cut.path / name} was lost or damaged and is written again" in capsys.readouterr().out
    assert is_as(cut, whole)
    assert cut.environment()["start_sha256"] is None


@pytest.mark.parametrize("content", ["", "{}", '{"executed": 3, "resumed_from": ["4"]}', "\0\0"])
def test_a_damaged_progress_file_is_named_with_the_way_out(
    cut: RunDirectory, whole: RunDirectory, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cut.path / "progress.json"
    path.write_text(content)
    capsys.readouterr()
    assert resumes(cut) == 2
    assert f"{path} is damaged" in (error := capsys.readouterr().err)
    assert "delete it to go on" in error
    path.unlink()
    assert resumes(cut) == 0
    assert is_as(cut, whole)


def test_a_link_in_the_place_of_a_run_directory_is_named(cut: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    (cut.path / "checkpoint.safetensors").unlink()
    cut.path.rename(elsewhere := cut.path.with_name("elsewhere"))
    cut.path.symlink_to(elsewhere)
    assert resumes(cut) == 2
    assert f"{cut.path} is no folder of its own" in capsys.readouterr().err


def replace_by_another(run: RunDirectory) -> None:
    run.path.rename(run.path.with_name("moved"))
    run.path.mkdir()
    (run.path / "metrics.jsonl").write_text('{"step": 1}\n')


LOST: dict[str, Callable[[RunDirectory], object]] = {
    "the folder": lambda run: shutil.rmtree(run.path),
    "config.yaml": lambda run: (run.path / "config.yaml").unlink(),
    "config.yaml changed": lambda run: (run.path / "config.yaml").write_text("seed: 1\n"),
    "environment.json": lambda run: (run.path / "environment.json").unlink(),
    "metrics.jsonl": lambda run: (run.path / "metrics.jsonl").unlink(),
    "metrics.jsonl cut off": lambda run: os.truncate(run.path / "metrics.jsonl", 50),
    "another folder": replace_by_another,
}


@pytest.mark.parametrize("lost", LOST)
@pytest.mark.parametrize("step", [6, STEPS])
def test_a_run_that_loses_its_directory_or_a_file_of_it_fails_and_is_never_finished(
    tmp_path: Path, whole: RunDirectory, lost: str, step: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with at_step(step, LOST[lost]):
        assert tiny_run(tmp_path) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"failed: {tmp_path / 'single'}")
    assert "was deleted" in error or "was changed" in error
    assert "the same command goes on from the last checkpoint" in error
    assert not list((tmp_path / "single").glob("*/result.json"))
    if step < STEPS:  # no step more is spent on it
        assert not list((tmp_path / "single").glob("lora-*/adapter_model.safetensors"))
    shutil.rmtree(tmp_path / "single" / "moved", ignore_errors=True)
    assert tiny_run(tmp_path) == 0
    assert is_as(only_run(tmp_path), whole)


def test_an_adapter_that_is_deleted_before_the_result_is_no_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check = RunDirectory.check

    def lose(run: RunDirectory) -> None:
        for path in run.path.glob("adapter_model*"):
            path.unlink()
        check(run)

    monkeypatch.setattr(RunDirectory, "check", lose)
    assert tiny_run(tmp_path) == 1
    assert "adapter_model.safetensors was deleted" in capsys.readouterr().err
    assert not only_run(tmp_path).finished
