"""What the gradient of the loss at W0 says of each matrix: singular values, before anything is trained."""

from collections.abc import Sequence
from itertools import islice
from typing import Any

import torch

from experiments.config.loading import resolve
from experiments.config.schema import RunConfig
from experiments.training.context import TrainingContext, attached_pack
from experiments.training.hyperparameters import shared_hyperparameters
from experiments.training.labels import labelled_batches
from experiments.training.loop import compute_gradients


def gradient_spectra(context: TrainingContext, config: RunConfig, *, seed: int, batches: int) -> dict[str, list[float]]:
    """The singular values of the mean gradient of every targeted matrix over a seed's first batches, highest first.

    The head, where there is one, is fresh: what its first gradients say is said here too.
    """
    tree = config.tree() | {"variant": {"name": "full"}, "seed": seed}
    whole = resolve(tree)
    variant = attached_pack([whole], context.task, context.base)
    try:
        shared = shared_hyperparameters(whole)
        for batch in islice(labelled_batches(context.task, seed, shared), batches):
            compute_gradients(variant, context.task, [batch], shared)
        found = {name: layer.get_parameter("W").grad for name, layer in variant.layers.items()}
    finally:
        variant.detach()
    return {name: _singular_values(gradient[0] / batches) for name, gradient in found.items() if gradient is not None}


def _singular_values(matrix: Any) -> list[float]:
    values: Sequence[float] = torch.linalg.svdvals(matrix.detach().cpu().double()).tolist()
    return list(values)
