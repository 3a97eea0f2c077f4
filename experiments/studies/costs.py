"""What the trials of a study cost on this machine: steps and evaluations are measured, once a group of arms."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch

from experiments.studies.spec.arm import Arm
from experiments.studies.workers.packing import Packing
from experiments.tasks.task import Batch, Split, Task
from experiments.training.context import TrainingContext, attached_pack
from experiments.training.evaluation import split_rows

TIMED_BATCHES = 2  # of a split: few beside a trial


@dataclass(frozen=True)
class Count:
    """Trials of one arm: planned, and at most more if its grid is extended.

    `reads`: evaluations, at most so many, that score a run of the tuning on the test split and train nothing.
    """

    points: int  # of the grid; 0 for a search
    tuning: int
    tuning_runs: int  # whole runs that these trials train as many steps as
    evaluation: int
    reads: int
    extension: int
    extended_for_sure: bool

    @property
    def trained(self) -> int:
        """Whole runs, where no grid is extended that need not be."""
        return self.tuning_runs + self.evaluation + (self.extension if self.extended_for_sure else 0)


@dataclass(frozen=True)
class GroupCost:
    """A group of arms whose trials share packs: seconds of one core (of the GPU) for all its trials."""

    label: str
    arms: int
    trials: int
    pack: int
    step_seconds: float  # of one trial in a pack; 0 where nothing trains
    is_estimated: bool
    seconds: float
    seconds_of_extension: float


def group_costs(packing: Packing, groups: Iterable[Sequence[Arm]], counts: dict[str, Count]) -> Iterator[GroupCost]:
    """Of every group; once patience is used up, evaluations are taken to cost what they did in the last like it."""
    known: dict[bool, _RowCosts] = {}  # of groups that train, and of those that do not
    for arms in groups:
        size, speeds = packing.size(arms[0]), packing.speeds(arms[0])
        trains = speeds[0].seconds > 0
        if trains not in known or not packing.impatient:
            known[trains] = _RowCosts(packing.context, arms[0], sorted({1, min(size, speeds[-1].trials)}))
        yield _cost(arms, counts, packing, known[trains])


def _cost(arms: Sequence[Arm], counts: dict[str, Count], packing: Packing, rows: "_RowCosts") -> GroupCost:
    arm, size = arms[0], packing.size(arms[0])
    speeds = {speed.trials: speed.seconds for speed in packing.speeds(arm)}

    def seconds(trials: int, *, test: bool) -> float:
        full, rest = divmod(trials, size)
        return sum(_of_pack(n, speeds, rows, arm, test=test) * times for n, times in ((size, full), (rest, 1)) if n)

    tuning = sum(counts[a.config_hash].tuning_runs for a in arms)
    tuning += sum(counts[a.config_hash].extension for a in arms if counts[a.config_hash].extended_for_sure)
    evaluation = sum(counts[a.config_hash].evaluation for a in arms)
    reads = sum(counts[a.config_hash].reads for a in arms)
    extension = sum(counts[a.config_hash].extension for a in arms if not counts[a.config_hash].extended_for_sure)
    return GroupCost(
        label=arm.label if len(arms) == 1 else f"{arm.label} ... {arms[-1].label}",
        arms=len(arms),
        trials=tuning + evaluation,
        pack=size,
        step_seconds=_nearest(speeds, size),
        is_estimated=packing.is_estimated(arm),
        seconds=seconds(tuning, test=False)
        + seconds(evaluation, test=True)
        + reads * (rows.seconds("test", 1) + rows.overhead),
        seconds_of_extension=seconds(extension, test=False),
    )


def _of_pack(trials: int, speeds: dict[int, float], rows: "_RowCosts", arm: Arm, *, test: bool) -> float:
    """Steps and evaluations of a pack of so many, and the reads of the test split, each trial alone."""
    training = arm.config.training
    evaluations = 1 + (training.steps // training.evaluate_every if training.evaluate_every else 0)
    steps = training.steps * _nearest(speeds, trials)
    of_splits = evaluations * rows.seconds("validation", trials) + 2 * rows.seconds("forgetting", trials)
    return trials * (steps + of_splits + (rows.seconds("test", 1) if test else 0.0) + rows.overhead)


def _nearest(speeds: dict[int, float], trials: int) -> float:
    return speeds[max((size for size in speeds if size <= trials), default=min(speeds))]


class _RowCosts:
    """What evaluating a split costs a trial, from a part of the validation split, in packs of these sizes."""

    def __init__(self, context: TrainingContext, arm: Arm, sizes: Sequence[int]) -> None:
        self.context, self.arm = context, arm
        self.by_size: dict[int, float] = {}
        self.overhead = 0.0
        for trials in sizes:
            since = time.process_time()
            configs = [arm.config.model_copy(update={"seed": trial}) for trial in range(trials)]
            variant = attached_pack(configs, context.task, context.base)
            self.overhead = max(self.overhead, (time.process_time() - since) / trials)
            try:
                part = _Part(context.task)
                split_rows(variant.model, variant.pack, cast(Task, part), "validation", arm.config.training.precision)
                part.rows, since = 0, _now(context)
                split_rows(variant.model, variant.pack, cast(Task, part), "validation", arm.config.training.precision)
                self.by_size[trials] = (_now(context) - since) / trials / part.rows
            finally:
                variant.detach()
        self.rows: dict[str, int] = {}

    def seconds(self, split: Split, trials: int) -> float:
        if split == "forgetting" and not self.context.task.has_forgetting_split:
            return 0.0
        if split not in self.rows:
            self.rows[split] = sum(map(_rows, self.context.task.evaluation_batches(split)))
        return self.rows[split] * _nearest(self.by_size, trials)


class _Part:
    """A task whose splits have their first batches only; it counts the rows that were read."""

    def __init__(self, task: Task) -> None:
        self.task, self.rows = task, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.task, name)

    def evaluation_batches(self, split: Split) -> Iterator[Batch]:
        for batch in islice(self.task.evaluation_batches(split), TIMED_BATCHES):
            self.rows += _rows(batch)
            yield batch


def _rows(batch: Batch) -> int:
    return len(next(iter(batch.values())))


def _now(context: TrainingContext) -> float:
    """Processor time, or wall time once a GPU has done what it was given."""
    if context.device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize(context.device)
    return time.perf_counter()
