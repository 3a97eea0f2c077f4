"""What a task is to the training loop: a base model, three splits, a loss for each row, and a score."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from experiments.models.model_card import ModelCard
from experiments.models.model_config import ModelConfig
from experiments.models.weights import Report, silent
from lora_variants.interface.rng import stream
from lora_variants.interface.variant import Variant

Split = Literal["validation", "test", "forgetting"]
Batch = dict[str, Tensor]
Predictions = dict[str, Tensor | list[str]]  # column -> a value for each row of a split

# Times the cross-entropy of a predictor that ignores its input. At up to 100 times the shipped learning rates no run of
# 12 or 60 steps came beyond that predictor's on `bytes`, nor beyond 1.3 times it on `stories`, whatever the variant.
DIVERGED = 10.0


def permuted(targets: Tensor, seed: int) -> Tensor:
    """The targets of a training split in another order, that of a run's seed."""
    return targets[torch.randperm(len(targets), generator=stream(seed, "labels"))]


def names_of(names: Sequence[str], labels: Tensor) -> list[str]:
    """The name of each label; `labels` are their numbers, of any type."""
    return [names[int(label)] for label in labels.tolist()]


class TaskConfig(BaseModel):
    """The knobs of a task: strict types, frozen, unknown keys refused."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    name: str
    # Knobs that say where data or W0 come from, or check them: a run depends on their content.
    places: ClassVar[tuple[str, ...]] = ()


class Task(ABC):
    """Rows are independent. The loop stacks the rows of several trials, so every tensor has rows first."""

    score_name: str
    higher_is_better: ClassVar[bool]
    head_modules: tuple[str, ...] = ()
    needs_model: ClassVar[bool] = False  # whether the base is the user's choice, the section `model`
    false_labels: ClassVar[tuple[str, ...]] = ()  # of `training.labels` what it can train on beside its own
    steps_alike: ClassVar[bool] = True  # whether batches of different steps have the same shape

    config_class: ClassVar[type[TaskConfig]]

    def __init__(self, config: Any, model_config: ModelConfig | None = None) -> None:
        self.config, self.model_config = config, model_config

    def read_data(self, report: Report = silent) -> None:
        """Have the data as batches are made of them; `report` hears of work that takes long.

        Raises: DataError with what is wrong with each split; NotHereError.
        """

    def describe_data(self) -> dict[str, dict[str, str]]:
        """What a plan says of each split, in words: its rows, its labels, what is cut."""
        return {}

    @abstractmethod
    def data_sha256(self) -> dict[str, str]:
        """What the data are, by content: split or source -> hash."""

    def data_facts(self) -> dict[str, Any]:
        """What `result.json` says of the data: rows, what was left out, what was cut."""
        return {}

    def data_warnings(self) -> list[str]:
        """What is doubtful in data that were read."""
        return []

    def data_notes(self) -> list[str]:
        """What a run says of a user's own data before it trains, a line a split: files, rows, labels, what is cut."""
        return []

    @property
    def has_forgetting_split(self) -> bool:
        """Whether there are data of the base's own domain, on which it is scored before and after."""
        return False

    @abstractmethod
    def architecture(self) -> nn.Module:
        """The base model with arbitrary weights: enough to plan with."""

    def find_base(self) -> None:
        """Raises: ModelError where the files of W0 are not there or torn; NotHereError. Nothing is loaded."""

    def base_facts(self) -> dict[str, str]:
        """What `environment.json` says of the base model, next to the fingerprint of its weights."""
        return {}

    def model_card(self) -> ModelCard:
        """How others load the base and read its outputs; by default that only this project can load it."""
        return ModelCard()

    def head_names(self, model: nn.Module) -> tuple[str, ...]:
        """The modules of the base model that every variant trains alike."""
        return self.head_modules

    def trains_alone(self) -> str | None:
        """Why trials over this base cannot share a pack; None where they can."""
        return None

    def leave_out_unread_rows(self, model: nn.Module, wanted: bool) -> None:
        """While it trains, have the base compute no row that the head does not read, where that changes no number."""

    @abstractmethod
    def base_model(self, report: Report = silent) -> nn.Module:
        """The base model with its weights W0; `report` hears of work that takes long."""

    @abstractmethod
    def training_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        """Batches without end, in an order that depends on the seed alone."""

    def shuffled_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        """`training_batches` with the targets of other training rows, permuted by the seed."""
        raise NotImplementedError

    def targets_shape(self, batch: Batch) -> tuple[int, ...]:
        """(rows, tokens) of the targets of a language model's batch."""
        raise NotImplementedError

    def target_logits(self, model: nn.Module, batch: Batch) -> Float[Tensor, "rows tokens classes"]:
        """What a language model predicts, in the place of each target."""
        raise NotImplementedError

    @abstractmethod
    def evaluation_batches(self, split: Split) -> Iterator[Batch]:
        """The whole of a split, in order."""

    @abstractmethod
    def row_losses(self, model: nn.Module, batch: Batch) -> Float[Tensor, " rows"]:
        """For each row the sum of its losses."""

    @abstractmethod
    def row_counts(self, batch: Batch) -> Float[Tensor, " rows"]:
        """For each row how many losses `row_losses` sums."""

    def row_quantities(self, model: nn.Module, batch: Batch) -> dict[str, Float[Tensor, " rows"]]:
        """For each row what an evaluation needs of it: the sum of its losses, and more where a task scores more."""
        return {"loss": self.row_losses(model, batch)}

    @abstractmethod
    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        """What an evaluation reports, `score_name` among it, from the means of a split's `row_quantities`."""

    def split_metrics(self, rows: Mapping[str, Tensor], counts: Tensor) -> dict[str, float]:
        """`metrics` from the `row_quantities` (rows,) of a whole split; to override where means do not do: ranks."""
        total = float(counts.sum())
        return self.metrics({name: float(values.sum()) / total for name, values in rows.items()})

    def predictions(self, split: Split, rows: Mapping[str, Tensor], counts: Tensor) -> Predictions:
        """What a run keeps of each row of a split, in the order of the split: its place there, its mean loss.

        From `row_quantities` in the order of `evaluation_batches`. A task adds what its metrics are computed from, so
        that they and any other follow from what is kept.
        """
        return {"row": torch.arange(len(counts)), "loss": rows["loss"] / counts}

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of what an evaluation reports."""
        return "loss", self.score_name

    @property
    def score_range(self) -> tuple[float, float]:
        """The least and the greatest score that counts: beyond is no bad model but one that diverged, so be generous.

        For a loss that is what a predictor has that ignores its input, times `DIVERGED` for a cross-entropy.
        """
        return -math.inf, math.inf

    def score_or_nan(self, score: float) -> float:
        """The score, NaN where a model diverged that has it."""
        least, greatest = self.score_range
        return score if least <= score <= greatest and math.isfinite(score) else math.nan

    def divergence(self, metrics: Mapping[str, float], split: Split) -> str | None:
        """Why the metrics of a split are no score but those of a model that diverged; None where they are one."""
        if not all(map(math.isfinite, metrics.values())):
            return f"not finite on the {split} split: {dict(metrics)}; a lower learning rate may help"
        if math.isfinite(self.score_or_nan(score := metrics[self.score_name])):
            return None
        least, greatest = self.score_range
        return (
            f"diverged: {self.score_name} {score:.6g} on the {split} split is no score, which is from {least:g} to "
            f"{greatest:.4g} here; a lower learning rate may help"
        )

    def diagnostics(self, variant: Variant, trial: int) -> dict[str, float]:
        """What the task knows of ΔW itself at the end; empty where it knows nothing."""
        return {}

    def use_gradient_checkpointing(self, model: nn.Module) -> None:
        """Have the base model compute activations again in backward instead of keeping them."""
        raise ValueError(f"training.gradient_checkpointing: the base model of task {self.config.name!r} has none")
