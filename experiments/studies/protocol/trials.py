"""What a study plans and learns: trials, how they ended, and where the tuning of an arm stands."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from experiments.config.schema import RunConfig
from experiments.studies.protocol.grid import Point
from experiments.studies.spec.arm import Arm

Stage = Literal["rung", "tuning", "allocation", "search", "race", "evaluation"]
Side = Literal["lower", "higher"]
TUNED = "tuned"  # the setting of the points that tuning chose
BEST_POINT = "best point"  # that of one point for all seeds: of the best mean score on validation


@dataclass(frozen=True, slots=True)
class PlannedTrial:
    """One run that a study wants: an arm at a learning rate (None: yet to be chosen) with a seed."""

    key: str  # names the trial in its study
    arm: Arm
    stage: Stage
    settings: tuple[str, ...]  # what it counts for: 'tuned', 'best point', 'fixed <rate>', or several of them
    seed: int  # the protocol's, by which arms are paired; the run's has the arm's offset on top
    learning_rate: float | None
    multiplier: float | None  # learning rate over the arm's centre, of rates that the arm was tuned over
    knobs: Mapping[str, Any] = field(default_factory=dict, hash=False)  # of the variant, where tuning sets them
    thresholds: Mapping[int, float | None] = field(default_factory=dict, hash=False)  # by step, where it may be pruned
    part: float = 1.0  # of its run's steps that the trial trains
    run_of: str | None = None  # the trial of tuning whose run this one reads on the test split; None: it trains one

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
    """How a trial ended: score and loss are those on validation; one that failed or was pruned has none.

    `reached`: its scores at rungs on the way, by step.
    """

    failed: bool
    score: float | None = None
    loss: float | None = None
    test: float | None = None  # score on the test split, of an evaluation
    reason: str | None = None
    reached: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Replication:
    """One tuning of an arm, from its own trials to its choice: of an evaluation seed, or of several that share it."""

    seeds: tuple[int, ...]  # of the evaluation, that go by its choice
    state: Literal["open", "tuned", "not tuned"]
    trials: tuple[PlannedTrial, ...]  # all that it needed so far
    reason: str  # why it stands there
    chosen: float | None = None  # the learning rate of the evaluation
    multiplier: float | None = None  # of the chosen rate
    added: tuple[Point, ...] = ()  # by which the grid was extended
    side: Side | None = None  # where they were added
    knobs: Mapping[str, Any] = field(default_factory=dict)  # of the evaluation, that were chosen beside the rate
    values: Mapping[str, float] = field(default_factory=dict)  # of the grid's other knobs, at the chosen point
    number: int | None = None  # of the chosen point among those of a search
    asks: tuple[int, ...] = ()  # numbers of the trials that are to be proposed now
    asks_for: Stage = "search"  # their stage


@dataclass(frozen=True)
class Tuning:
    """Where the tuning of an arm stands: all its replications, one where the evaluation seeds share it."""

    state: Literal["open", "tuned", "not tuned"]
    replications: tuple[Replication, ...]
    reason: str
    best_point: Point | None = None  # the one for all seeds: of the best mean validation score

    @property
    def trials(self) -> tuple[PlannedTrial, ...]:
        """All that it needed so far, each once."""
        return tuple({trial.key: trial for one in self.replications for trial in one.trials}.values())

    @property
    def shared(self) -> bool:
        """Whether all evaluation seeds go by one choice."""
        return len(self.replications) == 1

    @property
    def chosen_rates(self) -> tuple[float, ...]:
        """The chosen learning rate of every replication that has chosen."""
        return tuple(one.chosen for one in self.replications if one.chosen is not None)

    @property
    def asking(self) -> tuple[Replication, ...]:
        """The searches that ask for trials to be proposed."""
        return tuple(one for one in self.replications if one.asks)


@dataclass(frozen=True)
class ArmProgress:
    """All trials of an arm that are known to be needed, and what its tuning says."""

    arm: Arm
    seeds: tuple[int, ...]  # of the evaluation, that it has come to
    wanted: tuple[PlannedTrial, ...]  # finished ones included; each key once
    tuning: Tuning
    complete: bool  # nothing more will be wanted, and all of it has ended

    def evaluations(self, setting: str) -> tuple[PlannedTrial, ...]:
        """The trials on the evaluation seeds that count for a setting."""
        return tuple(trial for trial in self.wanted if trial.stage == "evaluation" and setting in trial.settings)
