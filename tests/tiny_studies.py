"""A study that trains in seconds, and how it is started and watched in tests."""

import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock
from project_paths import CONFIGS, ROOT
from rich.console import Console

from analysis.study_results.conclusion import conclude
from experiments.record.run_dir import RunDirectory
from experiments.studies.launch import LaunchOptions, launch
from experiments.studies.protocol.progress import StudyState, snapshot
from experiments.studies.queue.storage import Address
from experiments.studies.queue.trial_queue import TrialQueue
from experiments.studies.spec.study import load_study
from experiments.terminal import Display

CHECKPOINT_EVERY = 10
TINY: dict[str, Any] = {
    "name": "tiny",
    "config": str(CONFIGS / "planted.yaml"),
    "set": {
        "training.steps": 60,
        "training.evaluate_every": 0,
        "training.checkpoint_every": CHECKPOINT_EVERY,
        "training.batch_size": 64,
        "task.evaluation_rows": 64,
        "wandb.mode": "disabled",
    },
    "arms": [{"variant": ["lora", "adalora"], "rank": 4}],
    "protocol": {
        "tuning": {"shared": True, "learning_rate_multipliers": [0.25, 1, 4], "seeds": [100]},
        "evaluation": {"seeds": [0, 1]},
        "reference": {"variant": "lora"},
        "margin": 0.01,
    },
}


def study_file(folder: Path, *, name: str = "tiny.yaml", **changed: Any) -> Path:
    """The tiny study, with other values for some of its keys."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(yaml.safe_dump({**TINY, **changed}))
    return folder / name


@dataclass
class Started:
    """A start of a study: how it ended, and what it said."""

    code: int | None = None
    error: BaseException | None = None
    output: io.StringIO = field(default_factory=io.StringIO)

    @property
    def said(self) -> str:
        return self.output.getvalue()


def start(file: Path, runs_dir: Path, **asked: Any) -> Started:
    """Start a study in this process; its workers are processes of their own."""
    started = Started()
    display = Display(Console(file=started.output, width=200, highlight=False))
    try:
        started.code = launch(LaunchOptions(file=file, runs_dir=runs_dir, **asked), display, conclude=conclude)
    except Exception as error:
        started.error = error
    return started


class Running:
    """A study that is started in a thread; `ended` waits for it."""

    def __init__(self, file: Path, runs_dir: Path, **asked: Any) -> None:
        self.thread = threading.Thread(target=lambda: self._run(file, runs_dir, asked))
        self.thread.start()

    def _run(self, file: Path, runs_dir: Path, asked: Mapping[str, Any]) -> None:
        self.started = start(file, runs_dir, **asked)

    @property
    def over(self) -> bool:
        return not self.thread.is_alive()

    def ended(self) -> Started:
        self.thread.join(timeout=120)
        assert self.over
        return self.started


def queue_of(file: Path, runs_dir: Path) -> TrialQueue:
    name = load_study(file).name
    queue = TrialQueue.find(Address(journal=runs_dir / name / "journal.log"), name)
    assert queue is not None
    return queue


def study_state_of(file: Path, runs_dir: Path) -> StudyState:
    return snapshot(load_study(file), queue_of(file, runs_dir))


def learned(file: Path, runs_dir: Path) -> dict[str, tuple[object, ...]]:
    """By key all that a trial came to: its scores in the queue and in its record, and every tensor's bytes."""
    found = {}
    for key, entry in study_state_of(file, runs_dir).entries.items():
        path = runs_dir / load_study(file).name / str(entry.facts["folder"])
        result = RunDirectory(path).result()
        tensors = {str(each.relative_to(path)): each.read_bytes() for each in sorted(path.rglob("*.safetensors"))}
        scores = entry.score, entry.facts["loss"], entry.facts.get("test"), result["score"], result.get("test")
        found[key] = (entry.state, *scores, tensors)
    return found


def lost_steps(file: Path, runs_dir: Path) -> dict[str, int]:
    """By key how many steps were executed twice."""
    entries = study_state_of(file, runs_dir).entries
    folders = {key: runs_dir / "tiny" / str(entry.facts["folder"]) for key, entry in entries.items()}
    results = {key: RunDirectory(folder).result() for key, folder in folders.items()}
    return {key: result["steps_executed"] - result["steps"] for key, result in results.items()}


def wait_for(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `what` returns, once it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.01)
    raise AssertionError(f"nothing for {seconds} seconds")


def checkpoints(runs_dir: Path) -> list[tuple[Path, int]]:
    """Those that trials in progress have written, with the moment of each."""
    found = []
    for path in (runs_dir / "tiny" / ".attempts").glob("*/checkpoint.safetensors"):
        try:
            found.append((path, path.stat().st_mtime_ns))
        except FileNotFoundError:  # its trial has ended meanwhile
            continue
    return found


def worker_pids(file: Path, runs_dir: Path) -> list[int]:
    return [heartbeat["process"]["pid"] for heartbeat in queue_of(file, runs_dir)._liveness.heartbeats().values()]


def kill_workers(file: Path, runs_dir: Path) -> int:
    """How many there were."""
    killed = 0
    for pid in worker_pids(file, runs_dir):
        with suppress(ProcessLookupError):  # ended meanwhile
            os.kill(pid, signal.SIGKILL)
            killed += 1
    return killed


def finished_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a study that one worker finished in packs of 8: its file, its runs, what it said. Not to change."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "finished"
    with FileLock(folder.with_suffix(".lock")):  # once for all processes of the test run
        if not (folder / "said").exists():
            started = start(study_file(folder), folder / "runs", pack=8)
            assert (started.error, started.code) == (None, 0)
            (folder / "said").write_text(started.said)
    return folder


@contextmanager
def command(folder: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    """The command as a user types it, in a process group of its own, of which nothing is left."""
    words = [sys.executable, str(ROOT / "experiments" / "study.py"), "tiny.yaml", *arguments]
    process = subprocess.Popen(
        words, cwd=folder, env=os.environ | {"COLUMNS": "150"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
