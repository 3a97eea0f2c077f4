"""The forward and backward of a factored layer with few passes over memory.

Thin products keep r as their row dimension, since with r as columns they cost several times more on CPU;
only x and right x are saved; the update is added into the frozen product's output, and its gradient into
the frozen product's gradient, in place.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def factored_linear_plain(
    x: Float[Tensor, "trials n d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, " d_out"] | None,
    left: Float[Tensor, "trials d_out r"],
    weights: Tensor,
    right: Float[Tensor, "trials r d_in"],
    mask: Float[Tensor, "trials n d_in"] | None,
) -> Float[Tensor, "trials n d_out"]:
    """y = W0 x + b + left (weights ∘ (right (mask ∘ x))), as one reads it: what the lean form is tested against.

    `weights` are (trials, r), or (trials, 1) where all are the scale; `mask` is a dropout mask with its factor.
    """
    h = torch.bmm(x if mask is None else x * mask, right.mT) * weights[:, None, :]  # (trials, n, r)
    return F.linear(x, weight, bias) + torch.bmm(h, left.mT)


def factored_linear(
    x: Float[Tensor, "trials n d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, " d_out"] | None,
    left: Float[Tensor, "trials d_out r"],
    weights: Tensor,
    right: Float[Tensor, "trials r d_in"],
    mask: Float[Tensor, "trials n d_in"] | None,
) -> Float[Tensor, "trials n d_out"]:
    """The same function with a lean backward; W0 and b get no gradient. Under autocast it casts by itself."""
    kind = x.device.type
    if not torch.is_autocast_enabled(kind):
        return _FactoredLinear.apply(x, weight, bias, left, weights, right, mask)
    dtype = torch.get_autocast_dtype(kind)
    narrow = [None if t is None else t.to(dtype) for t in (x, weight, bias, left, weights, right, mask)]
    with torch.autocast(kind, enabled=False):
        return _FactoredLinear.apply(*narrow)


class _FactoredLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        left: Tensor,
        weights: Tensor,
        right: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        y = F.linear(x, weight, bias)
        h = torch.bmm(right, (x if mask is None else x * mask).mT)  # (trials, r, n)
        ctx.save_for_backward(x, weight, left, weights, right, mask, h)
        return y.baddbmm_((h * weights[:, :, None]).mT, left.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, left, weights, right, mask, h = ctx.saved_tensors
        wide = weights[:, :, None]
        g_scaled = torch.bmm(left.mT, g.mT)  # (trials, r, n)
        g_h = g_scaled * wide
        g_left = torch.bmm(h * wide, g).mT
        g_weights = (g_scaled * h).sum(dim=2) if ctx.needs_input_grad[4] else None
        g_right = torch.bmm(g_h, x if mask is None else x * mask)
        g_x = None
        if ctx.needs_input_grad[0]:
            g_x = torch.matmul(g, weight)
            if mask is None:
                g_x.baddbmm_(g_h.mT, right)
            else:
                g_x.addcmul_(torch.bmm(g_h.mT, right), mask)
        return g_x, None, None, g_left, g_weights, g_right, None
