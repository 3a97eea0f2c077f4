"""A pack in training: its trials go on together until one of them ends; a single run is a pack of one."""

import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from experiments.training.context import TrainingContext, shared_hyperparameters, trial_hyperparameters
from experiments.training.evaluation import evaluate
from experiments.training.interruption import Interrupted, Interruption
from experiments.training.loop import Training
from experiments.training.trial import TrialRun
from lora_variants.interface.variant import Variant

Heard = Callable[[int], None]


def train_pack(
    context: TrainingContext,
    trial_runs: Sequence[TrialRun],
    *,
    interruption: Interruption,
    heard: Heard = lambda trials: None,
) -> list[TrialRun]:
    """Train a pack until a trial of it ends, and close those that ended; returns the others, ready for another pack.

    The pack is made anew whenever its trials change, and every trial brings its state: what a trial is does not
    depend on its neighbours. `heard(n)` hears of every step of n trials.
    Raises: Interrupted after a checkpoint of every trial, where somebody asked to stop.
    """
    configs, began, before = [m.config for m in trial_runs], time.perf_counter(), _training_seconds(trial_runs)
    variant = context.attached(configs, [trial_run.start for trial_run in trial_runs])

    def after_step() -> None:
        heard(len(trial_runs))
        if interruption.asked and not any(trial_run.ended for trial_run in trial_runs):
            _stop(trial_runs)

    try:
        training = Training(
            variant,
            context.task,
            [trial_hyperparameters(config) for config in configs],
            shared_hyperparameters(configs[0]),
        )
        for slot, trial_run in enumerate(trial_runs):
            trial_run.load_into(training, slot)
        training.train_until_one_ends(trial_runs, after_step=after_step)
        ended, others = ([m for m in trial_runs if m.ended is so] for so in (True, False))
        scores = _scores(context, training, ended)
        spent = time.perf_counter() - began - (_training_seconds(trial_runs) - before)
        for trial_run in trial_runs:
            trial_run.overhead += spent / len(trial_runs)
        for trial_run, (validation, forgetting) in zip(ended, scores, strict=True):
            trial_run.conclude(validation, forgetting)
        for trial_run in others:
            trial_run.unload()
    finally:
        variant.detach()
    for trial_run in ended:
        trial_run.close()
    return others


def _training_seconds(trial_runs: Sequence[TrialRun]) -> float:
    return sum(trial_run.seconds for trial_run in trial_runs)


def _stop(trial_runs: Sequence[TrialRun]) -> NoReturn:
    for trial_run in trial_runs:
        trial_run.keep(now=True)
    raise Interrupted(
        f"stopped after step {trial_runs[0].step}, with a checkpoint; the same command goes on from there"
    )


Scores = tuple[dict[str, float], dict[str, float] | None]


def _scores(context: TrainingContext, training: Training, ended: Sequence[TrialRun]) -> list[Scores]:
    """On validation, and on the base's own domain where there are such data, of each trial that has ended."""
    if all(trial_run.failure is not None or trial_run.stopped is not None for trial_run in ended):
        return [({}, None) for _ in ended]
    precision = training.shared.precision
    validation = evaluate(training.variant, context.task, "validation", precision)
    forgetting = _forgetting(context, training.variant, precision) if context.task.has_forgetting_split else None
    return [(validation[m.slot], None if forgetting is None else forgetting[m.slot]) for m in ended]


def _forgetting(context: TrainingContext, variant: Variant, precision: str) -> list[dict[str, float]]:
    """The loss on text of the base's own domain: of the untouched base, of the adapted model, and the difference."""
    with variant.disabled():
        before = evaluate(variant, context.task, "forgetting", precision)
    after = evaluate(variant, context.task, "forgetting", precision)
    losses = [(b["loss"], a["loss"]) for b, a in zip(before, after, strict=True)]
    return [{"before": b, "after": a, "change": a - b} for b, a in losses]
