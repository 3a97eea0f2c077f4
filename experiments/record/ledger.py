"""The ledger of test reads: whoever looks at the test split leaves a line, so that nobody looks twice unseen."""

import json
from datetime import UTC, datetime
from pathlib import Path


def note_test_read(runs_dir: Path, *, data: str, study: str, run: str) -> None:
    """Append one read of a test split; `data` is the split's sha256."""
    runs_dir.mkdir(parents=True, exist_ok=True)
    row = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "data": data, "study": study, "run": run}
    with (runs_dir / "test_reads.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
