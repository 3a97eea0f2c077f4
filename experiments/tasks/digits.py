"""The `digits` task: a vision transformer that knows the digits 0 to 4 learns 5 to 9 (scikit-learn's 8 x 8 images)."""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from experiments.data.description import describe_labels
from experiments.models.digit_transformer import LABELS, DigitRecipe, DigitTransformer, pretrained_digits
from experiments.models.model_card import ModelCard
from experiments.models.weights import Report, load_shipped, silent
from experiments.tasks.built_in_base import BuiltInBaseConfig
from experiments.tasks.task import Batch, Predictions, Split, Task, TaskConfig, names_of, permuted
from lora_variants.interface.config import MOST, Seed
from lora_variants.interface.rng import stream

EVALUATION_ROWS = 256
DIGITS = tuple(str(digit) for digit in range(LABELS, 2 * LABELS))  # by label
PARTS = {"train": (0.0, 0.5), "validation": (0.5, 0.75), "test": (0.75, 1.0)}


class DigitsConfig(BuiltInBaseConfig):
    name: Literal["digits"] = "digits"
    pretraining_steps: int = Field(1500, ge=1, le=MOST, description="steps of pretraining on the digits 0 to 4")
    split_seed: Seed = Field(0, description="seed of the three splits; not the run's seed")


class Digits(Task):
    """Batches are {"images": (rows, 8, 8), "labels": (rows,)} with labels 0 .. 4 for the digits 5 .. 9."""

    config_class: ClassVar[type[TaskConfig]] = DigitsConfig
    score_name = "accuracy"
    higher_is_better: ClassVar[bool] = True
    false_labels: ClassVar[tuple[str, ...]] = ("shuffled",)
    head_modules: tuple[str, ...] = ("head",)
    config: DigitsConfig

    @cached_property
    def images(self) -> tuple[Tensor, Tensor]:
        """All images with values from 0 to 1, and their digits."""
        from sklearn.datasets import load_digits

        loaded = load_digits()
        return torch.from_numpy(loaded.images).float() / 16, torch.from_numpy(loaded.target).long()

    @property
    def known_digits(self) -> tuple[Tensor, Tensor]:
        """The images of the digits 0 to 4, and the digits: what the base model knows."""
        images, digits = self.images
        known = digits < LABELS
        return images[known], digits[known]

    @cached_property
    def splits(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The digits 5 to 9, shuffled once: half for training, a quarter each for validation and test."""
        images, digits = self.images
        new = torch.nonzero(digits >= LABELS).flatten()
        new = new[torch.randperm(len(new), generator=stream(self.config.split_seed, "split"))]
        parts = {split: new[int(a * len(new)) : int(b * len(new))] for split, (a, b) in PARTS.items()}
        return {split: (images[rows], digits[rows] - LABELS) for split, rows in parts.items()}

    def data_sha256(self) -> dict[str, str]:
        return {
            split: hashlib.sha256(images.numpy().tobytes() + labels.numpy().tobytes()).hexdigest()
            for split, (images, labels) in self.splits.items()
        }

    def describe_data(self) -> dict[str, dict[str, str]]:
        return {
            split: {
                "rows": f"{len(labels):,}",
                "labels": describe_labels(names_of(DIGITS, labels), DIGITS),
            }
            for split, (_, labels) in self.splits.items()
        }

    def architecture(self) -> nn.Module:
        return DigitTransformer()

    def base_model(self, report: Report = silent) -> nn.Module:
        if self.config.pretraining == "shipped":
            load_shipped(model := self.architecture(), "digits")
            return model
        recipe = DigitRecipe(steps=self.config.pretraining_steps, seed=self.config.pretraining_seed)
        return pretrained_digits(*self.known_digits, recipe, report)

    def model_card(self) -> ModelCard:
        return ModelCard(labels=DIGITS)

    def training_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        """Every image once an epoch, in a new order each; a step may span two epochs."""
        yield from self._batches(*self.splits["train"], seed, batch_size)

    def shuffled_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        images, labels = self.splits["train"]
        yield from self._batches(images, permuted(labels, seed), seed, batch_size)

    def _batches(self, images: Tensor, labels: Tensor, seed: int, batch_size: int) -> Iterator[Batch]:
        generator, order = stream(seed, "data"), torch.empty(0, dtype=torch.long)
        while True:
            while len(order) < batch_size:
                order = torch.cat([order, torch.randperm(len(images), generator=generator)])
            chosen, order = order[:batch_size], order[batch_size:]
            yield {"images": images[chosen], "labels": labels[chosen]}

    def evaluation_batches(self, split: Split) -> Iterator[Batch]:
        for images, labels in zip(*(part.split(EVALUATION_ROWS) for part in self.splits[split]), strict=True):
            yield {"images": images, "labels": labels}

    def row_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch["images"]), batch["labels"], reduction="none")

    def row_counts(self, batch: Batch) -> Tensor:
        return torch.ones(len(batch["labels"]), device=batch["labels"].device)

    def row_quantities(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = model(batch["images"])
        losses = F.cross_entropy(logits, batch["labels"], reduction="none")
        return {"loss": losses, "label": batch["labels"], "prediction": logits.argmax(dim=1)}

    def split_metrics(self, rows: Mapping[str, Tensor], counts: Tensor) -> dict[str, float]:
        right = (rows["label"] == rows["prediction"]).double()
        return super().split_metrics({"loss": rows["loss"], "accuracy": right}, counts)

    def predictions(self, split: Split, rows: Mapping[str, Tensor], counts: Tensor) -> Predictions:
        named = {side: names_of(DIGITS, rows[side]) for side in ("label", "prediction")}
        return super().predictions(split, rows, counts) | named

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        return {"loss": means["loss"], "accuracy": means["accuracy"]}

    @property
    def score_range(self) -> tuple[float, float]:
        return 0.0, 1.0

    def use_gradient_checkpointing(self, model: nn.Module) -> None:
        assert isinstance(model, DigitTransformer)
        model.gradient_checkpointing = True
