"""The ledger of a runs folder: a line for each time that a test split was read."""

import json
import os
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from experiments.record.errors import RecordError, shortened

LEDGER = "test_reads.jsonl"


def note_test_read(runs_dir: Path, *, data: str, study: str, run: str, purpose: str) -> None:
    """Append one read of a test split; `data` is the split's sha256, `purpose` what the score is for."""
    row = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "data": data, "study": study, "run": run}
    row["purpose"] = purpose
    append_lines(runs_dir, [json.dumps(row)])


def append_lines(runs_dir: Path, lines: Sequence[str]) -> None:
    """Have more lines at the end of the ledger."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    with (runs_dir / LEDGER).open("ab+") as file:
        torn = file.seek(0, os.SEEK_END) and not _ends_a_line(file.fileno())  # by a kill: it stays a line of its own
        file.write(b"\n" * bool(torn) + "".join(f"{line}\n" for line in lines).encode())


def lines_of_study(runs_dir: Path, study: str) -> list[str]:
    """The lines of one study's reads; a line that a kill has torn notes none, for what it speaks of never began.

    Raises: RecordError, naming the line, for one that is damaged.
    """
    path, found = runs_dir / LEDGER, []
    content = path.read_bytes() if path.exists() else b""
    for number, line in enumerate(content.split(b"\n"), 1):
        whole = line.endswith(b"}")
        try:
            row = json.loads(line) if whole else None
        except ValueError:
            row = None
        if isinstance(row, dict) and "study" in row:
            found += [line.decode()] if row["study"] == study else []
        elif line and (whole or not line.startswith(b"{")):
            told = f"{path}, line {number}: no read of a test split but {shortened(line)}"
            raise RecordError(f"{told}; mend that line, or delete it if it is of no run that you report")
    return found


def _ends_a_line(file: int) -> bool:
    return os.pread(file, 1, os.fstat(file).st_size - 1) == b"\n"
