"""Reads a recorded W&B run back from its transaction log, with wandb's own reader."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Table:
    """One logged wandb.Table."""

    columns: list[str]
    rows: list[list[Any]]


@dataclass(frozen=True)
class Artifact:
    """One logged artifact: its files by their name in it, and where each lay when it was logged."""

    type: str
    files: dict[str, Path]


@dataclass(frozen=True)
class OfflineRun:
    """What one W&B run holds. Keys that wandb adds by itself (`_step`, `_wandb`, ...) are left out.

    `history` has no rows of tables; `exit_code` is None for a run that was never closed.
    """

    project: str
    group: str
    name: str
    job_type: str
    tags: list[str]
    config: dict[str, Any]
    history: list[dict[str, Any]]
    summary: dict[str, Any]
    tables: dict[str, Table]
    artifacts: dict[str, Artifact]
    x_axes: dict[str, str]
    exit_code: int | None


def read_offline_run(folder: Path) -> OfflineRun:
    """The one W&B run recorded anywhere under the folder; raises ValueError if there is not exactly one."""
    logs = sorted(folder.rglob("run-*.wandb"))
    if len(logs) != 1:
        raise ValueError(f"{folder} holds {len(logs)} W&B runs, not one: {[log.name for log in logs]}")
    records = list(_records(logs[0]))
    run = next(record["run"] for record in records if record["type"] == "run")
    summary: dict[str, Any] = {}
    for record in _of_type(records, "summary"):
        summary.update(record.get("update", {}))
    history = [record["item"] for record in _of_type(records, "history")]
    tables = {name: _table(row, name, logs[0].parent) for row in history for name in _table_names(row)}
    exit_codes = [record.get("exit_code", 0) for record in _of_type(records, "exit")]
    return OfflineRun(
        project=run.get("project", ""),
        group=run.get("run_group", ""),
        name=run.get("display_name", ""),
        job_type=run.get("job_type", ""),
        tags=run.get("tags", []),
        config={key: value for key, value in run["config"]["update"].items() if key != "_wandb"},
        history=[_own(row) for row in history if not _table_names(row)],
        summary=_own({key: value for key, value in summary.items() if key.split(".")[0] not in tables}),
        tables=tables,
        artifacts={
            artifact["name"]: Artifact(artifact["type"], _manifest(artifact))
            for artifact in _of_type(records, "artifact")
        },
        x_axes={metric["glob_name"]: metric["step_metric"] for metric in _of_type(records, "metric")},
        exit_code=exit_codes[-1] if exit_codes else None,
    )


def _records(log: Path) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(log)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if done.returncode:
        raise ValueError(f"wandb cannot read {log}: {done.stderr}")
    for line in done.stdout.splitlines():
        yield json.loads(line)


def _of_type(records: list[dict[str, Any]], kind: str) -> Iterator[dict[str, Any]]:
    return (record[kind] for record in records if record["type"] == kind)


def _table_names(row: dict[str, Any]) -> list[str]:
    return [key.removesuffix("._type") for key, value in row.items() if value == "table-file"]


def _table(row: dict[str, Any], name: str, run_folder: Path) -> Table:
    stored = json.loads((run_folder / "files" / row[f"{name}.path"]).read_text(encoding="utf-8"))
    return Table(stored["columns"], stored["data"])


def _manifest(artifact: dict[str, Any]) -> dict[str, Path]:
    return {entry["path"]: Path(entry["local_path"]) for entry in artifact["manifest"]["contents"]}


def _own(row: dict[str, Any]) -> dict[str, Any]:
    """The row without wandb's own keys, its numbers as numbers (wandb writes NaN as a string)."""
    odd = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}
    return {
        key: odd.get(value, value) if isinstance(value, str) else value
        for key, value in row.items()
        if not key.startswith("_")
    }
