"""One trial while it runs: what the loop reports goes to disk, to W&B and to the terminal; then the result."""

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from experiments.config.schema import RunConfig
from experiments.record.adapter_spectra import read_spectra
from experiments.record.run_dir import RunDirectory
from experiments.record.wandb_logger import WandbLogger
from experiments.tasks.task import Task
from experiments.terminal import Display
from lora_variants.interface.layer import Factors
from lora_variants.interface.variant import Variant

REPORT_EVERY_SECONDS = 0.1


class RunLogger:
    """Listens to the training loop for one trial of its pack."""

    def __init__(
        self, config: RunConfig, task: Task, folder: RunDirectory, display: Display, *, wandb_mode: str
    ) -> None:
        self.config, self.task = config, task
        self.folder, self.display = folder, display
        self.validation: list[tuple[int, dict[str, float]]] = []
        self._ranks: dict[str, int] | None = None
        self._reported = 0.0
        self._loss: float | None = None
        self.mirror = WandbLogger(
            mode=wandb_mode,
            project=config.wandb.project,
            group=config.study,
            name=folder.path.name,
            config=config.tree(),
            folder=folder.path,
            job_type=config.variant.name,
            tags=[config.task.name, config.variant.name],
        )
        if self.mirror.warning:
            display.warn(self.mirror.warning)
        for row in folder.history():  # of the attempt that this one goes on with
            self._take(row.pop("step"), row)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if error is not None:
            self.abandon(repr(error))

    def abandon(self, reason: str) -> None:
        """Close the W&B run of a trial that has no result."""
        self.mirror.finish(summary={"failure": reason}, spectra=dict, ranks={}, files=[], failed=True)

    def load_into(self, variant: Variant, trial: int) -> None:
        """Listen to this slot of a pack from now on."""
        self.variant, self.trial = variant, trial

    def ranks(self) -> dict[str, int]:
        """The rank that each layer uses now."""
        return {name: alive[self.trial] for name, alive in self.variant.ranks_alive().items()}

    def on_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one step down; ranks only when they changed."""
        row = dict(metrics)
        ranks = {f"rank/{name}": rank for name, rank in self.ranks().items()}
        if ranks != self._ranks:
            row |= ranks
        self.folder.log({"step": step, **row})
        self._take(step, row)
        if time.monotonic() - self._reported > REPORT_EVERY_SECONDS or step == self.config.training.steps:
            self._reported = time.monotonic()
            self._loss = row.get("train/task_loss", self._loss)  # the row of the last evaluation has none
            note = "" if self._loss is None else f"loss {self._loss:.4f}"
            note += f"  rank alive {sum(ranks.values())}" if self.variant.scales() else ""
            self.display.report(f"training {self.config.variant.name}", step, self.config.training.steps, note)

    def _take(self, step: int, row: Mapping[str, float]) -> None:
        """Mirror a row that is on disk, and remember what the result needs of it."""
        scores = {name.partition("/")[2]: v for name, v in row.items() if name.startswith("validation/")}
        if scores:
            self.validation.append((step, scores))
        self._ranks = {name: int(v) for name, v in row.items() if name.startswith("rank/")} or self._ranks
        self.mirror.log(step, row)

    def result(
        self,
        *,
        seconds: Mapping[str, float],
        bytes_peak: int | None,
        steps_executed: int,
        resumed_from: Sequence[int],
        base_parameters: int,
    ) -> dict[str, Any]:
        """The content of `result.json`, test apart; the score is that of the last evaluation."""
        task, variant = self.task, self.variant
        higher, name = task.higher_is_better, task.score_name
        scored = [at for at in self.validation if math.isfinite(task.score_or_nan(at[1][name]))]
        best = (max if higher else min)(scored, key=lambda at: at[1][name])
        trainable = variant.trainable_parameters(self.trial)
        return {
            "variant": self.config.variant.name,
            "task": self.config.task.name,
            "seed": self.config.tree()["seed"],
            "learning_rate": self.config.learning_rate,
            "score": self.validation[-1][1][name],
            "score_name": name,
            "higher_is_better": higher,
            "validation": self.validation[-1][1],
            "best": {"step": best[0], "score": best[1][name]},
            "diagnostics": task.diagnostics(variant, self.trial),
            "data": task.data_facts(),
            "trainable_parameters": trainable,
            "trainable_share": trainable / base_parameters,
            "update_parameters": sum(_size(update) for update in variant.deltas(self.trial).values()),
            "steps": self.variant.pack.steps[self.trial],
            "steps_executed": steps_executed,
            "resumed_from": [*resumed_from],
            "seconds": dict(seconds),
            "bytes_peak": bytes_peak,
            "ranks": self.ranks(),
            "ranks_total": sum(self.ranks().values()),
            "scales": {layer: scales[self.trial] for layer, scales in variant.scales().items()},
            "rank_padded_to": variant.rank_padded_to(),
        }

    def finish(self, result: Mapping[str, Any], files: Sequence[Path]) -> None:
        """Close the W&B run with the result."""
        self.mirror.finish(
            summary=flat(result),
            spectra=lambda: read_spectra(self.folder.path),
            ranks=self.ranks(),
            files=files,
            failed=False,
        )


def _size(update: Factors | torch.Tensor) -> int:
    return update.numel() if isinstance(update, torch.Tensor) else update.left.numel() + update.right.numel()


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested results under one name each, numbers and words only: 'validation/loss'."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}/")
        elif value is not None:
            found[f"{prefix}{key}"] = value
    return found
