"""The built-in transformer: its blocks, which all built-in base models share, and the byte-level base of `bytes`."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

VOCABULARY = 256


class Block(nn.Module):
    """Attention and a feed-forward layer, each over a normed residual stream; no dropout."""

    def __init__(self, width: int, heads: int, *, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.attention_norm, self.feed_forward_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.output = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.attention_norm(x)
        q, k, v = (self._by_head(part(normed)) for part in (self.query, self.key, self.value))
        context = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.output(context.transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.feed_forward_norm(x))))

    def _by_head(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (rows, heads, length, width / heads)


def through(blocks: Iterable[nn.Module], x: Tensor, *, gradient_checkpointing: bool) -> Tensor:
    """The blocks in order; with checkpointing their activations are computed again in backward."""
    for block in blocks:
        x = (
            checkpoint(block, x, use_reentrant=False)
            if gradient_checkpointing and torch.is_grad_enabled()
            else block(x)
        )
    return x


class ByteTransformer(nn.Module):
    """Pre-norm, learned positions, no dropout; logits (rows, length, 256) of the next byte."""

    def __init__(self, *, width: int = 64, depth: int = 4, heads: int = 4, context: int = 64) -> None:
        super().__init__()
        self.context = context
        self.gradient_checkpointing = False
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.position = nn.Embedding(context, width)
        self.layers = nn.ModuleList(Block(width, heads, causal=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.unembedding = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (rows, length) of byte values, length at most `context`."""
        x = self.embedding(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        return self.unembedding(self.norm(through(self.layers, x, gradient_checkpointing=self.gradient_checkpointing)))
