"""The directories of a study's trials: each attempt has its own; the one that ends becomes the trial's run directory.

So a stalled worker whose trial was re-claimed cannot overwrite the new owner's results; the new owner resumes from its
last checkpoint.
"""

import shutil
from contextlib import suppress
from pathlib import Path

from experiments.record.run_dir import RunDirectory
from experiments.training.checkpoint import CHECKPOINT, PROGRESS

ATTEMPTS = ".attempts"
PATIENCE_SECONDS = (
    60.0  # with whoever has the run directory locked: it is copied to W&B, or published by another worker
)
ADOPTED = (CHECKPOINT, "metrics.jsonl", PROGRESS, "config.yaml", "environment.json")


def attempt_at(run_dir: RunDirectory, key: str, number: int) -> RunDirectory:
    """The directory of attempt `number` at the trial `key`.

    Two trials of one configuration, as searches may ask for, have one run directory and attempts of their own.
    """
    return RunDirectory(run_dir.path.parent / ATTEMPTS / f"{run_dir.path.name}.{key}.{number}")


def adopt(attempt: RunDirectory) -> None:
    """A new one begins with what the attempt that came farthest has left, if that is not cleared away meanwhile."""
    earlier = [path for path in _attempts_like(attempt) if (path / CHECKPOINT).exists()]
    if not earlier or attempt.path.exists():
        return
    farthest = max(earlier, key=lambda path: _bytes(path / "metrics.jsonl"))
    attempt.path.mkdir(parents=True)
    try:
        for name in ADOPTED:  # the checkpoint first: the metrics that it speaks of are there by then
            shutil.copyfile(farthest / name, attempt.path / name)
    except FileNotFoundError:  # its stalled worker has woken up
        shutil.rmtree(attempt.path)


def publish(attempt: RunDirectory, run_dir: RunDirectory) -> bool:
    """The attempt becomes the trial's run directory. Of several finished ones the first stays: they are the same.

    False where it is not there any more: its worker stalled, and another has re-claimed the trial.
    """
    with run_dir.locked(patience=PATIENCE_SECONDS):
        there = attempt.path.exists()
        if there and not run_dir.finished:
            if run_dir.path.exists():
                shutil.rmtree(run_dir.path)
            attempt.path.replace(run_dir.path)
        discard(attempt)
    return there


def publish_finished(attempt: RunDirectory, run_dir: RunDirectory) -> None:
    """An earlier attempt that finished, but whose worker could not tell, becomes the trial's run directory."""
    for earlier in map(RunDirectory, _attempts_like(attempt)):
        if earlier.finished:
            publish(earlier, run_dir)


def discard(attempt: RunDirectory) -> None:
    """It and all earlier attempts leave nothing; at a later one another worker may be."""
    for path in _attempts_like(attempt):
        if _number(path) <= _number(attempt.path):
            shutil.rmtree(path, ignore_errors=True)


def _attempts_like(attempt: RunDirectory) -> list[Path]:
    """All attempts at the same trial."""
    return list(attempt.path.parent.glob(f"{attempt.path.name.rpartition('.')[0]}.*"))


def _number(path: Path) -> int:
    return int(path.name.rpartition(".")[2])


def _bytes(path: Path) -> int:
    with suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
