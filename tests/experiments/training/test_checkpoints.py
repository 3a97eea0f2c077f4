"""A run that cannot be lost: killed at any moment and started again, it ends bit-identical."""

import os
import random
import signal
import sys
import time
from pathlib import Path
from shutil import copytree

import pytest
from forked_python import ForkedPython
from project_paths import CONFIGS, ROOT
from wandb_reading import read_offline_run

from experiments.record.run_dir import RunDirectory

STEPS, EVERY = 400, 25
COMMAND = [
    sys.executable, str(ROOT / "experiments" / "run.py"), "--config", str(CONFIGS / "planted.yaml"),
    "--set", f"steps={STEPS}", "--set", f"checkpoint_every={EVERY}", "--set", "task.evaluation_rows=64",
    "--set", "evaluate_every=60", "--set", "task.matrices=[{rank: 4}, {rank: 2}]",
]  # fmt: skip
KNOBS = {
    "lora": ["--rank", "3", "--set", "dropout=0.2"],
    "adalora": ["--rank", "2", "--set", "dropout=0.1", "--set", "prune_every=3"],
    "lora_plus": ["--rank", "2", "--set", "weight_decay=0.1"],
    "full": [],
}


def start(folder: Path, *arguments: str) -> ForkedPython:
    (printed := folder / "printed").write_bytes(b"")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return ForkedPython([*COMMAND, *arguments], cwd=folder, env=environment, stdout=printed, stderr=printed)


def run(folder: Path, *arguments: str, code: int = 0) -> str:
    """From its start to its end; what it printed."""
    return end(start(folder, *arguments), folder, code)


def end(process: ForkedPython, folder: Path, code: int) -> str:
    process.wait(timeout=120)
    printed = (folder / "printed").read_text()
    assert process.returncode == code, printed
    return printed


def record(folder: Path) -> RunDirectory:
    (found,) = (path for path in (folder / "runs" / "single").iterdir() if path.is_dir())
    return RunDirectory(found)


def reach(process: ForkedPython, folder: Path, step: int) -> None:
    """Wait until the run has logged a step, wherever exactly it is by then."""
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        paths = list(folder.glob("runs/single/*/metrics.jsonl"))
        if paths and paths[0].read_bytes().count(b"\n") >= step:
            return
        time.sleep(0.002)


def kill_at(folder: Path, step: int, *arguments: str) -> None:
    process = start(folder, *arguments)
    reach(process, folder, step)
    process.kill()
    process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["adalora", "lora", "lora_plus", "full"])
def test_a_run_killed_at_five_random_moments_ends_bit_identical(tmp_path: Path, variant: str) -> None:
    arguments = ["--variant", variant, *KNOBS[variant], "--wandb", "disabled"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    run(whole, *arguments)
    for step in sorted(random.Random(variant).sample(range(5, STEPS - 60), 5)):
        kill_at(killed, step, *arguments)
        assert not record(killed).finished
    run(killed, *arguments)

    ours, theirs = record(killed), record(whole)
    assert ours.history() == theirs.history()
    for path in (*theirs.path.glob("*.safetensors"), theirs.path / "predictions.parquet"):
        assert path.read_bytes() == (ours.path / path.name).read_bytes()
    result = ours.result()
    assert result["score"] == theirs.result()["score"]
    assert result["best"] == theirs.result()["best"]
    assert STEPS <= result["steps_executed"] <= STEPS + 5 * EVERY
    assert 1 <= len(result["resumed_from"]) <= 5
    assert all(step % EVERY == 0 for step in result["resumed_from"])
    assert {path.name for path in ours.path.iterdir()} == {path.name for path in theirs.path.iterdir()}


@pytest.mark.slow
def test_a_run_resumed_after_ctrl_c_executes_no_step_twice_and_its_wandb_run_is_whole(tmp_path: Path) -> None:
    process = start(tmp_path, "--wandb", "offline")
    reach(process, tmp_path, 60)
    process.send_signal(signal.SIGINT)
    assert "the same command goes on from there" in end(process, tmp_path, 130)
    assert "going on from the checkpoint at step" in run(tmp_path, "--wandb", "offline")
    assert record(tmp_path).result()["steps_executed"] == STEPS
    mirrored = read_offline_run(record(tmp_path).path)
    assert [row["step"] for row in mirrored.history if "train/task_loss" in row] == list(range(1, STEPS + 1))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a run was killed after a checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    kill_at(folder, 60, "--wandb", "disabled")
    return folder


@pytest.mark.parametrize("damage", ["torn", "empty", "of another run"])
def test_a_torn_or_foreign_checkpoint_is_refused_with_the_way_out(tmp_path: Path, killed: Path, damage: str) -> None:
    copytree(killed, tmp_path, dirs_exist_ok=True)
    path = record(tmp_path).path / "checkpoint.safetensors"
    content = path.read_bytes()
    config_hash = record(tmp_path).path.name[-12:].encode()
    changed = {"torn": content[:-200], "empty": b"", "of another run": content.replace(config_hash, b"0" * 12)}
    path.write_bytes(changed[damage])
    assert f"delete {path} to start this run again" in run(tmp_path, "--wandb", "disabled", code=2)
    assert path.read_bytes() == changed[damage]
    path.unlink()
    run(tmp_path, "--wandb", "disabled")


def test_a_run_that_goes_on_keeps_nothing_that_a_kill_left_half_written(tmp_path: Path, killed: Path) -> None:
    copytree(killed, tmp_path, dirs_exist_ok=True)
    for name in (".tmpTYupMD", "checkpoint.safetensors.partial", "result.json.123.partial"):
        (record(tmp_path).path / name).write_bytes(b"half")
    run(tmp_path, "--wandb", "disabled")
    assert record(tmp_path).finished
    assert not [path for path in record(tmp_path).path.iterdir() if ".partial" in path.name or ".tmp" in path.name]


def test_a_failed_run_may_be_started_again_and_fails_again(tmp_path: Path) -> None:
    for _ in range(2):
        run(tmp_path, "--set", "learning_rate=1e30", "--wandb", "disabled", code=1)
    assert "not finite" in (record(tmp_path).path / "error.txt").read_text()


def test_how_often_a_checkpoint_is_written_is_not_part_of_what_a_run_is(tmp_path: Path) -> None:
    run(tmp_path, "--wandb", "disabled")
    assert "already finished" in run(tmp_path, "--wandb", "disabled", "--set", "checkpoint_every=0")
    assert record(tmp_path).result()["resumed_from"] == []
