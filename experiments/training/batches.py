"""Batches of several trials as one: rows trial-major, as the frozen base sees them."""

from collections.abc import Iterator, Sequence

import torch

from experiments.tasks.task import Batch, Task
from experiments.training.hyperparameters import SharedHyperparameters, TrialHyperparameters
from experiments.training.labels import labelled_batches, with_targets
from lora_variants.interface.variant import Variant


def stack(batches: Sequence[Batch], device: torch.device) -> Batch:
    """The rows of all trials, trial-major, where the model is."""
    return {key: torch.cat([batch[key] for batch in batches]).to(device) for key in batches[0]}


def micro_batches(batches: Sequence[Batch], parts: int) -> Iterator[list[Batch]]:
    """The same rows in `parts` equal parts, each with rows of every trial."""
    for part in range(parts):
        yield [{key: rows.chunk(parts)[part] for key, rows in batch.items()} for batch in batches]


def opening_batches(
    task: Task, trials: Sequence[TrialHyperparameters], shared: SharedHyperparameters, variant: Variant
) -> Iterator[Batch]:
    """The batches that training starts with, read apart from it."""
    device = next(variant.model.parameters()).device
    for batches in zip(*(labelled_batches(task, trial.seed, shared) for trial in trials), strict=True):
        yield with_targets(variant, task, stack(batches, device))
