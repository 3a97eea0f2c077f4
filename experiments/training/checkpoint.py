"""Checkpoints of a run: killed at any moment and started again, it ends bit-identical to one never interrupted."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from experiments.record.run_dir import RunDirectory, as_json, write_atomically

CHECKPOINT, PROGRESS = "checkpoint.safetensors", "progress.json"


class CheckpointError(ValueError):
    """A checkpoint that this run must not go on from."""


class Holder(Protocol):
    """What holds a part of each trial's state."""

    def trial_state(self, trial: int) -> dict[str, Tensor]: ...

    def load_trial_state(self, trial: int, state: Mapping[str, Tensor]) -> None: ...


class Checkpoints:
    """The checkpoint of one run's folder, and what earlier attempts at the run executed.

    `start` is the step to go on from, `seconds` how long the training up to there took, `resumed_from` every step at
    which an attempt went on, and `executed_before` how many steps the earlier attempts executed, those lost to a kill
    included. `trial` is the slot that the run has in its pack.
    """

    def __init__(self, folder: RunDirectory, *, config_hash: str, every: int, trial: int = 0) -> None:
        self.folder, self.config_hash, self.every, self.trial = folder, config_hash, every, trial
        self.start, self.seconds = 0, 0.0
        self._tensors: dict[str, Tensor] = {}
        progress = self._progress()
        self.resumed_from: list[int] = progress["resumed_from"]
        began = self.resumed_from[-1] if self.resumed_from else 0
        self.executed_before: int = progress["executed"] + max(0, self._last_step() - began)
        if self.path.exists():
            self._read()

    @property
    def path(self) -> Path:
        return self.folder.path / CHECKPOINT

    def begin(self) -> None:
        """Note that an attempt begins; what was logged after the checkpoint, and its W&B copy, is dropped."""
        if self.start:
            self.resumed_from = [*self.resumed_from, self.start]
            with (self.folder.path / "metrics.jsonl").open("r+b") as file:
                file.truncate(int(self._meta["metrics_bytes"]))
            shutil.rmtree(self.folder.path / "wandb", ignore_errors=True)
        tree = {"executed": self.executed_before, "resumed_from": self.resumed_from}
        write_atomically(self.folder.path / PROGRESS, as_json(tree))

    def restore(self, holders: Mapping[str, Holder]) -> int:
        """Put the checkpoint's state into the trial's slot; returns the step to go on from, 0 without a checkpoint."""
        if self.start:
            for name, holder in holders.items():
                holder.load_trial_state(self.trial, _part(self._tensors, f"{name}/"))
            torch.set_rng_state(self._tensors["random"])
            self._tensors = {}
        return self.start

    def hold(self, step: int, holders: Mapping[str, Holder]) -> None:
        """Keep the trial's state in memory, for `restore` into a slot of another pack."""
        self.start, self._tensors = step, self._state(holders)

    def after_step(self, step: int, holders: Mapping[str, Holder], *, seconds: float, now: bool = False) -> None:
        """Write a checkpoint where one is due, or `now`; `seconds` is how long the training up to here took."""
        if now or (self.every and step % self.every == 0):
            self._save(step, self._state(holders), seconds)

    def remove(self) -> None:
        """A finished run needs no checkpoint."""
        for name in (CHECKPOINT, PROGRESS):
            (self.folder.path / name).unlink(missing_ok=True)

    def _state(self, holders: Mapping[str, Holder]) -> dict[str, Tensor]:
        """A copy of all that the trial is."""
        states = {name: holder.trial_state(self.trial) for name, holder in holders.items()}
        tensors = {f"{name}/{key}": value for name, state in states.items() for key, value in state.items()}
        return tensors | {"random": torch.get_rng_state()}

    def _save(self, step: int, tensors: Mapping[str, Tensor], seconds: float) -> None:
        meta = {
            "config_hash": self.config_hash,
            "step": step,
            "seconds": seconds,
            "metrics_bytes": (self.folder.path / "metrics.jsonl").stat().st_size,
        }
        partial = self.path.with_name(f"{CHECKPOINT}.partial")
        written = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        save_file(written, partial, metadata={key: str(value) for key, value in meta.items()})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(self.path)

    def _read(self) -> None:
        way_out = f"delete {self.path} to start this run again from its first step"
        try:
            with safe_open(self.path, framework="pt") as file:
                self._meta: Mapping[str, str] = file.metadata() or {}
                self._tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{self.path} is torn ({error}); {way_out}") from None
        found = self._meta.get("config_hash")
        if found != self.config_hash:
            raise CheckpointError(f"{self.path} is of run {found}, this is run {self.config_hash}; {way_out}")
        self.start = int(self._meta["step"])
        self.seconds = float(self._meta["seconds"])

    def _progress(self) -> dict[str, Any]:
        path = self.folder.path / PROGRESS
        if not path.exists():
            return {"executed": 0, "resumed_from": []}
        progress: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return progress

    def _last_step(self) -> int:
        """The last step that the attempt before this one logged whole."""
        path = self.folder.path / "metrics.jsonl"
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return int(json.loads(lines[-1])["step"]) if lines else 0


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
