"""One trial on its way to a result: its configuration, run directory, and state while it moves between packs."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from experiments.config.schema import RunConfig
from experiments.record.adapter_files import load_update, save_update
from experiments.record.ledger import note_test_read
from experiments.record.predictions import save_predictions
from experiments.record.run_description import RunDescription
from experiments.record.run_dir import RunDirectory
from experiments.record.run_logger import RunLogger
from experiments.record.starting_point import StartingPoint
from experiments.terminal import Display
from experiments.training.checkpoint import CheckpointError, Checkpoints, Holder
from experiments.training.context import TrainingContext
from experiments.training.device import peak_bytes
from experiments.training.early_stopping import Rungs
from experiments.training.evaluation import Evaluation, by_split, evaluate_plain
from experiments.training.hyperparameters import SharedHyperparameters
from lora_variants.interface.variant import Variant


@dataclass(frozen=True)
class RunOptions:
    """What a run does beyond training: the test score, the ledger's folder, the W&B mirror while it trains.

    `rungs`: the steps at which the trial is evaluated and may be pruned.
    """

    test: str | None  # what the test score is for, as the ledger says it; None: the test split is not read
    runs_dir: Path
    wandb_mode: str
    rungs: Rungs = field(default_factory=Rungs)
    goes_on: bool = False  # what is pruned keeps its checkpoint, for another trial of its run


@dataclass
class Outcome:
    """What training did to one trial; `failure` says why it failed, and is None where it did not."""

    steps_executed: int = 0
    failure: str | None = None


class TrainingPack(Protocol):
    """What a trial asks the pack that it trains in."""

    variant: Variant
    shared: SharedHyperparameters
    outcomes: list[Outcome]

    @property
    def trains(self) -> bool: ...

    @property
    def holders(self) -> Mapping[str, Holder]: ...


class RunningTrial(Protocol):
    """What the loop tells a trial of its pack, and what it asks it."""

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to train: the pack stops here, and the others go on in another one."""

    @property
    def at_rung(self) -> bool:
        """Whether the trial must be scored on validation before it goes on."""

    def report(self, row: dict[str, float], seconds: float) -> None:
        """Take note of a step that the trial did; `seconds` is its share of the pack's time."""

    def score(self, scores: dict[str, float]) -> None:
        """Take note of what the trial scores on validation at this step."""


class TrialRun:
    """One trial's run: starts or resumes on construction, then moves between packs."""

    def __init__(
        self,
        config: RunConfig,
        context: TrainingContext,
        run: RunDescription,
        options: RunOptions,
        display: Display,
        *,
        start: StartingPoint | None = None,
    ) -> None:
        self.config, self.context, self.name, self.options = config, context, run.name, options
        self.folder = folder = run.run_dir
        self.checkpoints = Checkpoints(folder, config_hash=run.config_hash, every=config.training.checkpoint_every)
        self.seconds, self.overhead, self.executed = self.checkpoints.seconds, 0.0, 0
        self._begin(run, display)
        self.start = None if self.checkpoints.start else start
        self.logger = RunLogger(config, context.task, folder, display, wandb_mode=options.wandb_mode)

    def _begin(self, run: RunDescription, display: Display) -> None:
        """Have the run directory of a run that starts, or that goes on from its checkpoint."""
        if step := self.checkpoints.start:
            if step > self.config.training.steps:
                raise CheckpointError(
                    f"{self.checkpoints.path} is of step {step}, this run has {self.config.training.steps}; delete it "
                    "to start this run again from its first step"
                )
            display.say(f"going on from the checkpoint at step {step}")
            for name in self.folder.go_on(self.config, run.environment):
                display.say(f"{self.folder.path / name} was lost or damaged and is written again")
        else:
            self.folder.start(self.config, run.environment)
        if self.checkpoints.note is not None:
            display.say(self.checkpoints.note)
        self.checkpoints.begin()

    def load_into(self, training: TrainingPack, slot: int) -> None:
        """Take a slot of a pack and put the trial's state into it."""
        self.training, self.slot, self.checkpoints.trial = training, slot, slot
        self.logger.load_into(training.variant, slot)
        if training.trains:
            training.variant.pack.steps[slot] = self.checkpoints.restore(training.holders)

    @property
    def step(self) -> int:
        return self.training.variant.pack.steps[self.slot]

    @property
    def failure(self) -> str | None:
        return self.training.outcomes[self.slot].failure

    @property
    def steps_executed(self) -> int:
        """Those of earlier attempts included."""
        return self.checkpoints.executed_before + self.executed

    @property
    def reached(self) -> dict[int, float]:
        """The scores at the rungs so far, by step; NaN where the trial had diverged, which misses any threshold."""
        name = self.context.task.score_name
        return {
            step: self.context.task.score_or_nan(scores[name])
            for step, scores in self.logger.validation
            if step in self.options.rungs.thresholds
        }

    @property
    def at_rung(self) -> bool:
        """Whether the trial must be evaluated on validation before it trains on."""
        return self.failure is None and self.step in self.options.rungs.thresholds and self.step not in self.reached

    @property
    def pruned(self) -> int | None:
        """The step of the rung that the trial has missed; None for a trial that has missed none."""
        return self.options.rungs.prunes_at(self.reached) if self.options.rungs.thresholds else None

    @property
    def has_score(self) -> bool:
        """Whether a trial that ended has trained to its end."""
        return self.failure is None and self.pruned is None

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to train: all steps are done, nothing trains, it failed or was pruned."""
        over = self.step >= self.training.shared.steps or self.pruned is not None
        return not self.training.trains or self.failure is not None or over

    def report(self, row: dict[str, float], seconds: float) -> None:
        """Take note of a step that the trial did; `seconds` is its share of the pack's time."""
        self.seconds += seconds
        self.executed += 1
        self.logger.on_step(self.step, row)
        self.keep()

    def score(self, scores: dict[str, float]) -> None:
        """Take note of what the trial scores on validation at this step."""
        self.logger.on_step(self.step, by_split("validation", [scores])[0])
        if self.options.goes_on and self.pruned is not None:
            self.keep(now=True)

    def keep(self, *, now: bool = False) -> None:
        """Write a checkpoint where one is due, or now."""
        self.checkpoints.after_step(self.step, self.training.holders, seconds=self.seconds, now=now)

    def unload(self) -> None:
        """Leave the pack with the state that the trial has."""
        self.checkpoints.hold(self.step, self.training.holders)
        self.start = None

    def conclude(self, scores: Evaluation, forgetting: dict[str, float] | None) -> None:
        """Write down what was learned and what it scored, while the pack stands; `close` comes after it."""
        self.predictions = {"validation": scores.predictions}
        self._fail_if(self.context.task.divergence(scores, "validation"))
        if forgetting is not None and not all(map(math.isfinite, forgetting.values())):
            self._fail_if(f"not finite on the forgetting split: {forgetting}; a lower learning rate may help")
        if self.failure is not None:
            return
        self.score(scores)
        seconds = {"training": self.seconds, "overhead": self.overhead}
        self.result: dict[str, Any] = self.logger.result(
            seconds=seconds,
            bytes_peak=peak_bytes(self.context.device),
            steps_executed=self.steps_executed,
            resumed_from=self.checkpoints.resumed_from,
            base_parameters=self.context.base_parameters,
        ) | ({} if forgetting is None else {"forgetting": forgetting})
        card, base_sha256 = self.context.task.model_card(), self.context.base_sha256
        self.files = save_update(self.training.variant, self.slot, self.folder.path, card, base_sha256=base_sha256)

    def _fail_if(self, reason: str | None) -> None:
        """The trial has failed for this reason, where it is one, unless it had failed before."""
        outcome = self.training.outcomes[self.slot]
        outcome.failure = outcome.failure or reason

    def _why_pruned(self) -> str:
        if self.options.goes_on:
            reached = self.reached[self.pruned or 0]
            return (
                f"stopped at step {self.pruned}, at {reached:g}: it goes on if it is among the best of its seed there"
            )
        return f"pruned at step {self.pruned}: {self.reached} misses {dict(self.options.rungs.thresholds)}"

    def close(self) -> None:
        """With the base free of adapters: the test score where it is asked for, then the result, last."""
        if self.has_score and self.options.test:
            test = score_on_test(
                self.config,
                self.context,
                self.folder,
                self.options.runs_dir,
                name=self.name,
                purpose=self.options.test,
            )
            self.result["test"], self.predictions["test"] = test, test.predictions
            self._fail_if(self.context.task.divergence(test, "test"))
        if self.failure is not None:
            self.folder.fail(self.failure)
            self.logger.abandon(self.failure)
            return
        if self.pruned is not None:
            self.folder.prune(self._why_pruned())
            if not self.options.goes_on:
                self.checkpoints.remove()
            self.logger.abandon("pruned")
            return
        predictions = save_predictions(self.folder.path, self.predictions)
        self.folder.finish(self.result, [*self.files, predictions])
        self.checkpoints.remove()
        self.logger.finish(self.result, self.files)


def score_on_test(
    config: RunConfig, context: TrainingContext, folder: RunDirectory, runs_dir: Path, *, name: str, purpose: str
) -> Evaluation:
    """The score on the test split of what is on disk, now or later the same; the read goes into the ledger.

    Raises: RecordError, before the split is read, where that is not what a finished run wrote.
    """
    folder.check_predictions()
    base = copy.deepcopy(context.base)
    if next(base.parameters()).dtype.itemsize < 4:
        base.float()  # in a narrow W0 + ΔW most of ΔW would be rounded away
    load_update(base, folder.path)
    note_test_read(runs_dir, data=context.data_sha256["test"], study=config.study, run=name, purpose=purpose)
    return evaluate_plain(base, context.task, "test", config.training.precision)
