"""The sha256 of each file with numbers that a run left: who reads one later knows that it is what the run wrote."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from experiments.record.adapter_formats import CONFIG, DELTA, HEAD, WEIGHTS
from experiments.record.atomic_files import put_in_place
from experiments.record.metrics_file import METRICS
from experiments.record.predictions import PREDICTIONS

KEY = "files_sha256"  # of result.json
UPDATE = (WEIGHTS, CONFIG, DELTA, HEAD)  # what a folder is read as an adapter by


def digest_files(folder: Path) -> dict[str, str]:
    """Path in the run directory -> sha256, of adapters and heads in every layout, of metrics and predictions."""
    layouts = [
        folder,
        *sorted(path.parent for path in folder.glob(f"*/{CONFIG}")),
    ]  # the latter a variant's own in PEFT
    paths = [folder / METRICS, folder / PREDICTIONS, *(layout / name for layout in layouts for name in UPDATE)]
    return {path.relative_to(folder).as_posix(): digest(path) for path in paths if path.is_file()}


def difference(folder: Path, sha256: Mapping[str, str], names: Collection[str]) -> str | None:
    """What is wrong with the first of these files that is not as it was; None where all are."""
    for name in names:
        if not (folder / name).is_file():
            return f"{folder / name} is missing"
        if name not in sha256:
            return f"{folder / name} is not of this run"
        if not _holds(folder / name, sha256[name]):
            return f"{folder / name} is not what the run wrote: its content has another sha256 than in result.json"
    return None


def lost_without_sha256(folder: Path, result: Mapping[str, Any], names: Collection[str]) -> str | None:
    """Which of these files, or of the update's, is missing of a run that was written before there were digests.

    Which the update's are is not known, but how many parameters the run trained, and how many are of an update.
    """
    trained, in_updates = result.get("trainable_parameters", 0), result.get("update_parameters", 0)
    there = {name for name in UPDATE if (folder / name).is_file()}
    if in_updates and not there & {WEIGHTS, DELTA}:
        return f"{folder / WEIGHTS} or {DELTA} is missing"
    has_factors = bool(result.get("scales"))  # of an AdaLoRA, more is trained than is left in the update
    if trained > in_updates and not has_factors and not there & {WEIGHTS, HEAD}:
        return f"{folder / HEAD} is missing"
    return next((f"{folder / name} is missing" for name in names if not (folder / name).is_file()), None)


def _holds(path: Path, sha256: str) -> bool:
    """Whether a file is the one that is meant, also where a kill has left that beside it."""
    return digest(path) == sha256 or put_in_place(path, lambda other: digest(other) == sha256)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
