"""What a run ran on: versions, commit, device, and the content of weights and data."""

import platform
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("torch", "numpy", "scipy", "transformers", "safetensors", "pydantic", "wandb", "optuna")


def describe(
    *,
    device: torch.device,
    base_sha256: str,
    data_sha256: Mapping[str, str],
    base_facts: Mapping[str, str] | None = None,
    start_sha256: str | None = None,
) -> dict[str, Any]:
    """The content of `environment.json`."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: found for name in PACKAGES if (found := _version(name))},
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if (changes := _git("status", "--porcelain")) is None else bool(changes),
        "device": _device_name(device),
        "threads": torch.get_num_threads(),
        "base_sha256": base_sha256,
        "base_facts": dict(base_facts or {}),
        "data_sha256": dict(data_sha256),
        "start_sha256": start_sha256,
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({platform.machine()})"


@cache
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _git(*arguments: str) -> str | None:
    """What git says of the project's own folder; None where it is not a checkout."""
    root = Path(__file__).resolve().parents[2]
    try:
        done = subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
