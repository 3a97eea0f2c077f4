"""The `bytes` task: a byte-level model of Python's source is adapted to the prose of Python's own documentation.

Real text and a real change of domain, with nothing to download: the base was pretrained on the standard
library's source, the topics are those of `help()`. Score: bits per byte on topics held out whole.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from experiments.models.byte_pretraining import Recipe, pretrained, random_windows
from experiments.models.transformer import ByteTransformer
from experiments.models.weights import Report, load_shipped, silent
from experiments.shipped_files import read_shipped
from experiments.tasks.built_in_base import BuiltInBaseConfig
from experiments.tasks.task import DIVERGED, Batch, Predictions, Split, Task, TaskConfig, permuted
from lora_variants.interface.config import MOST
from lora_variants.interface.rng import stream

BITS = 8.0  # of a byte, where nothing is known
EVALUATION_ROWS = 32  # more do not fit into a core's cache, and cost a third more
SPLITS = ("train", "validation", "test")


class BytesConfig(BuiltInBaseConfig):
    name: Literal["bytes"] = "bytes"
    context: int = Field(64, ge=8, le=64, description="bytes the model sees before the last one it predicts")
    pretraining_steps: int = Field(
        1000, ge=1, le=MOST, description="steps of pretraining of the base model on Python's source"
    )


class Bytes(Task):
    """Batches are {"tokens": (rows, context + 1)} windows of bytes, with "targets" (rows, context) of false labels."""

    score_name = "bits_per_byte"
    higher_is_better: ClassVar[bool] = False
    false_labels: ClassVar[tuple[str, ...]] = ("shuffled", "base_model")
    config_class: ClassVar[type[TaskConfig]] = BytesConfig
    config: BytesConfig

    @cached_property
    def texts(self) -> dict[str, bytes]:
        """The topics of each split, joined; a topic is in one split only."""
        return {split: read_shipped(f"bytes_{split}.txt") for split in SPLITS}

    def data_sha256(self) -> dict[str, str]:
        return {split: hashlib.sha256(text).hexdigest() for split, text in self.texts.items()}

    def describe_data(self) -> dict[str, dict[str, str]]:
        context = self.config.context
        windows = {split: f"{(len(text) - 1) // context:,}" for split, text in self.texts.items()}
        windows["train"] = "drawn at random"
        return {
            split: {"bytes": f"{len(text):,}", "rows": windows[split], "bytes in a row": str(context + 1)}
            for split, text in self.texts.items()
        }

    def architecture(self) -> nn.Module:
        return ByteTransformer()

    def base_model(self, report: Report = silent) -> nn.Module:
        if self.config.pretraining == "shipped":
            load_shipped(model := self.architecture(), "bytes")
            return model
        return pretrained(Recipe(steps=self.config.pretraining_steps, seed=self.config.pretraining_seed), report)

    def training_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        corpus, generator = _as_tensor(self.texts["train"]), stream(seed, "data")
        while True:
            yield {"tokens": random_windows(corpus, batch_size, self.config.context + 1, generator)}

    def shuffled_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        corpus, generator = _as_tensor(self.texts["train"]), stream(seed, "data")
        others = permuted(corpus, seed)
        while True:
            places = random_windows(torch.arange(len(corpus)), batch_size, self.config.context + 1, generator)
            yield {"tokens": corpus[places], "targets": others[places[:, 1:]]}

    def targets_shape(self, batch: Batch) -> tuple[int, ...]:
        rows, length = batch["tokens"].shape
        return rows, length - 1

    def target_logits(self, model: nn.Module, batch: Batch) -> Tensor:
        found: Tensor = model(batch["tokens"][:, :-1])
        return found

    def evaluation_batches(self, split: Split) -> Iterator[Batch]:
        """Windows side by side: each byte is predicted once, from at most `context` bytes before it."""
        corpus, context = _as_tensor(self.texts[split]), self.config.context
        windows = corpus.unfold(0, context + 1, context)
        for rows in windows.split(EVALUATION_ROWS):
            yield {"tokens": rows}

    def row_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        tokens = batch["tokens"]
        logits, targets = self.target_logits(model, batch), batch.get("targets", tokens[:, 1:])
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return losses.view(len(tokens), -1).sum(dim=1)

    def row_counts(self, batch: Batch) -> Tensor:
        rows, length = batch["tokens"].shape
        return torch.full((rows,), float(length - 1), device=batch["tokens"].device)

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        return {"loss": means["loss"], "bits_per_byte": means["loss"] / math.log(2)}

    def predictions(self, split: Split, rows: Mapping[str, Tensor], counts: Tensor) -> Predictions:
        return super().predictions(split, rows, counts) | {"tokens": counts.long()}

    @property
    def score_range(self) -> tuple[float, float]:
        return 0.0, DIVERGED * BITS

    def use_gradient_checkpointing(self, model: nn.Module) -> None:
        assert isinstance(model, ByteTransformer)
        model.gradient_checkpointing = True


def _as_tensor(text: bytes) -> Tensor:
    return torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
