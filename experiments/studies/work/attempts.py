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


def attempt_at(record: RunFolder, number: int) -> RunFolder:
    """The folder of attempt `number` at a trial; a new one has what the attempt that came farthest has left."""
    attempt = RunFolder(record.path.parent / ATTEMPTS / f"{record.path.name}.{number}")
    earlier = [path for path in attempts_at(record) if (path / CHECKPOINT).exists()]
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
    for path in attempts_at(record):
        shutil.rmtree(path, ignore_errors=True)


def discard(attempt: RunFolder) -> None:
    """It leaves nothing."""
    shutil.rmtree(attempt.path, ignore_errors=True)


def attempts_at(record: RunFolder) -> list[Path]:
    """All attempts at a trial, the one that came farthest last."""
    found = (record.path.parent / ATTEMPTS).glob(f"{record.path.name}.*")
    return sorted(found, key=lambda path: _bytes(path / "metrics.jsonl"))


def _bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
