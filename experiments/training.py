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

from experiments.gradient_scaler import GradientScaler
from experiments.optimizer import AdamW, clip_gradients, gradient_norms, schedule_factor
from experiments.tasks.task import Batch, Split, Task
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
    outcomes = [Outcome() for _ in trials]
    variant.prepare(_stacked(task, trials, regime, variant.model))
    groups = variant.parameter_groups(_per_trial(trials, "learning_rate"), _per_trial(trials, "weight_decay"))
    if not any(group.parameters for group in groups):
        return outcomes
    optimizer = AdamW(groups, trials=len(trials))
    scaler = GradientScaler(groups, trials=len(trials)) if regime.precision == "float16" else None
    start = keeper.restore(variant, optimizer, scaler) if keeper else 0
    batches = [islice(task.training_batches(trial.seed, regime.rows), start, None) for trial in trials]
    for step in range(start, regime.steps):
        with clock.running():
            losses, penalties = compute_gradients(variant, task, [next(b) for b in batches], regime, scaler)
            norms = gradient_norms(groups, len(trials))
            settle(variant.pack, outcomes, step, losses + penalties, norms, scaler)
            if not any(variant.pack.running):
                break
            factors = [schedule_factor(t.schedule, step, total=regime.steps, warmup=t.warmup) for t in trials]
            clip_gradients(groups, norms, [trial.clip for trial in trials])
            move(variant, optimizer, factors)
        metrics = {
            "train/task_loss": losses.tolist(),
            "train/penalty": penalties.tolist(),
            "train/gradient_norm": norms.tolist(),
            "train/learning_rate": [t.learning_rate * f for t, f in zip(trials, factors, strict=True)],
        } | (scaler.metrics() if scaler else {})
        if regime.evaluate_every and (step + 1) % regime.evaluate_every == 0 and step + 1 < regime.steps:
            metrics |= by_split("validation", evaluate(variant, task, "validation", regime))
        on_step(step + 1, metrics)
        if keeper:
            keeper.after_step(step + 1, variant, optimizer, scaler)
    return outcomes


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
    if penalty is None:
        return losses, torch.zeros_like(losses)
    penalty.sum().backward()
    return losses, penalty.detach()


def settle(
    pack: Pack, outcomes: Sequence[Outcome], step: int, losses: Tensor, norms: Tensor, scaler: GradientScaler | None
) -> None:
    """Say which trials run on and which of them this step moves; those that failed are recorded, once."""
    finite = (torch.isfinite(losses) & torch.isfinite(norms)).cpu()
    running = torch.tensor([outcome.failure is None for outcome in outcomes])
    going_on = finite if scaler is None else scaler.update(finite, running)
    for k, outcome in enumerate(outcomes):
        if running[k] and not going_on[k]:
            what = f"loss {float(losses[k])}, gradient norm {float(norms[k])}"
            outcome.failure = f"not finite at step {step + 1}: {what}; a lower learning rate may help"
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


def evaluate(variant: Variant, task: Task, split: Split, regime: Regime) -> list[dict[str, float]]:
    """The task's metrics of every trial on a whole split: task loss alone, no penalty, no dropout.

    A variant that can be evaluated in several ways has each way's metrics under 'way/...'.
    """
    found: list[dict[str, float]] = [{} for _ in range(variant.pack.trials)]
    for mode, holds in variant.evaluation_modes().items():
        with holds:
            rows, counts = split_rows(variant, task, split, regime)
        for k, metrics in enumerate(found):
            of_trial = task.split_metrics({name: values[k] for name, values in rows.items()}, counts[k])
            metrics |= {f"{mode}/{name}" if mode else name: value for name, value in of_trial.items()}
    return found


@torch.no_grad()
def split_rows(
    variant: Variant, task: Task, split: Split, regime: Regime
) -> tuple[dict[str, Float[Tensor, "trials rows"]], Float[Tensor, "trials rows"]]:
    """Each of the task's quantities for every row of a split, and the rows' counts, in float64."""
    pack, model = variant.pack, variant.model
    device = next(model.parameters()).device
    model.eval()
    found: dict[str, list[Tensor]] = {}
    counts: list[Tensor] = []
    for batch in task.evaluation_batches(split):
        everyone = stack([batch] * pack.trials, device)
        pack.rows = len(next(iter(batch.values())))
        with autocast(device, regime.precision):
            quantities = task.row_quantities(model, everyone)
        for name, rows in quantities.items():
            found.setdefault(name, []).append(rows.cpu().double().view(pack.trials, -1))
        counts.append(task.row_counts(everyone).cpu().double().view(pack.trials, -1))
    return {name: torch.cat(parts, dim=1) for name, parts in found.items()}, torch.cat(counts, dim=1)


def stack(batches: Sequence[Batch], device: torch.device) -> Batch:
    """The rows of all trials, trial-major, where the model is."""
    return {key: torch.cat([batch[key] for batch in batches]).to(device) for key in batches[0]}


def micro_batches(batches: Sequence[Batch], parts: int) -> Iterator[list[Batch]]:
    """The same rows in `parts` equal parts, each with rows of every trial."""
    for part in range(parts):
        yield [{key: rows.chunk(parts)[part] for key, rows in batch.items()} for batch in batches]


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """What a forward runs in; what is trained stays in float32."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, dtype=getattr(torch, precision))


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
