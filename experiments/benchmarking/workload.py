"""A case's frozen base model and its one batch: the same for every implementation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.benchmarking.cases import Case
from experiments.models.transformer import VOCABULARY, ByteTransformer
from experiments.training.evaluation import autocast

WORDS, CLASSES = 1000, 2
VOCABULARIES = {"bert": WORDS, "roberta": 50265, "byte_transformer": VOCABULARY}
BLOCKS = {"bert": "bert.encoder.layer.", "roberta": "roberta.encoder.layer.", "byte_transformer": "layers."}


@dataclass(frozen=True)
class Workload:
    """A frozen model, the paths of its linear layers that are adapted, and a batch.

    `start` has A (r, d_in) and B (d_out, r) of each path: what every implementation's training starts from.
    """

    case: Case
    base: nn.Module
    paths: tuple[str, ...]
    tokens: Tensor
    labels: Tensor
    start: Mapping[str, tuple[Tensor, Tensor]]

    def loss(self, model: nn.Module) -> Tensor:
        """The mean cross-entropy of the batch; `model` is the base, or what a library has wrapped around it."""
        with autocast(self.tokens.device, self.case.precision):
            logits = logits_of(model, self.tokens)
        return F.cross_entropy(logits.float().flatten(0, -2), self.labels.flatten())

    def linear(self, path: str) -> nn.Linear:
        """The base's own layer at a path; only while no implementation stands there."""
        layer = self.base.get_submodule(path)
        assert isinstance(layer, nn.Linear)
        return layer


def build_workload(case: Case, device: torch.device) -> Workload:
    """A random model and a random batch, the same at every call."""
    torch.manual_seed(0)
    base = _model(case).requires_grad_(False).train()
    linears = {path: m for path, m in base.named_modules() if isinstance(m, nn.Linear)}
    wanted = ("query", "value") if case.targets == "qv" else ("",)
    paths = tuple(path for path in linears if path.startswith(BLOCKS[case.model]) and path.endswith(wanted))
    tokens, labels = random_batch(case)
    start = {path: _factors(linears[path], case.rank, device) for path in paths}
    return Workload(case, base.to(device), paths, tokens.to(device), labels.to(device), start)


def random_batch(case: Case, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Tokens (rows, length) and labels: a class a row, or of every byte the next one."""
    tokens = torch.randint(min(WORDS, VOCABULARIES[case.model]), (case.batch_size, case.length), generator=generator)
    if case.model == "byte_transformer":
        return tokens, tokens.roll(-1, dims=1)
    return tokens, torch.randint(CLASSES, (case.batch_size,), generator=generator)


def with_rank(workload: Workload, rank: int) -> Workload:
    """The same base and batch with adapters of this rank."""
    torch.manual_seed(rank)
    start = {path: _factors(workload.linear(path), rank, workload.tokens.device) for path in workload.paths}
    return replace(workload, case=replace(workload.case, rank=rank), start=start)


def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """What the model says of tokens, (rows, classes) or (rows, length, vocabulary)."""
    output = model(tokens)
    logits: Tensor = getattr(output, "logits", output)
    return logits


def _model(case: Case) -> nn.Module:
    if case.model == "byte_transformer":
        return ByteTransformer(width=case.width, depth=case.layers, heads=case.heads, context=case.length)
    from transformers import BertConfig, BertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

    roberta = case.model == "roberta"
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARIES[case.model], "num_labels": CLASSES,
        "max_position_embeddings": case.length + 2 * roberta,  # RoBERTa's first two positions are no token's
        "hidden_size": case.width, "intermediate_size": 4 * case.width,
        "num_hidden_layers": case.layers, "num_attention_heads": case.heads,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    if roberta:
        return RobertaForSequenceClassification(RobertaConfig(**shape))
    return BertForSequenceClassification(BertConfig(**shape))


def _factors(linear: nn.Linear, rank: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A as LoRA draws it; B as in the middle of a training, since with B = 0 half of the gradients are zero."""
    A = torch.empty(rank, linear.in_features).uniform_(-1, 1) * linear.in_features**-0.5
    B = torch.randn(linear.out_features, rank) * 0.01
    return A.to(device), B.to(device)


@contextmanager
def in_place(base: nn.Module, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """These modules stand in the places of the base's own; afterwards its own are back."""
    own = {path: base.get_submodule(path) for path in modules}
    put(base, modules)
    try:
        yield
    finally:
        put(base, own)


def put(base: nn.Module, modules: Mapping[str, nn.Module]) -> None:
    for path, module in modules.items():
        parent, _, attribute = path.rpartition(".")
        setattr(base.get_submodule(parent), attribute, module)
