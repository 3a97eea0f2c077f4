"""How far directions are from orthonormal: ‖GᵀG - I‖_F or its square, with the gradient in closed form.

With D = GᵀG - I, the gradient of ‖D‖_F is 2 G D / ‖D‖_F and that of ‖D‖_F² is 4 G D: one product where autograd
makes two. Matrices of one shape go through a product together, since small ones cost mostly their calls.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def distance_from_orthonormal(
    lefts: Sequence[Float[Tensor, "trials _ _"]],
    rights: Sequence[Float[Tensor, "trials _ _"]],
    within: Sequence[Float[Tensor, "trials _"]],
    squared: Bool[Tensor, " trials"],
) -> Float[Tensor, " trials"]:
    """The sum over layers of ‖PᵀP - I‖_F + ‖QQᵀ - I‖_F, or of their squares for the trials that are `squared`.

    P (trials, d_out, r) are the lefts, Q (trials, r, d_in) the rights, and `within` (trials, r), 1 or 0 for padding,
    is the diagonal of I. Where a norm is 0 its gradient is 0. Under autocast it keeps the matrices' own precision.
    """
    with torch.autocast(lefts[0].device.type, enabled=False):
        return _Distance.apply(within, squared, *lefts, *rights)


class _Distance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, within: Sequence[Tensor], squared: Tensor, *matrices: Tensor) -> Tensor:
        ctx.stacks, grams = _places_by_shape(matrices), []
        norms = matrices[0].new_empty(len(matrices), len(squared))
        for is_left, places in ctx.stacks:
            stacked = torch.stack([matrices[i] for i in places])  # (matrices, trials, d_out, r) or (.., r, d_in)
            gram = stacked.mT @ stacked if is_left else stacked @ stacked.mT
            gram.diagonal(dim1=-2, dim2=-1).sub_(torch.stack([within[i % len(within)] for i in places]))
            norms[places] = torch.linalg.vector_norm(gram, dim=(-2, -1))
            grams.append(gram)
        ctx.save_for_backward(squared, norms, *grams, *matrices)
        terms = torch.where(squared, norms.square(), norms)
        total = torch.zeros_like(terms[0])
        for of_layer in (terms[: len(within)] + terms[len(within) :]).unbind():
            total += of_layer  # one by one: torch's sum adds in an order that depends on how many trials there are
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        squared, norms, *saved = ctx.saved_tensors
        grams, matrices = saved[: len(ctx.stacks)], saved[len(ctx.stacks) :]
        slopes = g * torch.where(squared, 4.0, 2 / norms).masked_fill(norms == 0, 0.0)
        gradients: list[Tensor | None] = [None] * len(matrices)
        for (is_left, places), gram in zip(ctx.stacks, grams, strict=True):
            stacked = torch.stack([matrices[i] for i in places])
            sloped = gram * slopes[places][:, :, None, None]
            for i, gradient in zip(places, stacked @ sloped if is_left else sloped @ stacked, strict=True):
                gradients[i] = gradient
        return None, None, *gradients


def _places_by_shape(matrices: Sequence[Tensor]) -> list[tuple[bool, list[int]]]:
    """Which of the matrices share side and shape; the first half are lefts."""
    places: dict[tuple[bool, torch.Size], list[int]] = {}
    for i, matrix in enumerate(matrices):
        places.setdefault((2 * i < len(matrices), matrix.shape), []).append(i)
    return [(is_left, found) for (is_left, _), found in places.items()]
