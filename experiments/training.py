"""The training loop: one page that every variant and every task goes through, for all trials of a pack at once.

Each trial's loss is a mean over its own rows and the losses are summed, so that gradients never mix.
The loop asks the variant what to do and never what it is called.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from experiments.optimizer import AdamW, clip_gradients, gradient_norms, schedule_factor
from experiments.tasks.task import Batch, Split, Task
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

    def restore(self, variant: Variant, optimizer: AdamW) -> int: ...

    def after_step(self, step: int, variant: Variant, optimizer: AdamW) -> None: ...


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
    the others go on.
    """
    pack, outcomes = variant.pack, [Outcome() for _ in trials]
    variant.prepare(_stacked(task, trials, regime, variant.model))
    groups = variant.parameter_groups(_per_trial(trials, "learning_rate"), _per_trial(trials, "weight_decay"))
    if not any(group.parameters for group in groups):
        return outcomes
    optimizer = AdamW(groups, trials=len(trials))
    start = keeper.restore(variant, optimizer) if keeper else 0
    batches = [islice(task.training_batches(trial.seed, regime.rows), start, None) for trial in trials]
    moving = torch.ones(len(trials), dtype=torch.bool)
    for step in range(start, regime.steps):
        with clock.running():
            losses, penalties = compute_gradients(variant, task, [next(b) for b in batches], regime)
            norms = gradient_norms(groups, len(trials))
            moving &= _finite(outcomes, step, losses + penalties, norms)
            pack.moving = moving.tolist()
            if not moving.any():
                break
            clip_gradients(groups, norms, [trial.clip for trial in trials])
            variant.before_step()
            factors = [schedule_factor(t.schedule, step, total=regime.steps, warmup=t.warmup) for t in trials]
            optimizer.step(torch.tensor(factors, dtype=torch.float64), moving)
            for k in torch.nonzero(moving).flatten().tolist():
                pack.steps[k] += 1
                outcomes[k].steps_executed += 1
            variant.after_step()
            optimizer.zero_gradients()
        metrics = {
            "train/task_loss": losses.tolist(),
            "train/penalty": penalties.tolist(),
            "train/gradient_norm": norms.tolist(),
            "train/learning_rate": [t.learning_rate * f for t, f in zip(trials, factors, strict=True)],
        }
        if regime.evaluate_every and (step + 1) % regime.evaluate_every == 0 and step + 1 < regime.steps:
            metrics |= by_split("validation", evaluate(variant, task, "validation", regime))
        on_step(step + 1, metrics)
        if keeper:
            keeper.after_step(step + 1, variant, optimizer)
    return outcomes


def compute_gradients(
    variant: Variant, task: Task, batches: Sequence[Batch], regime: Regime
) -> tuple[Float[Tensor, " trials"], Float[Tensor, " trials"]]:
    """Backward through one step's batch of every trial; returns each trial's mean task loss and its penalty.

    With accumulation the batch goes through in parts; every part is divided by the whole batch's count.
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
        (sums / counts).sum().backward()
        losses = losses + sums.detach() / counts
    penalty = variant.penalty()
    if penalty is None:
        return losses, torch.zeros_like(losses)
    penalty.sum().backward()
    return losses, penalty.detach()


def evaluate(variant: Variant, task: Task, split: Split, regime: Regime) -> list[dict[str, float]]:
    """The task's metrics of every trial on a whole split: task loss alone, no penalty, no dropout.

    A variant that can be evaluated in several ways has each way's metrics under 'way/...'.
    """
    found: list[dict[str, float]] = [{} for _ in range(variant.pack.trials)]
    for mode, holds in variant.evaluation_modes().items():
        with holds:
            means = split_means(variant, task, split, regime)
        for k, metrics in enumerate(found):
            of_trial = task.metrics({name: values[k] for name, values in means.items()})
            metrics |= {f"{mode}/{name}" if mode else name: value for name, value in of_trial.items()}
    return found


@torch.no_grad()
def split_means(variant: Variant, task: Task, split: Split, regime: Regime) -> dict[str, list[float]]:
    """The mean of each of the task's quantities on a whole split, one number a trial."""
    pack, model = variant.pack, variant.model
    device = next(model.parameters()).device
    model.eval()
    sums: dict[str, Tensor] = {}
    counts = torch.zeros(pack.trials, dtype=torch.float64)
    for batch in task.evaluation_batches(split):
        everyone = stack([batch] * pack.trials, device)
        pack.rows = len(next(iter(batch.values())))
        with autocast(device, regime.precision):
            quantities = task.row_quantities(model, everyone)
        for name, rows in quantities.items():
            sums[name] = sums.get(name, 0) + sums_by_trial(rows.cpu().double(), pack.trials)
        counts = counts + sums_by_trial(task.row_counts(everyone).cpu().double(), pack.trials)
    return {name: (total / counts).tolist() for name, total in sums.items()}


def stack(batches: Sequence[Batch], device: torch.device) -> Batch:
    """The rows of all trials, trial-major, where the model is."""
    return {key: torch.cat([batch[key] for batch in batches]).to(device) for key in batches[0]}


def micro_batches(batches: Sequence[Batch], parts: int) -> Iterator[list[Batch]]:
    """The same rows in `parts` equal parts, each with rows of every trial."""
    for part in range(parts):
        yield [{key: rows.chunk(parts)[part] for key, rows in batch.items()} for batch in batches]


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    return torch.autocast(device.type, dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()


def by_split(split: str, scores: Sequence[dict[str, float]]) -> dict[str, list[float]]:
    """Metrics of every trial under the names they are logged by: 'validation/loss' -> one number a trial."""
    return {f"{split}/{name}": [score[name] for score in scores] for name in scores[0]}


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


def _finite(outcomes: Sequence[Outcome], step: int, losses: Tensor, norms: Tensor) -> Tensor:
    """Which trials may take this step; the others are recorded as failed, once."""
    finite = (torch.isfinite(losses) & torch.isfinite(norms)).cpu()
    for k, outcome in enumerate(outcomes):
        if not finite[k] and outcome.failure is None:
            what = f"loss {float(losses[k])}, gradient norm {float(norms[k])}"
            outcome.failure = f"not finite at step {step + 1}: {what}; a lower learning rate may help"
    return finite
