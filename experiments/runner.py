"""One run from its configuration to its run directory: build, check, train, score, write down."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config.schema import RunConfig
from experiments.record.earlier_run import find_earlier_run
from experiments.record.errors import RecordError
from experiments.record.finished_runs import note_unchecked
from experiments.record.predictions import constant_warnings
from experiments.record.run_description import RunDescription, describe_run
from experiments.record.run_dir import RunDirectory
from experiments.record.runs_dir import refuse_unusable
from experiments.record.starting_point import StartingPoint, read_start
from experiments.record.wandb_mode import wanted_mode
from experiments.terminal import Display
from experiments.training.context import TrainingContext
from experiments.training.interruption import Interruption
from experiments.training.loop import train_pack
from experiments.training.trial import RunOptions, TrialRun, score_on_test

ASKED = "asked for with --test"  # what run.py reads the test split for


class TrainingFailedError(RuntimeError):
    """A run that ended without a score, with the reason."""


@dataclass(frozen=True)
class Finished:
    """A finished run: its directory, its result, and whether it was there before."""

    folder: Path
    result: dict[str, Any]
    found: bool


def begin(config: RunConfig, runs_dir: Path) -> tuple[TrainingContext, StartingPoint | None]:
    """What a run and its plan begin with: the task on its device, and what the update starts from.

    Raises: ValueError or OSError for what this machine, its environment or this folder does not offer.
    """
    wanted_mode(config.wandb.mode)
    refuse_unusable(runs_dir)
    return TrainingContext(config), read_start(config.start)


@dataclass(frozen=True)
class Prepared:
    """All that a run needs before its first step: the task with W0 on its device, and what the update starts from."""

    context: TrainingContext
    start: StartingPoint | None
    rank_total: int  # the sum of the ranks of all layers
    trains_alone: bool  # whether its trials train in packs of one

    def describe(self, config: RunConfig, runs_dir: Path) -> RunDescription:
        """Say what the run of a configuration is that differs from this one's in its seed alone."""
        return describe_run(config, self.context, runs_dir, rank_total=self.rank_total, start=self.start)


def prepare(config: RunConfig, runs_dir: Path, display: Display) -> Prepared:
    """Check what is known before anything is trained, and load data and W0. Raises: what `begin` raises."""
    context, start = begin(config, runs_dir)
    plan, warnings = context.plan(config, start)
    if start is not None:
        display.say(start.describe())
        _tell_unchecked(Path(start.path), display)
    for warning in warnings:
        display.warn(warning)
    with display.live():
        context.read_data(display.report)
        display.data(context.task.data_notes(), context.task.data_warnings())
        context.load(display.report)
    rank_total = sum(layer.ranks[0] for layer in plan.layers.values())
    return Prepared(context, start, rank_total, plan.trains_alone or context.task.trains_alone() is not None)


def execute(config: RunConfig, *, runs_dir: Path, test: bool, display: Display) -> Finished:
    """Carry out a run, or find it finished; the test split is read only with `test`.

    Raises: ValueError for what does not fit together, before anything is trained; TrainingFailedError.
    """
    prepared = prepare(config, runs_dir, display)
    context, run = prepared.context, prepared.describe(config, runs_dir)
    options = RunOptions(test=ASKED if test else None, runs_dir=runs_dir, wandb_mode=config.wandb.mode)
    folder = run.run_dir
    with folder.locked():  # from before the first look, so that no other process finishes it in between
        if folder.finished:
            folder.refuse_other(config)
            return Finished(folder.path, found_result(config, context, folder, options, display), found=True)
        if (earlier := find_earlier_run(config, run)) is not None:
            display.say(f"{earlier} is this run, written with earlier key names; the run is trained again")
        with folder:
            trial_run = TrialRun(config, context, run, options, display, start=prepared.start)
            _train(context, trial_run, display)
        _refuse(trial_run.failure, folder)
    for warning in constant_warnings(trial_run.predictions):
        display.warn(warning)
    return Finished(folder.path, trial_run.result, found=False)


def _train(context: TrainingContext, trial_run: TrialRun, display: Display) -> None:
    """Train a run to its end. Raises: TrainingFailedError, also where its directory was lost or cannot be written."""
    interruption = Interruption()
    with naming_lost_files(), trial_run.logger, display.live(), interruption.heeded():
        train_pack(context, [trial_run], interruption=interruption)


@contextmanager
def naming_lost_files() -> Iterator[None]:
    """Inside, a run directory that was lost or cannot be written is a TrainingFailedError with the way out."""
    try:
        yield
    except (RecordError, OSError) as error:
        way_out = "the same command goes on from the last checkpoint, or from the start without one"
        raise TrainingFailedError(f"{error}; {way_out}") from error


def found_result(
    config: RunConfig, context: TrainingContext, folder: RunDirectory, options: RunOptions, display: Display
) -> dict[str, Any]:
    """The result of a finished run; its test score only for who asks, read now where it was not before.

    Raises: TrainingFailedError where the model had diverged: not every version has refused such a result.
    """
    result = folder.result()
    _refuse(context.task.divergence(result["validation"], "validation"), folder)
    if not options.test:
        result.pop("test", None)
    elif "test" not in result:
        _tell_unchecked(folder.path, display)
        result["test"] = test = score_on_test(
            config, context, folder, options.runs_dir, name=folder.path.name, purpose=options.test
        )
        _refuse(context.task.divergence(test, "test"), folder)
        folder.add_test(test, test.predictions)
    return result


def _refuse(reason: str | None, folder: RunDirectory) -> None:
    if reason is not None:
        raise TrainingFailedError(f"{reason}\nrun directory: {folder.path}")


def _tell_unchecked(folder: Path, display: Display) -> None:
    if (note := note_unchecked(folder)) is not None:
        display.say(note)
