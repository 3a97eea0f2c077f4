"""Checkpoints of a run: killed at any moment and started again, it ends bit-identical to one never interrupted."""

import hashlib
import json
import math
import shutil
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from experiments.record.atomic_files import as_json, save_atomically, write_atomically
from experiments.record.errors import RecordError, shortened
from experiments.record.run_dir import RunDirectory

CHECKPOINT, PROGRESS = "checkpoint.safetensors", "progress.json"
DIGEST = "digest"  # of the metadata: of all else in it and of the tensors


class CheckpointError(RecordError):
    """A checkpoint that this run must not go on from."""


class Holder(Protocol):
    """What holds a part of each trial's state."""

    def trial_state(self, trial: int) -> dict[str, Tensor]: ...

    def load_trial_state(self, trial: int, state: Mapping[str, Tensor]) -> None: ...


class Checkpoints:
    """The checkpoint of one run's folder, and what earlier attempts at the run executed.

    `start` is the step to go on from, `seconds` how long the training up to there took, `resumed_from` every step at
    which an attempt went on, and `executed_before` how many steps the earlier attempts executed, those lost to a kill
    included. `trial` is the slot that the run has in its pack. `note` is what the user should be told of the
    checkpoint that is there, None where there is nothing to tell.
    """

    def __init__(self, folder: RunDirectory, *, config_hash: str, every: int, trial: int = 0) -> None:
        self.folder, self.config_hash, self.every, self.trial = folder, config_hash, every, trial
        self.start, self.seconds = 0, 0.0
        self.note: str | None = None
        self._tensors: dict[str, Tensor] = {}
        self.resumed_from, executed = self._progress()
        began = self.resumed_from[-1] if self.resumed_from else 0
        if self.path.exists():
            self._read()
        self.executed_before = executed + max(0, max(folder.metrics.last_step(), self.start) - began)
        if self.start:
            self._agree_with_metrics()

    @property
    def path(self) -> Path:
        return self.folder.path / CHECKPOINT

    def begin(self) -> None:
        """Note that an attempt begins; what was logged after the checkpoint, and its W&B copy, is dropped."""
        if self.start:
            self.folder.metrics.cut(self._metrics_bytes)
            shutil.rmtree(self.folder.path / "wandb", ignore_errors=True)
        if self.start or self.resumed_from:
            self.resumed_from = [*self.resumed_from, self.start]
        tree = {"executed": self.executed_before, "resumed_from": self.resumed_from}
        write_atomically(self.folder.path / PROGRESS, as_json(tree))

    def restore(self, holders: Mapping[str, Holder]) -> int:
        """Put the checkpoint's state into the trial's slot; returns the step to go on from, 0 without a checkpoint."""
        if self._tensors:
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
        self.folder.check()
        metrics = self.folder.metrics
        meta = {
            "config_hash": self.config_hash,
            "step": str(step),
            "seconds": str(seconds),
            "metrics_bytes": str(metrics.size),
            "metrics_sha256": metrics.sha256,
        }
        tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        metrics.sync()  # before the checkpoint that speaks of it takes the place of the last one
        save_atomically(tensors, self.path, meta | {DIGEST: digest(meta, tensors)})

    def _read(self) -> None:
        try:
            with safe_open(self.path, framework="pt") as file:
                meta: dict[str, str] = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        except (SafetensorError, OSError) as error:
            raise self._refused(f"is torn ({error})") from None
        if (found := meta.get("config_hash")) != self.config_hash:
            raise self._refused(f"is of run {found}, this is run {self.config_hash}")
        written = meta.pop(DIGEST, None)
        if written is None:
            self.note = "it was written by an earlier version without a digest, so its content is not checked"
        elif written != digest(meta, tensors):
            raise self._refused("is damaged: its content is not what was written")
        try:
            self.start, self.seconds = int(meta["step"]), float(meta["seconds"])
            self._metrics_bytes, self._metrics_sha256 = int(meta["metrics_bytes"]), meta.get("metrics_sha256")
        except (KeyError, ValueError) as error:
            raise self._refused(f"says no step, seconds and metrics_bytes ({error!r})") from None
        if self.start < 1 or self._metrics_bytes < 0 or not math.isfinite(self.seconds) or "random" not in tensors:
            raise self._refused(f"is of no step that a run makes: step {self.start}, seconds {self.seconds}")
        self._tensors = tensors

    def _agree_with_metrics(self) -> None:
        """Go back to the first step where the metrics have been lost, by a power cut, that the checkpoint speaks of."""
        found = self.folder.metrics.sha256_of_first(self._metrics_bytes)
        path = self.folder.metrics.path
        if found is None:
            there = f"the {self._metrics_bytes} bytes that it had at the checkpoint of step {self.start}"
            self.note = f"{path} has lost some of {there}; starting again from the first step"
            self.start, self.seconds, self._tensors = 0, 0.0, {}
        elif self._metrics_sha256 is None:  # written by an earlier version
            try:
                self.folder.metrics.rows()
            except RecordError as error:
                raise self._refused(f"is of step {self.start}, but {error}", restore=True) from None
        elif self._metrics_sha256 != found:
            changed = f"{path} does not begin any more with the rows up to there"
            raise self._refused(f"is of step {self.start}, but {changed}", restore=True)

    def _refused(self, what: str, *, restore: bool = False) -> CheckpointError:
        way_out = f"{'restore that file from a copy, or ' * restore}delete {self.path} to start this run again"
        return CheckpointError(f"{self.path} {what}; {way_out} from its first step")

    def _progress(self) -> tuple[list[int], int]:
        """The steps at which attempts went on, and how many steps those before the last one executed."""
        path = self.folder.path / PROGRESS
        if not path.exists():
            return [], 0
        content = path.read_bytes()
        try:
            tree: Any = json.loads(content)
            resumed_from, executed = tree["resumed_from"], tree["executed"]
            if all(type(number) is int and number >= 0 for number in (executed, *resumed_from)):
                return list(resumed_from), executed
        except (ValueError, KeyError, TypeError):
            pass
        raise CheckpointError(
            f"{path} is damaged, it counts no steps but holds {shortened(content)}; delete it to go on: result.json "
            "then counts the steps of earlier attempts once, also where some were executed twice"
        )


def digest(meta: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Of a checkpoint's metadata and of its tensors' names, types, shapes and bytes.

    The bytes go in by their CRC-32: it tells what a disk or a network has changed, at three times sha256's speed.
    """
    found = hashlib.sha256(json.dumps(sorted(meta.items())).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data) if tensor.numel() else 0
        found.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|{crc}|".encode())
    return found.hexdigest()


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
