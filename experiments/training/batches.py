"""Batches of several trials as one: rows trial-major, as the frozen base sees them."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from experiments.tasks.task import Batch, Task
from experiments.training.hyperparameters import SharedHyperparameters, TrialHyperparameters


def stack(batches: Sequence[Batch], device: torch.device) -> Batch:
    """The rows of all trials, trial-major, where the model is."""
    return {key: torch.cat([batch[key] for batch in batches]).to(device) for key in batches[0]}


def micro_batches(batches: Sequence[Batch], parts: int) -> Iterator[list[Batch]]:
    """The same rows in `parts` equal parts, each with rows of every trial."""
    for part in range(parts):
        yield [{key: rows.chunk(parts)[part] for key, rows in batch.items()} for batch in batches]


def opening_batches(
    task: Task, trials: Sequence[TrialHyperparameters], shared: SharedHyperparameters, model: nn.Module
) -> Iterator[Batch]:
    """The batches that training starts with, read apart from it."""
    device = next(model.parameters()).device
    for batches in zip(*(task.training_batches(trial.seed, shared.batch_size) for trial in trials), strict=True):
        yield stack(batches, device)
