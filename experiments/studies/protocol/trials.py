"""What a study plans and learns: trials, how they ended, and where the tuning of an arm stands."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from experiments.config.schema import RunConfig
from experiments.studies.spec.arms import Arm

Stage = Literal["tuning", "allocation", "search", "race", "evaluation"]
Side = Literal["lower", "higher"]
TUNED = "tuned"


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """One run that a study wants: an arm at a learning rate (None: yet to be chosen) with a seed."""

    key: str  # names the trial in its study
    arm: Arm
    stage: Stage
    settings: tuple[str, ...]  # what it counts for: 'tuned', 'fixed <rate>', or both where the rates are one
    seed: int
    learning_rate: float | None
    multiplier: float | None  # learning rate over the arm's centre, of rates that the arm was tuned over
    knobs: Mapping[str, Any] = field(default_factory=dict, hash=False)  # of the variant, where a search sets them
    thresholds: Mapping[int, float | None] = field(default_factory=dict, hash=False)  # by step, where it may be pruned

    @property
    def config(self) -> RunConfig:
        """The run. Raises: ValueError while its learning rate is not chosen."""
        if self.learning_rate is None:
            raise ValueError(f"the learning rate of {self.key} is chosen when the tuning of {self.arm.label!r} is over")
        config = self.arm.config
        training = config.training.model_copy(update={"learning_rate": self.learning_rate})
        variant = config.variant.model_copy(update=dict(self.knobs)) if self.knobs else config.variant
        seed = self.seed + self.arm.seed_offset
        return config.model_copy(update={"seed": seed, "training": training, "variant": variant})


@dataclass(frozen=True, slots=True)
class TrialResult:
    """How a trial ended: score and loss are those on validation; one that failed or was pruned has none."""

    failed: bool
    score: float | None = None
    loss: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Tuning:
    """Where the tuning of an arm stands."""

    state: Literal["open", "tuned", "not tuned"]
    trials: tuple[PlannedTrial, ...]  # all that it needed so far
    chosen: float | None  # the learning rate of the evaluation
    multiplier: float | None  # of the chosen rate
    added: tuple[float, ...]  # multipliers by which the grid was extended
    side: Side | None  # where they were added
    reason: str  # why it stands there
    knobs: Mapping[str, Any] = field(default_factory=dict)  # of the evaluation, where a search chose them
    number: int | None = None  # of the chosen point among those of a search
    asks: tuple[int, ...] = ()  # numbers of the trials that are to be proposed now
    asks_for: Stage = "search"  # their stage


@dataclass(frozen=True)
class ArmProgress:
    """All trials of an arm that are known to be needed, and what its tuning says."""

    arm: Arm
    wanted: tuple[PlannedTrial, ...]  # finished ones included; each key once
    tuning: Tuning
    complete: bool  # nothing more will be wanted, and all of it has ended

    def evaluations(self, setting: str) -> tuple[PlannedTrial, ...]:
        """The trials on the evaluation seeds that count for a setting."""
        return tuple(trial for trial in self.wanted if trial.stage == "evaluation" and setting in trial.settings)
