"""The forward and backward of a factored layer with few passes over memory and few operations.

Thin products keep r as their row dimension, since with r as columns they cost several times more on CPU.
Where a trial has many rows for the size of W0, W0 + ΔW is made and used; elsewhere the update is added into
the frozen product's output, and its gradient into the frozen product's gradient, in place. Of the activations
only x is kept, and right x where it is at hand. Rows are grouped by trial inside, so that autograd sees one node.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def factored_linear(
    x: Float[Tensor, "*rows d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, " d_out"] | None,
    left: Float[Tensor, "trials d_out r"],
    weights: Tensor,
    right: Float[Tensor, "trials r d_in"],
    mask: Float[Tensor, "trials n d_in"] | None,
) -> Float[Tensor, "*rows d_out"]:
    """y = W0 x + b + left (weights ∘ (right (mask ∘ x))) with a lean backward; W0 and b get no gradient.

    x is trial-major. `weights` are (trials, r, 1), or (trials, 1, 1) where all are the scale; `mask` is a
    dropout mask with its factor. Under autocast it casts by itself.
    """
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        apply = _apply_merged if mask is None and merging_pays(x, weight, right) else _apply_thin
        return apply(x, weight, bias, left, weights, right, mask)
    dtype = torch.get_autocast_dtype(kind)
    narrow = [None if t is None else t.to(dtype) for t in (x, weight, bias, left, weights, right, mask)]
    with torch.autocast(kind, enabled=False):
        return _apply_thin(*narrow)


def merging_pays(x: Tensor, weight: Tensor, right: Tensor) -> bool:
    """Whether one pass over W0 + ΔW of a trial costs less than one over its output and one over its input.

    It asks about one trial alone, so that a trial goes the same way in any pack. In 16 bits small updates of
    W0 would be lost.
    """
    d_out, d_in = weight.shape
    rows = x.numel() // (d_in * right.size(0))
    return weight.itemsize >= 4 and 2 * d_out * d_in < rows * (d_out + d_in)


class _Thin(torch.autograd.Function):
    """W0 x first, then the update added to it; the operands are those of `factored_linear`."""

    @staticmethod
    def forward(ctx: Any, *operands: Any) -> Tensor:
        x, weight, bias, left, weights, right, mask = operands
        trials, d_out, ctx.shape = right.size(0), weight.size(0), x.shape
        rows = x.reshape(-1, x.size(-1))
        y, x, weighted = F.linear(rows, weight, bias), rows.view(trials, -1, rows.size(1)), right * weights
        h = torch.bmm(weighted, (x if mask is None else x * mask).mT)  # (trials, r, n)
        ctx.save_for_backward(x, weight, left, weights, right, weighted, mask, h)
        y.view(trials, -1, d_out).baddbmm_(h.mT, left.mT)
        return y.view(*ctx.shape[:-1], d_out)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, left, weights, right, weighted, mask, h = ctx.saved_tensors
        rows = g.reshape(-1, g.size(-1))
        g = rows.view(x.size(0), -1, rows.size(1))
        g_left, g_h = torch.bmm(h, g).mT, torch.bmm(left.mT, g.mT)
        g_weights, g_right = _of_right(ctx, torch.bmm(g_h, x if mask is None else x * mask), weights, right)
        if not ctx.needs_input_grad[0]:
            return None, None, None, g_left, g_weights, g_right, None
        g_x = torch.mm(rows, weight).view(x.shape)
        g_x = g_x.baddbmm_(g_h.mT, weighted) if mask is None else g_x.addcmul_(torch.bmm(g_h.mT, weighted), mask)
        return g_x.view(ctx.shape), None, None, g_left, g_weights, g_right, None


class _Merged(torch.autograd.Function):
    """(W0 + ΔW) x; the update has no pass over x or y of its own until backward. The mask is None."""

    @staticmethod
    def forward(ctx: Any, *operands: Any) -> Tensor:
        x, weight, bias, left, weights, right, _ = operands
        ctx.shape = x.shape
        x, weighted = x.reshape(right.size(0), -1, x.size(-1)), right * weights
        moved = torch.baddbmm(weight, left, weighted)  # (trials, d_out, d_in)
        ctx.save_for_backward(x, moved, left, weights, right, weighted)
        y = torch.bmm(x, moved.mT) if bias is None else torch.baddbmm(bias, x, moved.mT)
        return y.view(*ctx.shape[:-1], moved.size(1))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, moved, left, weights, right, weighted = ctx.saved_tensors
        g = g.reshape(x.size(0), -1, moved.size(1))
        g_left = torch.bmm(torch.bmm(weighted, x.mT), g).mT
        g_weights, g_right = _of_right(ctx, torch.bmm(torch.bmm(left.mT, g.mT), x), weights, right)
        g_x = torch.bmm(g, moved).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return g_x, None, None, g_left, g_weights, g_right, None


def _of_right(ctx: Any, g: Tensor, weights: Tensor, right: Tensor) -> tuple[Tensor | None, Tensor]:
    """The gradients of the weights and of right, given that of both together, (trials, r, d_in)."""
    if torch.is_grad_enabled():
        raise RuntimeError("a factored layer has no second derivatives; take the gradient without create_graph")
    if not ctx.needs_input_grad[4]:
        return None, g.mul_(weights)
    return (g * right).sum(dim=2, keepdim=True), g.mul_(weights)


# Function.apply itself prepares for torch.func, for which there is no rule here: torch refuses that either way
_apply_thin = super(torch.autograd.Function, _Thin).apply
_apply_merged = super(torch.autograd.Function, _Merged).apply
