"""A small byte-level causal transformer: the base model of the `bytes` task."""

import torch
from torch import Tensor, nn

from experiments.models.transformer_blocks import Block, through

VOCABULARY = 256


class ByteTransformer(nn.Module):
    """Pre-norm, learned positions, no dropout; logits (rows, length, 256) of the next byte."""

    def __init__(self, *, width: int = 64, depth: int = 4, heads: int = 4, context: int = 64) -> None:
        super().__init__()
        self.context = context
        self.checkpointing = False
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.position = nn.Embedding(context, width)
        self.layers = nn.ModuleList(Block(width, heads, causal=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.unembedding = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens (rows, length) of byte values, length at most `context`."""
        x = self.embedding(tokens) + self.position(torch.arange(tokens.shape[1], device=tokens.device))
        return self.unembedding(self.norm(through(self.layers, x, checkpointing=self.checkpointing)))
