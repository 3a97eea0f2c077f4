"""Multi-head attention whose four projections can be adapted, in the place of torch's nn.MultiheadAttention.

torch's own module computes from its tensors and never calls its sub-modules, so an adapter put into
it is silently bypassed. This one computes the same function from W_q, W_k, W_v and W_o as layers.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class Attention(nn.Module):
    """The same outputs as the attention it replaces: same arguments, masks and returned weights."""

    in_proj_bias = None  # torch's encoder layer asks for it, and keeps off its fused path where it is None

    def __init__(self, original: nn.MultiheadAttention, projections: Mapping[str, nn.Module]) -> None:
        super().__init__()
        if original.bias_k is not None or original.add_zero_attn:
            raise ValueError("attention with add_bias_kv or add_zero_attn cannot be adapted; leave it out of targets")
        self.query, self.key = projections["query"], projections["key"]
        self.value, self.out_proj = projections["value"], projections["out_proj"]
        self.embed_dim, self.num_heads = original.embed_dim, original.num_heads
        self.dropout, self.batch_first = original.dropout, original.batch_first

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """torch.nn.MultiheadAttention.forward: (rows, length, width) with batch_first."""
        if query.ndim == 2:
            raise ValueError("attention got an unbatched (length, width) input; add a leading row axis")
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = self._heads(self.query(query)), self._heads(self.key(key)), self._heads(self.value(value))
        mask = self._mask(attn_mask, key_padding_mask, q, is_causal)
        p = self.dropout if self.training else 0.0
        if need_weights:
            scores = (q * q.shape[-1] ** -0.5) @ k.mT
            weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, p) if p else weights
            context = weights @ v
        else:
            context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        out = self.out_proj(context.transpose(1, 2).flatten(2))
        out = out if self.batch_first else out.transpose(0, 1)
        if not need_weights:
            return out, None
        return out, weights.mean(dim=1) if average_attn_weights else weights

    def _heads(self, x: Float[Tensor, "rows length width"]) -> Float[Tensor, "rows heads length head_width"]:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _mask(
        self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, is_causal: bool
    ) -> Tensor | None:
        """Both masks as one that is added to the scores, (rows or 1, heads or 1, length, keys)."""
        if is_causal and attn_mask is None:
            raise ValueError("is_causal=True is a hint about attn_mask and needs it, as in torch")
        total = None
        for mask, axes in ((attn_mask, None), (key_padding_mask, (slice(None), None, None, slice(None)))):
            if mask is None:
                continue
            added = (
                mask
                if mask.is_floating_point()
                else torch.zeros_like(mask, dtype=q.dtype).masked_fill(mask, -torch.inf)
            )
            if axes is not None:
                added = added[axes]
            elif added.ndim == 3:  # (rows * heads, length, keys)
                added = added.unflatten(0, (q.shape[0], self.num_heads))
            total = added if total is None else total + added
        return total
