"""Runs that differ in their seeds alone: trained together in packs, and found where they have finished."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from experiments.config.schema import RunConfig
from experiments.record.run_description import RunDescription
from experiments.runner import ASKED, Prepared, TrainingFailedError, found_result, naming_lost_files, prepare
from experiments.terminal import Display
from experiments.training.interruption import Interruption
from experiments.training.loop import train_pack
from experiments.training.trial import RunOptions, TrialRun

Runs = Sequence[tuple[RunConfig, RunDescription]]


def execute_in_packs(
    configs: Sequence[RunConfig], *, pack: int, runs_dir: Path, test: bool, display: Display
) -> list[dict[str, Any]]:
    """The result of every run, carried out in packs of so many where they can share one, or found finished.

    A run is the one that its configuration makes alone. The same call goes on with what is not finished.
    Raises: what `execute` raises; TrainingFailedError names every run that failed, when the others have finished.
    """
    prepared = prepare(configs[0], runs_dir, display)
    runs = [(config, prepared.describe(config, runs_dir)) for config in configs]
    for config, run in runs:
        if run.run_dir.finished:
            run.run_dir.refuse_other(config)
    waiting = [each for each in runs if not each[1].run_dir.finished]
    size = 1 if prepared.trains_alone else pack
    display.say(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished before; packs of {size}")
    options = RunOptions(test=ASKED if test else None, runs_dir=runs_dir, wandb_mode=configs[0].wandb.mode)
    total, done = sum(config.training.steps for config, _ in waiting), 0

    def count(steps: int) -> None:
        nonlocal done
        done += steps
        display.report("training, steps of all runs", done, total)

    failures = []
    with display.live():
        for first in range(0, len(waiting), size):
            failures += _train(prepared, waiting[first : first + size], options, count)
    if failures:
        raise TrainingFailedError("\n".join(failures))
    return [found_result(config, prepared.context, run.run_dir, options, display) for config, run in runs]


def _train(prepared: Prepared, runs: Runs, options: RunOptions, on_step: Callable[[int], None]) -> list[str]:
    """Train runs in one pack to their ends; returns the failures, each with its run directory."""
    interruption = Interruption()
    with naming_lost_files(), ExitStack() as held:
        for _, run in runs:
            held.enter_context(run.run_dir.locked())
        trials = []
        for config, run in runs:
            if not run.run_dir.finished:  # by another process, since the first look
                held.enter_context(run.run_dir)
                trial = TrialRun(config, prepared.context, run, options, Display.silent(), start=prepared.start)
                held.enter_context(trial.logger)
                trials.append(trial)
        on_step(sum(trial.checkpoints.start for trial in trials))  # done by an earlier attempt
        going_on = trials
        with interruption.heeded():
            while going_on:
                together = _together(going_on, steps_alike=prepared.context.task.steps_alike)
                apart = [trial for trial in going_on if trial not in together]
                left = train_pack(prepared.context, together, interruption=interruption, on_step=on_step)
                going_on = [*left, *apart]
    return [f"{trial.folder.path}: {trial.failure}" for trial in trials if trial.failure is not None]


def _together(trials: Sequence[TrialRun], *, steps_alike: bool) -> list[TrialRun]:
    """Those that can train in one pack now: after a kill, trials may be at different steps, whose batches differ."""
    first = trials[0].checkpoints.start
    return [trial for trial in trials if steps_alike or trial.checkpoints.start == first]
