"""The directory of a run: written as it goes, finished when `result.json` is there."""

import json
import math
import os
import shutil
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from experiments.config.loading import resolve
from experiments.config.retired_keys import rename_retired
from experiments.config.schema import RunConfig
from experiments.config.shown import is_utf8
from experiments.config.yaml_files import read_tree, yaml_text


class RecordError(ValueError):
    """A run directory that is not what it should be."""


def write_atomically(path: Path, text: str) -> None:
    """The whole text or, after a crash, what was there before."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with partial.open("w", encoding="utf-8", errors="backslashreplace") as file:  # of a path that is no UTF-8
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def as_json(tree: Mapping[str, Any]) -> str:
    return json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def refuse_unreadable(runs_dir: Path) -> None:
    """Raise where run directories could be written and not be read: safetensors and parquet read UTF-8 paths alone."""
    if not is_utf8(str(runs_dir.resolve())):
        raise RecordError(f"--runs-dir {runs_dir.resolve()}: the path is not UTF-8; give a folder whose path is")


def run_dir_name(config: RunConfig, *, rank_total: int | None, config_hash: str) -> str:
    """'<variant>-r<rank>-lr<rate>-s<seed>-<config hash>'; mixed ranks read 'rmix-<total>', no rank is left out."""
    rank = getattr(config.variant, "rank", None)
    ranks = f"rmix-{rank_total}" if isinstance(rank, dict) else f"r{rank}"
    parts = [config.variant.name, *([] if rank is None else [ranks]), f"lr{config.learning_rate:g}", f"s{config.seed}"]
    return "-".join([*parts, config_hash])


def refuse_unwritable(folder: Path) -> None:
    """Raises: OSError where no run directory can be made in a folder, there or not; nothing is written."""
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    way_out = "choose another --runs-dir"
    if not there.is_dir():
        raise NotADirectoryError(f"{folder}: run directories cannot be written there: {there} is a file; {way_out}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: run directories cannot be written there: {there} is not writable; {way_out}")


class RunDirectory:
    """One run on disk. As a context manager it writes the traceback of a crash to `error.txt`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self, patience: float = 0.0) -> Iterator[None]:
        """Inside, no other process trains this run.

        Raises: RecordError if one does, and still does after `patience` seconds.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=patience):
                yield
        except Timeout:
            raise RecordError(f"another process is training this run now: {self.path}; wait for it to end") from None

    @property
    def finished(self) -> bool:
        return (self.path / "result.json").exists()

    def go_on(self) -> None:
        """Go on with an unfinished attempt, without what a kill left half written."""
        for left in (self.path / "error.txt", *self.path.glob("*.partial"), *self.path.glob(".tmp*")):
            left.unlink(missing_ok=True)  # .tmp*: safetensors' own

    def start(self, config: RunConfig, environment: Mapping[str, Any]) -> None:
        """Begin from nothing: what an unfinished attempt left here is removed."""
        if self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True)
        write_atomically(self.path / "config.yaml", yaml_text(config.tree()))
        write_atomically(self.path / "environment.json", as_json(environment))
        (self.path / "metrics.jsonl").touch()

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row of metrics, null for what is not finite; it is on its way to disk when this returns."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            finite = {key: value if math.isfinite(value) else None for key, value in row.items()}
            file.write(json.dumps(finite) + "\n")

    def history(self) -> list[dict[str, Any]]:
        """All rows of metrics; what was not finite is NaN."""
        lines = (self.path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [{key: math.nan if v is None else v for key, v in json.loads(line).items()} for line in lines]

    def finish(self, result: Mapping[str, Any]) -> None:
        """Written last: its presence says that the run is finished."""
        write_atomically(self.path / "result.json", as_json(result))

    def fail(self, reason: str) -> None:
        """Say why there is no result."""
        write_atomically(self.path / "error.txt", reason.rstrip() + "\n")

    def prune(self, reason: str) -> None:
        """Say why the run was not trained to its end."""
        write_atomically(self.path / "pruned.txt", reason.rstrip() + "\n")

    def scores(self, name: str) -> dict[int, float]:
        """By step, a score on the validation split on the way."""
        wanted = f"validation/{name}"
        return {int(row["step"]): row[wanted] for row in self.history() if wanted in row}

    def result(self) -> dict[str, Any]:
        """The scores and facts of the finished run, under the names that keys have now."""
        return rename_retired(json.loads((self.path / "result.json").read_text(encoding="utf-8")))

    def config_tree(self) -> dict[str, Any]:
        """The resolved configuration of the run, under the names that keys have now."""
        return rename_retired(self.written_config())

    def written_config(self) -> dict[str, Any]:
        """The same as it was written. Raises: ConfigError, naming the file, where it cannot be read."""
        return read_tree(self.path / "config.yaml")

    def environment(self) -> dict[str, Any]:
        found = json.loads((self.path / "environment.json").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}

    def refuse_other(self, config: RunConfig) -> None:
        """Raise if the finished run here has another configuration than the one asked for."""
        there = resolve(self.config_tree()).hashed_config()
        differ = [key for key, value in config.hashed_config().items() if there.get(key) != value]
        if differ:
            raise RecordError(f"{self.path} holds a run whose {', '.join(differ)} differ; move the folder away")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, Exception) and self.path.exists() and not self.finished:
            write_atomically(self.path / "error.txt", "".join(traceback.format_exception(error)))


def note_test_read(runs_dir: Path, *, data: str, study: str, run: str) -> None:
    """Append one read of a test split; `data` is the split's sha256."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    row = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "data": data, "study": study, "run": run}
    with (runs_dir / "test_reads.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
