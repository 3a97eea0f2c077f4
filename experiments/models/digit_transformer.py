"""A small vision transformer over 8 x 8 images, pretrained on the digits 0 to 4: the base of the `digits` task."""

import hashlib
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.models.transformer import Block, through
from experiments.models.weights import Report, cached
from lora_variants.interface.rng import stream

PATCH, SIDE, LABELS = 2, 8, 5


class DigitTransformer(nn.Module):
    """Patches of 2 x 2 pixels and a class token whose output the head reads; logits (rows, 5)."""

    def __init__(self, *, width: int = 64, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self.patches = nn.Linear(PATCH * PATCH, width)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(torch.zeros(1, (SIDE // PATCH) ** 2 + 1, width))
        self.layers = nn.ModuleList(Block(width, heads, causal=False) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, LABELS)

    def forward(self, images: Tensor) -> Tensor:
        """images (rows, 8, 8) with values from 0 to 1."""
        squares = images.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).flatten(3).flatten(1, 2)  # (rows, 16, 4)
        patches = self.patches(squares)
        x = torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1) + self.position
        x = through(self.layers, x, gradient_checkpointing=self.gradient_checkpointing)
        return self.head(self.norm(x[:, 0]))


@dataclass(frozen=True)
class DigitRecipe:
    """What the weights depend on besides the images."""

    width: int = 64
    depth: int = 4
    heads: int = 4
    steps: int = 1500
    rows: int = 64
    learning_rate: float = 1e-3
    warmup: int = 50
    seed: int = 0


def pretrained_digits(images: Tensor, labels: Tensor, recipe: DigitRecipe, report: Report) -> DigitTransformer:
    """The transformer after pretraining on these images, from the cache where it is there."""
    model = DigitTransformer(width=recipe.width, depth=recipe.depth, heads=recipe.heads)
    content = images.numpy().tobytes() + labels.numpy().tobytes() + repr(sorted(asdict(recipe).items())).encode()
    key = f"digits-zero-biases-{hashlib.sha256(content).hexdigest()[:16]}"
    cached(model, key=key, build=lambda: pretrain_digits(model, images, labels, recipe, report), report=report)
    return model


def pretrain_digits(
    model: DigitTransformer, images: Tensor, labels: Tensor, recipe: DigitRecipe, report: Report
) -> None:
    """Train the whole model to tell the digits apart: AdamW, warm-up, then a linear decay to zero."""
    generator = stream(recipe.seed, "pretraining")
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            drawn = torch.randn(parameter.shape, generator=stream(recipe.seed, "weights", name))
            parameter.detach().copy_(drawn * min(0.1, parameter.shape[-1] ** -0.5))
        elif name.endswith("bias"):
            parameter.detach().zero_()  # torch draws them from the process's own stream
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    for step in range(recipe.steps):
        rate = min((step + 1) / recipe.warmup, 1 - step / recipe.steps)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate
        chosen = torch.randint(len(images), (recipe.rows,), generator=generator)
        loss = F.cross_entropy(model(images[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        report("pretraining the base model of digits (once, then cached)", step + 1, recipe.steps)
