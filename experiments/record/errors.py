"""What is wrong with a run directory, in words: the file, what it should be, and the way out."""

from pathlib import Path


class RecordError(ValueError):
    """A run directory that is not what it should be."""


class RunInUseError(RecordError):
    """Another process has the run directory locked."""


def train_again(folder: Path) -> str:
    """The way out of a damaged finished run."""
    then = "a run is trained again, a study's trial that has ended keeps the scores that the queue has"
    return f"restore it from a copy, or move {folder} away and give the same command: {then}"


def shortened(content: bytes, most: int = 40) -> str:
    """The beginning of a text that may be anything."""
    text = content[: 4 * most + 4].decode(errors="replace")
    return repr(text[:most]) + ("…" if len(text) > most else "")
