"""What the frozen base's layers see: the second moment of each adapted layer's input, on the validation split."""

from collections.abc import Callable
from itertools import islice

import torch
from torch import Tensor, nn

from experiments.config.loading import resolve
from experiments.config.schema import RunConfig
from experiments.training.batches import stack
from experiments.training.context import TrainingContext

BATCHES = 16


@torch.no_grad()
def input_moments(context: TrainingContext, config: RunConfig) -> dict[str, Tensor]:
    """E[x xᵀ] (d_in, d_in) in float64, by layer, over the rows of the first batches; a layer that was not asked lacks.

    The model is the base with ΔW = 0.
    """
    whole = resolve(config.tree() | {"variant": {"name": "full"}, "start": None})
    variant = context.attached([whole], [None])
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def see(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            x = given[0].detach().flatten(0, -2).double().cpu()
            sums[name] = sums.get(name, torch.zeros(())) + x.mT @ x
            counts[name] = counts.get(name, 0) + len(x)

        return see

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in variant.layers.items()]
    try:
        variant.model.eval()
        for batch in islice(context.task.evaluation_batches("validation"), BATCHES):
            variant.pack.rows = len(next(iter(batch.values())))
            context.task.row_losses(variant.model, stack([batch], context.device))
    finally:
        for hook in hooks:
            hook.remove()
        variant.detach()
    return {name: total / counts[name] for name, total in sums.items()}
