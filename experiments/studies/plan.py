"""What a study would do, without doing it: arms, trials, packs, and the time they take on this machine."""

import os
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, cast

import torch

from experiments.config.schema import RunConfig
from experiments.record.starting_point import StartingPoint, read_start
from experiments.studies.consistency import shared_context
from experiments.studies.protocol.grid_stage import POINTS_ADDED
from experiments.studies.protocol.protocol import plan_ahead
from experiments.studies.search.proposer import refuse_impossible_searches
from experiments.studies.spec.arms import Arm
from experiments.studies.spec.study import Study
from experiments.studies.terminal import StudyView, duration
from experiments.studies.workers.packing import Packing, groups_of
from experiments.tasks.task import Batch, Split, Task
from experiments.training.context import TrainingContext, attached_pack
from experiments.training.evaluation import split_rows
from lora_variants.interface.ranks import RankWarning
from lora_variants.interface.variant import Variant

TIMED_BATCHES = 2  # of a split: few beside a trial
PATIENCE_SECONDS = 2.0  # of measuring packs, before further groups are estimated


@dataclass(frozen=True)
class Count:
    """Trials of one arm: planned, and at most more if its grid is extended."""

    tuning: int
    evaluation: int
    extension: int
    extended_for_sure: bool


@dataclass(frozen=True)
class GroupCost:
    """A group of arms whose trials share packs: seconds of one core (of the GPU) for all its trials."""

    label: str
    arms: int
    trials: int
    pack: int
    step_seconds: float  # of one trial in a pack
    seconds: float
    seconds_of_extension: float


class PlanningContext(TrainingContext):
    """One that has arbitrary weights, and remembers the last arm that it planned."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self.base = self.task.architecture().to(self.device)
        self._last: tuple[RunConfig, tuple[Variant, list[str]]] | None = None

    def plan(self, config: RunConfig, start: StartingPoint | None = None) -> tuple[Variant, list[str]]:
        if self._last is None or self._last[0] is not config:
            self._last = config, super().plan(config, read_start(config.start) if start is None else start)
        return self._last[1]


def plan_study(study: Study, view: StudyView, *, workers: int, pack: int | None) -> None:
    """Print the plan; nothing is trained for keeps, downloaded or written. Costs are measured, once a group."""
    shared_context(study)
    context = PlanningContext(study.arms[0].config)
    refuse_impossible_searches(study, context)
    torch.set_num_threads(study.arms[0].config.training.threads or 1)
    packing = Packing(context, size=pack, workers=workers, patience=PATIENCE_SECONDS)
    counts = {arm.config_hash: _count(study, arm) for arm in study.arms}
    rows = [_row(study, arm, counts[arm.config_hash], packing) for arm in study.arms]
    groups = groups_of(study.arms, packing)
    columns: tuple[str, ...] = ("arm", "rate around", "trainable parameters", "tuning", "evaluation", "extension")
    if study.config.search is not None:
        columns = ("arm", "rate around", "budget", "tuning", "evaluation")
    view.plan(columns, rows, title=f"study {study.name}: {len(rows)} arms; trials of tuning and evaluation")
    begun = time.process_time()
    view.display.say(f"measuring {len(groups)} group{'s' * (len(groups) > 1)} of arms whose trials can train together")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)
        costs = list(_costs(packing, groups.values(), counts))
    view.plan(
        ("group", "arms", "trials", "pack", "ms/step", "one core"),
        [_words(cost) for cost in costs],
        title="trials that can train together; ms/step: of one trial in its pack",
    )
    view.display.say(_describe(study, context, counts, costs, workers=workers, start=begun, probed=time.process_time()))


def _count(study: Study, arm: Arm) -> Count:
    planned = plan_ahead(arm, study.protocol, study.config.search)
    evaluation = sum(trial.stage == "evaluation" for trial in planned)
    if study.config.search is not None:
        return Count(len(planned) - evaluation, evaluation, 0, extended_for_sure=False)
    extension = POINTS_ADDED * len(study.protocol.tuning.seeds)
    sure = len(study.protocol.tuning.learning_rate_multipliers) == 2
    return Count(len(planned) - evaluation, evaluation, extension, extended_for_sure=sure)


def _row(study: Study, arm: Arm, count: Count, packing: Packing) -> tuple[str, ...]:
    packing.group(arm)
    trials = (str(count.tuning), str(count.evaluation))
    if study.config.search is not None:
        return (arm.label, f"{arm.centre:g}", study.config.search.budget.description, *trials)
    trainable = packing.context.plan(arm.config)[0].trainable_parameters(0)  # of the plan that it remembers
    extension = f"{'' if count.extended_for_sure else 'up to '}{count.extension}"
    return (arm.label, f"{arm.centre:g}", f"{trainable:,}", *trials, extension)


def _words(cost: GroupCost) -> tuple[str, ...]:
    sizes = (str(cost.arms), str(cost.trials), str(cost.pack))
    return (cost.label, *sizes, f"{1e3 * cost.step_seconds:.2f}", duration(cost.seconds))


def _describe(
    study: Study,
    context: TrainingContext,
    counts: dict[str, Count],
    costs: Sequence[GroupCost],
    *,
    workers: int,
    start: float,
    probed: float,
) -> str:
    """The sum: what this process needed to get ready, every worker needs too."""
    base = sum(parameter.numel() for parameter in context.base.parameters())
    at_once = 1 if context.device.type == "cuda" else min(workers, _cores())
    ready = probed * workers / at_once
    seconds = ready + sum(cost.seconds for cost in costs) / at_once
    longest = seconds + sum(cost.seconds_of_extension for cost in costs) / at_once
    trials = sum(cost.trials for cost in costs)
    more = sum(count.extension for count in counts.values() if not count.extended_for_sure)
    text = f"{trials} trials of a base of {base:,} parameters"
    text += f" (up to {more} more where a best rate is at an end of its grid)" if more else ""
    halved = study.config.search is not None and study.config.search.halving is not None
    text += f"; {'at most' if halved else 'about'} {duration(seconds)} with {workers} worker{'s' * (workers > 1)}"
    text += f" on {_cores()} free cores"
    return text + (f" ({duration(longest)} if every grid is extended)" if more else "")


def _costs(packing: Packing, groups: Iterable[Sequence[Arm]], counts: dict[str, Count]) -> Iterator[GroupCost]:
    """Of every group; once patience is used up, evaluations are taken to cost what they did in the last group."""
    rows: _RowCosts | None = None
    for arms in groups:
        size, speeds = packing.size(arms[0]), packing.speeds(arms[0])
        if rows is None or not packing.impatient:
            rows = _RowCosts(packing.context, arms[0], sorted({1, min(size, speeds[-1].trials)}))
        yield _cost(arms, counts, size, {speed.trials: speed.seconds for speed in speeds}, rows)


def _cost(
    arms: Sequence[Arm], counts: dict[str, Count], size: int, speeds: dict[int, float], rows: "_RowCosts"
) -> GroupCost:
    arm = arms[0]

    def seconds(trials: int, *, test: bool) -> float:
        full, rest = divmod(trials, size)
        return sum(_of_pack(n, speeds, rows, arm, test=test) * times for n, times in ((size, full), (rest, 1)) if n)

    tuning = sum(counts[a.config_hash].tuning for a in arms)
    tuning += sum(counts[a.config_hash].extension for a in arms if counts[a.config_hash].extended_for_sure)
    evaluation = sum(counts[a.config_hash].evaluation for a in arms)
    extension = sum(counts[a.config_hash].extension for a in arms if not counts[a.config_hash].extended_for_sure)
    return GroupCost(
        label=arm.label if len(arms) == 1 else f"{arm.label} ... {arms[-1].label}",
        arms=len(arms),
        trials=tuning + evaluation,
        pack=size,
        step_seconds=_nearest(speeds, size),
        seconds=seconds(tuning, test=False) + seconds(evaluation, test=True),
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
            configs = [arm.config.model_copy(update={"seed": arm.config.seed + trial}) for trial in range(trials)]
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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
