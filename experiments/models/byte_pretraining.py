"""Pretraining of the byte transformer on the running Python's standard library source; done once, then cached."""

import hashlib
import sysconfig
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from experiments.models.transformer import ByteTransformer
from experiments.models.weights import Report, cached
from lora_variants.interface.rng import stream

LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "encodings", "pydoc_data", "site-packages", "__pycache__"}


@dataclass(frozen=True)
class Recipe:
    """What the weights depend on besides the source text."""

    width: int = 64
    depth: int = 4
    heads: int = 4
    context: int = 64
    steps: int = 1000
    rows: int = 32
    learning_rate: float = 3e-3
    warmup: int = 50
    seed: int = 0


def stdlib_source() -> bytes:
    """The source of the standard library as one text: every file in the order of its path, tests left out.

    Raises: FileNotFoundError where Python was installed without its source.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    paths = [p for p in sorted(root.rglob("*.py")) if not LEFT_OUT & set(p.relative_to(root).parts)]
    text = b"".join(path.read_bytes() for path in paths)
    if len(text) < 1_000_000:
        raise FileNotFoundError(
            f"the standard library source under {root} has {len(text)} bytes, at least 1,000,000 are needed to "
            f"pretrain the base model of the bytes task; use a Python that is installed with its source"
        )
    return text


def pretrained(recipe: Recipe, report: Report) -> ByteTransformer:
    """The byte transformer after pretraining, from the cache where it is there."""
    text = stdlib_source()
    model = ByteTransformer(width=recipe.width, depth=recipe.depth, heads=recipe.heads, context=recipe.context)
    content = hashlib.sha256(text + repr(sorted(asdict(recipe).items())).encode()).hexdigest()
    cached(model, key=f"bytes-{content[:16]}", build=lambda: pretrain(model, text, recipe, report), report=report)
    return model


def pretrain(model: ByteTransformer, text: bytes, recipe: Recipe, report: Report) -> None:
    """Train the whole model to predict the next byte: AdamW, warm-up, then a linear decay to zero."""
    _initialise(model, recipe.seed)
    corpus = torch.frombuffer(bytearray(text), dtype=torch.uint8).long()
    generator = stream(recipe.seed, "pretraining")
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=0.01)
    for step in range(recipe.steps):
        rate = min((step + 1) / recipe.warmup, 1 - step / recipe.steps)
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * rate
        windows = random_windows(corpus, recipe.rows, recipe.context + 1, generator)
        logits = model(windows[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        report("pretraining the base model of bytes (once, then cached)", step + 1, recipe.steps)


def random_windows(corpus: Tensor, rows: int, length: int, generator: torch.Generator) -> Tensor:
    """(rows, length) pieces of the corpus, each from a place of its own."""
    starts = torch.randint(len(corpus) - length + 1, (rows, 1), generator=generator)
    return corpus[starts + torch.arange(length)]


@torch.no_grad()
def _initialise(model: ByteTransformer, seed: int) -> None:
    """N(0, 0.02²) for matrices (GPT-2), zero for biases; norms stay at one."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=stream(seed, "weights", name)) * 0.02)
        elif name.endswith("bias"):
            parameter.zero_()
