"""A layer with an update of two factors, and its fused kernels: few passes over memory and few operations.

Thin products keep r as their row dimension, since with r as columns they cost several times more on CPU.
Where a trial has many rows for the size of W0, W0 + ΔW is made and used; elsewhere the update is added into
the frozen product's output, and its gradient into the frozen product's gradient, in place. Of the activations
only x is kept, and right x where it is at hand. Rows are grouped by trial inside, so that autograd sees one node.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lora_variants.frozen_model.linear_map import LinearMap
from lora_variants.interface.config import AdapterConfig
from lora_variants.interface.layer import AdaptedLayer
from lora_variants.interface.pack import Pack


class FactoredLayer(AdaptedLayer):
    """An update of two factors with weights between them: ΔW x = left (weights ∘ (right x)), in this order.

    The scale s is part of the weights. A d_out x d_in tensor is made only where that is the cheaper way, and never
    one of gradients.
    """

    def __init__(
        self,
        name: str,
        base: LinearMap,
        ranks: Sequence[int],
        pack: Pack,
        *,
        scales: Sequence[float],
        configs: Sequence[AdapterConfig],
    ) -> None:
        super().__init__(name, base, ranks, pack)
        self.dropout = tuple(config.dropout for config in configs)
        self.scale: Float[Tensor, " trials"]
        self.register_buffer("scale", self.new_tensor().copy_(torch.tensor(scales, dtype=torch.float64)))
        self.create_factors(configs)

    @abstractmethod
    def create_factors(self, configs: Sequence[Any]) -> None:
        """Called once, by the constructor: make the layer's tensors as each trial's configuration wants them."""

    @abstractmethod
    def factors(self) -> tuple[Float[Tensor, "trials d_out r"], Tensor, Float[Tensor, "trials r d_in"]]:
        """Left, weights and right; the weights are (trials, r, 1), or (trials, 1, 1) where all are the scale."""

    def adapted(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        left, weights, right = self.factors()
        base: Any = self._modules["base"]  # past nn.Module's slow look-up
        mask = self.dropout_mask(self.pack.by_trial(x)) if self.training and any(self.dropout) else None
        weight = base.base_weight()
        if base.is_product and (weight.dtype == right.dtype or torch.is_autocast_enabled(x.device.type)):
            self.pack.refuse_other_rows(x)
            if mask is None or all(self.dropout):
                return factored_linear(x, weight, base.base_bias(), left, weights, right, mask)
            parts = (t.split(1) for t in (left, weights, right, mask))  # without dropout a trial goes its own way
            chunks = zip(x.chunk(self.pack.trials), *parts, self.dropout, strict=True)
            bias = base.base_bias()
            return torch.cat(
                [factored_linear(x, weight, bias, B, w, A, m if p else None) for x, B, w, A, m, p in chunks]
            )
        wide = self.pack.by_trial(x).to(right.dtype)  # a narrow base, or one of its own kind: the update apart, float32
        h = torch.bmm(wide if mask is None else wide * mask, right.mT) * weights.mT
        y = base(x)
        return y + torch.bmm(h, left.mT).reshape(y.shape).to(y.dtype)

    def scales(self) -> list[float]:
        return self.scale.tolist()

    def rescaled(self, tensor: Tensor, scale: float, trial: int) -> Tensor:
        """What with this layer's scale is what `tensor` is with `scale`; the same numbers where the two are equal."""
        theirs = float(torch.tensor(scale, dtype=self.scale.dtype))  # our own is rounded to this type too
        return (tensor.double() * (theirs / float(self.scale[trial]))).to(self.scale)


def factored_linear(
    x: Float[Tensor, "*rows d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, " d_out"] | None,
    left: Float[Tensor, "trials d_out r"],
    weights: Tensor,
    right: Float[Tensor, "trials r d_in"],
    mask: Float[Tensor, "trials n d_in"] | None,
) -> Float[Tensor, "*rows d_out"]:
    """y = W0 x + b + left (weights ∘ (right (mask ∘ x))) with a fused backward; W0 and b get no gradient.

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
