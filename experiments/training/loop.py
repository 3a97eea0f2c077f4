"""The training loop: one page that every variant and every task goes through, for all trials of a pack at once.

Each trial's loss is a mean over its own rows and the losses are summed, so that gradients never mix.
The loop asks the variant what to do and never what it is called.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from experiments.tasks.task import Batch, Task
from experiments.training.evaluation import autocast, by_split, evaluate, stack
from experiments.training.gradient_scaler import GradientScaler
from experiments.training.optimizer import AdamW, schedule_factor
from lora_variants.pack import Pack
from lora_variants.variant import Variant


@dataclass(frozen=True)
class Trial:
    """What may differ between the trials of one pack, besides the variant's own knobs."""

    seed: int
    learning_rate: float
    weight_decay: float = 0.0
    clip: float | None = 1.0
    schedule: str = "linear"
    warmup: int = 0


@dataclass(frozen=True)
class Regime:
    """What the trials of one pack share."""

    steps: int
    rows: int
    accumulation: int = 1
    evaluate_every: int = 0
    precision: str = "float32"


@dataclass
class Outcome:
    """What training did to one trial; `failure` says why it stopped, and is None where it did not."""

    steps_executed: int = 0
    failure: str | None = None


@dataclass
class Clock:
    """Seconds of training alone; it stands still while an evaluation or a report runs."""

    seconds: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        since = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - since


Listener = Callable[[int, dict[str, list[float]]], None]


class Keeper(Protocol):
    """What keeps a run's state: it says where to go on from, and hears of every step."""

    def restore(self, variant: Variant, optimizer: AdamW, scaler: GradientScaler | None) -> int: ...

    def after_step(self, step: int, variant: Variant, optimizer: AdamW, scaler: GradientScaler | None) -> None: ...


class Training:
    """The trials of one pack while they train: batches, optimizer and loss scales, and what became of each.

    A trial trains from its own step on, `variant.pack.steps`, to `regime.steps`.
    """

    def __init__(self, variant: Variant, task: Task, trials: Sequence[Trial], regime: Regime) -> None:
        self.variant, self.task, self.trials, self.regime = variant, task, tuple(trials), regime
        self.outcomes = [Outcome() for _ in trials]
        variant.prepare(_stacked(task, trials, regime, variant.model))
        self.groups = variant.parameter_groups(_per_trial(trials, "learning_rate"), _per_trial(trials, "weight_decay"))
        self.optimizer = AdamW(self.groups, trials=len(trials))
        self.scaler = GradientScaler(self.groups, trials=len(trials)) if regime.precision == "float16" else None
        self._batches: list[Iterator[Batch]] = []

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return any(group.parameters for group in self.groups)

    def step(self) -> list[dict[str, float]]:
        """One step of every trial that runs; returns what each trial reports of it.

        A trial whose loss or gradient is not finite stays as it was before the step, and has failed.
        """
        pack, steps = self.variant.pack, list(self.variant.pack.steps)
        if not self._batches:
            self._batches = [
                islice(self.task.training_batches(trial.seed, self.regime.rows), step, None)
                for trial, step in zip(self.trials, steps, strict=True)
            ]
        batches = [next(batches) for batches in self._batches]
        losses, penalties = compute_gradients(self.variant, self.task, batches, self.regime, self.scaler)
        norms = self.optimizer.gradient_norms()
        settle(pack, self.outcomes, losses + penalties, norms, self.scaler)
        factors = [
            schedule_factor(trial.schedule, step, total=self.regime.steps, warmup=trial.warmup)
            for trial, step in zip(self.trials, steps, strict=True)
        ]
        if any(pack.running):
            self.optimizer.clip_gradients(norms, [trial.clip for trial in self.trials])
            move(self.variant, self.optimizer, factors)
        columns = {
            "train/task_loss": losses.tolist(),
            "train/penalty": penalties.tolist(),
            "train/gradient_norm": norms.tolist(),
            "train/learning_rate": [t.learning_rate * f for t, f in zip(self.trials, factors, strict=True)],
        } | (self.scaler.metrics() if self.scaler else {})
        return [{name: values[k] for name, values in columns.items()} for k in range(pack.trials)]

    def evaluate(self) -> list[dict[str, float]]:
        """What each trial reports of the validation split, where it is due for one on its way; empty elsewhere."""
        pack, every, total = self.variant.pack, self.regime.evaluate_every, self.regime.steps
        due = [
            every > 0 and runs and step % every == 0 and step < total
            for step, runs in zip(pack.steps, pack.running, strict=True)
        ]
        if not any(due):
            return [{} for _ in due]
        scores = by_split("validation", evaluate(self.variant, self.task, "validation", self.regime.precision))
        return [row if wanted else {} for row, wanted in zip(scores, due, strict=True)]


def train(
    variant: Variant,
    task: Task,
    trials: Sequence[Trial],
    regime: Regime,
    *,
    clock: Clock,
    on_step: Listener,
    keeper: Keeper | None = None,
) -> list[Outcome]:
    """Train all trials of the attached variant's pack; `on_step(step, metrics)` hears one number a trial.

    A trial whose loss or gradient is not finite stops as it was before that step and counts as failed;
    the others go on. In float16 it skips the step instead, as long as a smaller loss scale may help.
    """
    training = Training(variant, task, trials, regime)
    start = keeper.restore(variant, training.optimizer, training.scaler) if keeper and training.trains else 0
    for step in range(start, regime.steps if training.trains else 0):
        with clock.running():
            rows = training.step()
        if not any(variant.pack.running):
            break
        rows = [row | scores for row, scores in zip(rows, training.evaluate(), strict=True)]
        on_step(step + 1, {name: [row.get(name, math.nan) for row in rows] for name in rows[0]})
        if keeper:
            keeper.after_step(step + 1, variant, training.optimizer, training.scaler)
    return training.outcomes


def compute_gradients(
    variant: Variant, task: Task, batches: Sequence[Batch], regime: Regime, scaler: GradientScaler | None = None
) -> tuple[Float[Tensor, " trials"], Float[Tensor, " trials"]]:
    """Backward through one step's batch of every trial; returns each trial's mean task loss and its penalty.

    With accumulation the batch goes through in parts; every part is divided by the whole batch's count. With a
    scaler the task's gradient is unscaled before the penalty's is added, which never was in float16.
    """
    pack, model = variant.pack, variant.model
    device = next(model.parameters()).device
    model.train()
    whole = stack(batches, device)
    pack.rows = regime.rows
    counts = sums_by_trial(task.row_counts(whole), pack.trials)
    losses: Tensor = torch.zeros((), device=device)
    pack.rows = regime.rows // regime.accumulation
    for pack.micro_step, part in enumerate(micro_batches(batches, regime.accumulation)):
        with autocast(device, regime.precision):
            rows = task.row_losses(model, stack(part, device))
        sums = sums_by_trial(rows.to(torch.promote_types(rows.dtype, torch.float32)), pack.trials)
        means = sums / counts
        (means if scaler is None else scaler.scaled(means)).sum().backward()
        losses = losses + means.detach()
    if scaler is not None:
        scaler.unscale_gradients()
    penalty = variant.penalty()
    if penalty.requires_grad:
        penalty.sum().backward()
    return losses, penalty.detach()


def settle(
    pack: Pack, outcomes: Sequence[Outcome], losses: Tensor, norms: Tensor, scaler: GradientScaler | None
) -> None:
    """Say which trials run on and which of them this step moves; those that failed are recorded, once."""
    finite = (torch.isfinite(losses) & torch.isfinite(norms)).cpu()
    running = torch.tensor([outcome.failure is None for outcome in outcomes])
    going_on = finite if scaler is None else scaler.update(finite, running)
    for k, outcome in enumerate(outcomes):
        if running[k] and not going_on[k]:
            what = f"loss {float(losses[k])}, gradient norm {float(norms[k])}"
            outcome.failure = f"not finite at step {pack.steps[k] + 1}: {what}; a lower learning rate may help"
        outcome.steps_executed += outcome.failure is None
    pack.running = (running & going_on).tolist()
    pack.moving = (running & finite).tolist()


def move(variant: Variant, optimizer: AdamW, factors: Sequence[float]) -> None:
    """One step of the trials that move; it counts for all that run."""
    pack = variant.pack
    variant.before_step()
    optimizer.step(torch.tensor(factors, dtype=torch.float64), torch.tensor(pack.moving))
    pack.steps = [done + runs for done, runs in zip(pack.steps, pack.running, strict=True)]
    variant.after_step()
    optimizer.zero_gradients()


def micro_batches(batches: Sequence[Batch], parts: int) -> Iterator[list[Batch]]:
    """The same rows in `parts` equal parts, each with rows of every trial."""
    for part in range(parts):
        yield [{key: rows.chunk(parts)[part] for key, rows in batch.items()} for batch in batches]


def _stacked(task: Task, trials: Sequence[Trial], regime: Regime, model: nn.Module) -> Iterator[Batch]:
    """The batches that training starts with, read apart from it."""
    device = next(model.parameters()).device
    for batches in zip(*(task.training_batches(trial.seed, regime.rows) for trial in trials), strict=True):
        yield stack(batches, device)


def sums_by_trial(rows: Float[Tensor, " rows"], trials: int) -> Float[Tensor, " trials"]:
    """The sum over each trial's own rows."""
    return rows.view(trials, -1).sum(dim=1)


def _per_trial(trials: Sequence[Trial], knob: str) -> Tensor:
    return torch.tensor([getattr(trial, knob) for trial in trials], dtype=torch.float64)
