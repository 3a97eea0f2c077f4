"""The folders of a study's trials: each attempt has its own, and the one that ends takes its place among the records.

So a worker that only slept, and whose trial another has taken over, writes into nobody's record; the other goes on
from its last checkpoint.
"""

import shutil
from contextlib import suppress
from pathlib import Path

from experiments.record.run_dir import RunDirectory
from experiments.training.checkpoint import CHECKPOINT, PROGRESS

ATTEMPTS = ".attempts"
PATIENCE_SECONDS = 60.0  # with whoever has the record in hand: it is copied to W&B, or published by another worker
ADOPTED = (CHECKPOINT, "metrics.jsonl", PROGRESS, "config.yaml", "environment.json")


def attempt_at(record: RunDirectory, key: str, number: int) -> RunDirectory:
    """The folder of attempt `number` at the trial `key`.

    Two trials of one configuration, as searches may ask for, have one record and attempts of their own.
    """
    return RunDirectory(record.path.parent / ATTEMPTS / f"{record.path.name}.{key}.{number}")


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
    except FileNotFoundError:  # its worker slept and has woken up
        shutil.rmtree(attempt.path)


def publish(attempt: RunDirectory, record: RunDirectory) -> bool:
    """The attempt becomes the trial's record. Of several finished ones the first stays: they are the same.

    False where it is not there any more: its worker slept, and another has taken the trial over.
    """
    with record.locked(patience=PATIENCE_SECONDS):
        there = attempt.path.exists()
        if there and not record.finished:
            if record.path.exists():
                shutil.rmtree(record.path)
            attempt.path.replace(record.path)
        discard(attempt)
    return there


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
