"""The folders of a study's trials: each attempt has its own, and the one that ends takes its place among the records.

So a worker that only slept, and whose trial another has taken over, writes into nobody's record; the other goes on
from its last checkpoint.
"""

import shutil
from pathlib import Path

from experiments.record.checkpoint import CHECKPOINT, PROGRESS
from experiments.record.folder import RunFolder

ATTEMPTS = ".attempts"
ADOPTED = (CHECKPOINT, "metrics.jsonl", PROGRESS, "config.yaml", "environment.json")


def attempt_at(record: RunFolder, key: str, number: int) -> RunFolder:
    """The folder of attempt `number` at the trial `key`; a new one has what the attempt that came farthest has left.

    Two trials of one configuration, as searches may ask for, have one record and attempts of their own.
    """
    attempt = RunFolder(record.path.parent / ATTEMPTS / f"{record.path.name}.{key}.{number}")
    earlier = [path for path in attempts_like(attempt) if (path / CHECKPOINT).exists()]
    if earlier and not attempt.path.exists():
        attempt.path.mkdir(parents=True)
        for name in ADOPTED:  # the checkpoint first: the metrics that it speaks of are there by then
            if (earlier[-1] / name).exists():
                shutil.copyfile(earlier[-1] / name, attempt.path / name)
    return attempt


def publish(attempt: RunFolder, record: RunFolder) -> None:
    """The attempt becomes the trial's record. Of several finished ones the first stays: they are the same."""
    with record.held():
        if record.path.exists() and not record.finished:
            shutil.rmtree(record.path)
        if not record.finished:
            attempt.path.replace(record.path)
    for path in attempts_like(attempt):
        shutil.rmtree(path, ignore_errors=True)


def discard(attempt: RunFolder) -> None:
    """It leaves nothing."""
    shutil.rmtree(attempt.path, ignore_errors=True)


def attempts_like(attempt: RunFolder) -> list[Path]:
    """All attempts at the same trial, the one that came farthest last."""
    found = attempt.path.parent.glob(f"{attempt.path.name.rpartition('.')[0]}.*")
    return sorted(found, key=lambda path: _bytes(path / "metrics.jsonl"))


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
