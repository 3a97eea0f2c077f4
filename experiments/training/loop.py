"""The training loop: one page that every variant and every task goes through, for all trials of a pack at once.

Each trial's loss is a mean over its own rows and the losses are summed, so that gradients never mix.
The loop asks the variant what to do and never what it is called.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from experiments.tasks.task import Batch, Task
from experiments.training.batches import micro_batches, opening_batches, stack
from experiments.training.context import TrainingContext
from experiments.training.evaluation import autocast, by_split, evaluate, final_scores
from experiments.training.gradient_scaler import GradientScaler
from experiments.training.hyperparameters import (
    SharedHyperparameters,
    TrialHyperparameters,
    shared_hyperparameters,
    trial_hyperparameters,
)
from experiments.training.interruption import Interrupted, Interruption
from experiments.training.labels import labelled_batches, with_targets
from experiments.training.optimizer import AdamW, schedule_factor
from experiments.training.trial import Outcome, RunningTrial, TrialRun
from lora_variants.interface.pack import Pack
from lora_variants.interface.variant import Variant

OnStep = Callable[[int], None]


def train_pack(
    context: TrainingContext,
    trials: Sequence[TrialRun],
    *,
    interruption: Interruption,
    on_step: OnStep = lambda trials: None,
) -> list[TrialRun]:
    """Train a pack until a trial of it ends, and close those that ended; returns the others, ready for another pack.

    A single run is a pack of one. Every trial brings its state into a pack: what it is does not depend on its
    neighbours. `on_step(n)` is called after every step of n trials.
    Raises: Interrupted after a checkpoint of every trial, where somebody asked to stop.
    """
    configs, since, before = [trial.config for trial in trials], time.perf_counter(), _training_seconds(trials)
    variant = context.attached(configs, [trial.start for trial in trials])

    def after_step() -> None:
        on_step(len(trials))
        if interruption.asked and not any(trial.ended for trial in trials):
            _stop(trials)

    try:
        own, shared = [*map(trial_hyperparameters, configs)], shared_hyperparameters(configs[0])
        training = Training(variant, context.task, own, shared)
        for slot, trial in enumerate(trials):
            trial.load_into(training, slot)
        training.train_until_one_ends(trials, after_step=after_step)
        ended, others = ([trial for trial in trials if trial.ended is so] for so in (True, False))
        trained = [trial for trial in ended if trial.has_score]
        scores = final_scores(variant, context.task, shared.precision) if trained else []
        _share_overhead(trials, time.perf_counter() - since - (_training_seconds(trials) - before))
        for trial in trained:
            trial.conclude(*scores[trial.slot])
        for trial in others:
            trial.unload()
    finally:
        variant.detach()
    for trial in ended:
        trial.close()
    return others


def _share_overhead(trials: Sequence[TrialRun], seconds: float) -> None:
    for trial in trials:
        trial.overhead += seconds / len(trials)


def _training_seconds(trials: Sequence[TrialRun]) -> float:
    return sum(trial.seconds for trial in trials)


def _stop(trials: Sequence[TrialRun]) -> NoReturn:
    for trial in trials:
        trial.keep(now=True)
    raise Interrupted(
        f"interrupted after step {trials[0].step}, with a checkpoint; the same command goes on from there"
    )


class Training:
    """The trials of one pack while they train: batches, optimizer and loss scales, and what became of each.

    A trial trains from its own step on, `variant.pack.steps`, to `shared.steps`.
    """

    def __init__(
        self, variant: Variant, task: Task, trials: Sequence[TrialHyperparameters], shared: SharedHyperparameters
    ) -> None:
        self.variant, self.task, self.trials, self.shared = variant, task, tuple(trials), shared
        self.outcomes = [Outcome() for _ in trials]
        variant.prepare(opening_batches(task, trials, shared, variant))
        self.groups = variant.parameter_groups(_per_trial(trials, "learning_rate"), _per_trial(trials, "weight_decay"))
        self.optimizer = AdamW(self.groups, trials=len(trials))
        self.scaler = GradientScaler(self.groups, trials=len(trials)) if shared.precision == "float16" else None
        self._batches: list[Iterator[Batch]] = []

    def train_until_one_ends(self, trials: Sequence[RunningTrial], *, after_step: Callable[[], None]) -> None:
        """Train the pack until a trial of it ends; every trial hears of each step that it did.

        `trials` are in the order of the pack's slots. `after_step` is called when all of them have heard of the step.
        """
        self._score_at_rungs(trials)
        while not any(trial.ended for trial in trials):
            since = time.perf_counter()
            rows = self.step()
            seconds = (time.perf_counter() - since) / len(trials)
            scores = self.evaluate()
            for trial, outcome, row, score in zip(trials, self.outcomes, rows, scores, strict=True):
                if outcome.failure is None:
                    trial.report(row | score, seconds)
            self._score_at_rungs(trials)
            after_step()

    def step(self) -> list[dict[str, float]]:
        """One step of every trial that runs; returns what each trial reports of it.

        A trial whose loss or gradient is not finite stays as it was before the step, and has failed.
        """
        pack, steps = self.variant.pack, list(self.variant.pack.steps)
        if not self._batches:
            self._batches = [
                islice(labelled_batches(self.task, trial.seed, self.shared), step, None)
                for trial, step in zip(self.trials, steps, strict=True)
            ]
        batches = [next(batches) for batches in self._batches]
        losses, penalties = compute_gradients(self.variant, self.task, batches, self.shared, self.scaler)
        norms = self.optimizer.gradient_norms()
        settle(pack, self.outcomes, losses + penalties, norms, self.scaler)
        factors = [
            schedule_factor(trial.lr_schedule, step, total=self.shared.steps, warmup=trial.warmup_steps)
            for trial, step in zip(self.trials, steps, strict=True)
        ]
        if any(pack.running):
            self.optimizer.clip_gradients(norms, [trial.max_grad_norm for trial in self.trials])
            with self.variant.optimizer_step():
                self.optimizer.step(torch.tensor(factors, dtype=torch.float64), torch.tensor(pack.moving))
            self.optimizer.zero_gradients()
        columns = {
            "train/task_loss": losses.tolist(),
            "train/penalty": penalties.tolist(),
            "train/gradient_norm": norms.tolist(),
            "train/learning_rate": [t.learning_rate * f for t, f in zip(self.trials, factors, strict=True)],
        } | (self.scaler.metrics() if self.scaler else {})
        return [{name: values[k] for name, values in columns.items()} for k in range(pack.trials)]

    def evaluate(self) -> list[dict[str, float]]:
        """What each trial reports of the validation split, where it is due for one on its way; empty elsewhere."""
        pack, every, total = self.variant.pack, self.shared.evaluate_every, self.shared.steps
        due = [
            every > 0 and runs and step % every == 0 and step < total
            for step, runs in zip(pack.steps, pack.running, strict=True)
        ]
        if not any(due):
            return [{} for _ in due]
        scores = by_split("validation", evaluate(self.variant, self.task, "validation", self.shared.precision))
        return [row if wanted else {} for row, wanted in zip(scores, due, strict=True)]

    def _score_at_rungs(self, trials: Sequence[RunningTrial]) -> None:
        """Checkpoints precede rung evaluation, so a resumed trial may need evaluating before it trains."""
        due = [trial.at_rung for trial in trials]
        if any(due):
            scores = evaluate(self.variant, self.task, "validation", self.shared.precision)
            for trial, score, wanted in zip(trials, scores, due, strict=True):
                if wanted:
                    trial.score(score)

    @property
    def trains(self) -> bool:
        """Whether there is anything to train."""
        return any(group.parameters for group in self.groups)

    @property
    def holders(self) -> Mapping[str, Variant | AdamW | GradientScaler]:
        """What a trial's state is spread over, by the name that each part has in a checkpoint."""
        holders: dict[str, Variant | AdamW | GradientScaler] = {"variant": self.variant, "optimizer": self.optimizer}
        return holders if self.scaler is None else holders | {"scaler": self.scaler}


def compute_gradients(
    variant: Variant,
    task: Task,
    batches: Sequence[Batch],
    shared: SharedHyperparameters,
    scaler: GradientScaler | None = None,
) -> tuple[Float[Tensor, " trials"], Float[Tensor, " trials"]]:
    """Backward through one step's batch of every trial; returns each trial's mean task loss and its penalty.

    With accumulation the batch goes through in parts; every part is divided by the whole batch's count. With a
    scaler the task's gradient is unscaled before the penalty's is added, which never was in float16.
    """
    pack, model = variant.pack, variant.model
    device = next(model.parameters()).device
    model.train()
    whole = stack(batches, device)
    pack.rows = shared.batch_size
    counts = sums_by_trial(task.row_counts(whole), pack.trials)
    losses: Tensor = torch.zeros((), device=device)
    pack.rows = shared.batch_size // shared.gradient_accumulation_steps
    for pack.micro_step, part in enumerate(micro_batches(batches, shared.gradient_accumulation_steps)):
        labelled = with_targets(variant, task, stack(part, device))
        with autocast(device, shared.precision):
            rows = task.row_losses(model, labelled)
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
            begun = pack.steps[k] > 0
            help_ = (
                "a lower learning rate may help" if begun else "nothing was learned yet: look at base, start and data"
            )
            outcome.failure = f"not finite at step {pack.steps[k] + 1}: {what}; {help_}"
        outcome.steps_executed += outcome.failure is None
    pack.running = (running & going_on).tolist()
    pack.moving = (running & finite).tolist()


def sums_by_trial(rows: Float[Tensor, " rows"], trials: int) -> Float[Tensor, " trials"]:
    """The sum over each trial's own rows."""
    return rows.view(trials, -1).sum(dim=1)


def _per_trial(trials: Sequence[TrialHyperparameters], knob: str) -> Tensor:
    return torch.tensor([getattr(trial, knob) for trial in trials], dtype=torch.float64)
