"""`metrics.jsonl`, a row a line: what is deleted, cut off or changed while a run writes it is noticed."""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from experiments.record.atomic_files import sync
from experiments.record.errors import RecordError, shortened

METRICS = "metrics.jsonl"


class MetricsFile:
    """The rows of one run; who writes them knows how long the file is, and its sha256."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._size: int | None = None  # not looked at yet
        self._sha256 = hashlib.sha256()

    @property
    def size(self) -> int:
        """How many bytes this process left in the file, or found there."""
        if self._size is None:
            self._size = self._take(self.path.read_bytes())
        return self._size

    @property
    def sha256(self) -> str:
        """Of these bytes."""
        return self._sha256.hexdigest()

    def begin(self) -> None:
        """Have no rows."""
        self.path.touch()
        self._size = self._take(b"")

    def sha256_of_first(self, size: int) -> str | None:
        """Of what the file begins with; None where it is shorter."""
        content = b""
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            content = file.read(size)
        return hashlib.sha256(content).hexdigest() if len(content) == size else None

    def cut(self, size: int) -> None:
        """Drop what comes after the first `size` bytes."""
        with self.path.open("r+b") as file:
            self._size = self._take(file.read(size))
            file.truncate(self._size)

    def append(self, row: Mapping[str, Any]) -> None:
        """One more row, null for what is not finite, or none of it; it is on its way to disk when this returns.

        Raises: RecordError where the file is not there any more, or not as long as this process left it.
        """
        finite = {key: value if math.isfinite(value) else None for key, value in row.items()}
        line = (json.dumps(finite) + "\n").encode()
        try:
            before = self.size
            with self.path.open("r+b") as file:  # never makes a new one
                if file.seek(0, os.SEEK_END) != before:
                    raise RecordError(f"{self.path} was changed by somebody else while the run wrote it")
                file.write(line)
        except FileNotFoundError:
            raise RecordError(f"{self.path} was deleted while the run wrote it") from None
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.path, before)
            error.filename = str(self.path)  # that of a write has none
            raise
        self._sha256.update(line)
        self._size = before + len(line)

    def sync(self) -> None:
        """All rows are on the disk."""
        sync(self.path)

    def check(self) -> None:
        """Raise RecordError where the file is not what this process wrote."""
        if self._size is not None and self.sha256_of_first(self._size) != self.sha256:
            raise RecordError(f"{self.path} was deleted or changed by somebody else while the run wrote it")

    def rows(self) -> list[dict[str, Any]]:
        """All of them; what was not finite is NaN. A last line that a kill has torn is none.

        Raises: RecordError, naming the line, for what is not a row.
        """
        return [{key: math.nan if v is None else v for key, v in row.items()} for row in self._read()]

    def last_step(self) -> int:
        """That of the last row that can be read; 0 without one."""
        lines = reversed(self.path.read_bytes().split(b"\n")[:-1]) if self.path.exists() else ()
        return next((row["step"] for line in lines if (row := _row(line)) is not None), 0)

    def _take(self, content: bytes) -> int:
        self._sha256 = hashlib.sha256(content)
        return len(content)

    def _read(self) -> Iterator[dict[str, Any]]:
        *lines, last = self.path.read_bytes().split(b"\n")
        for number, line in enumerate(lines if _row(last) is None else [*lines, last], 1):
            row = _row(line)
            if row is None:
                raise RecordError(f"{self.path}, line {number}: no row of metrics but {shortened(line)}")
            yield row


def _row(line: bytes) -> dict[str, Any] | None:
    """The row that a line is; None where it is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    numbers = isinstance(row, dict) and all(v is None or isinstance(v, int | float) for v in row.values())
    return row if numbers and isinstance(row.get("step"), int) else None
