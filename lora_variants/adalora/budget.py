"""What AdaLoRA keeps: smoothed sensitivities, a budget that falls, and the triplets with the highest scores."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor


@torch.no_grad()
def smooth(
    weights: list[Float[Tensor, "trials ..."]],
    gradients: list[Float[Tensor, "trials ..."]],
    means: list[Float[Tensor, "trials ..."]],
    spreads: list[Float[Tensor, "trials ..."]],
    *,
    betas: tuple[Float[Tensor, " trials"], Float[Tensor, " trials"]],
    chosen: Bool[Tensor, " trials"],
) -> None:
    """Smooth the sensitivity I = |w ∇L| and the uncertainty |I - Ī| of the chosen trials, in place (eq. 9 and 10).

    The tensors have one number of axes, so that all of them go through each operation in one call.
    """
    axes = (-1, *(1,) * (weights[0].ndim - 1))
    before = [] if bool(chosen.all()) else [(now, now.clone()) for now in (*means, *spreads)]
    towards_mean, towards_spread = ([(1 - beta).view(axes)] * len(weights) for beta in betas)
    sensitivity = torch._foreach_mul(weights, gradients)
    torch._foreach_abs_(sensitivity)
    torch._foreach_lerp_(means, sensitivity, towards_mean)
    torch._foreach_sub_(sensitivity, means)
    torch._foreach_abs_(sensitivity)
    torch._foreach_lerp_(spreads, sensitivity, towards_spread)
    for now, then in before:  # selected, not multiplied: a stopped trial's gradient may be NaN
        now.copy_(torch.where(chosen.view(axes), now, then))


def budget(step: int, *, first: int, last: int, initial: int, target: int) -> int:
    """b(t), how many triplets are kept in all layers after step t (eq. 14, as in the authors' code).

    It is `initial` up to the step `first` and `target` from the step `last` on.
    """
    if step >= last:
        return target
    if step <= first:
        return initial
    return int(target + (initial - target) * (1 - (step - first) / (last - first)) ** 3)


def highest_triplets(scores: Sequence[Float[Tensor, " _"]], kept: int) -> list[Bool[Tensor, " _"]]:
    """Exactly `kept` of all layers' triplets: the highest scores, ties by place in the layer, then by layer."""
    flat = torch.cat(list(scores))
    place = torch.cat([torch.arange(len(score)) for score in scores]).to(flat.device)
    by_place = torch.argsort(place, stable=True)
    by_score = torch.argsort(flat[by_place], descending=True, stable=True)
    chosen = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
    chosen[by_place[by_score[:kept]]] = True
    return list(chosen.split([len(score) for score in scores]))
