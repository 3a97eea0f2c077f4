"""Packs of a few trials, trained on a tiny base: what a trial came to alone and in company."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from models import Regression, attached, knobs, train
from torch import Tensor, nn

from experiments.tasks.task import Batch, Task
from experiments.training.hyperparameters import SharedHyperparameters, TrialHyperparameters
from experiments.training.trial import Outcome
from lora_variants.interface.rng import stream

STEPS, ROWS, TOKENS, VOCABULARY = 12, 8, 16, 256
POISONED_AFTER = 7

# Ranks share a bucket, AdaLoRA's initial ones too; all else differs.
KNOBS: tuple[dict[str, Any], ...] = (
    {"rank": 2, "alpha": 4.0, "dropout": 0.1, "orthogonality": 0.1, "prune_every": 2},
    {
        "rank": 5,
        "alpha_per_rank": 2.0,
        "dropout": 0.0,
        "learning_rate_ratio": 4.0,
        "initial_rank": 8,
        "beta1": 0.5,
        "prune_every": 1,
    },
    {"rank": 4, "alpha": 9.0, "dropout": 0.3, "init": "gaussian", "orthogonality_norm": "squared_sum"},
)
TRIALS = (
    TrialHyperparameters(seed=11, learning_rate=1e-3, weight_decay=0.1, warmup_steps=3),
    TrialHyperparameters(seed=12, learning_rate=7e-3, max_grad_norm=0.1, lr_schedule="cosine"),
    TrialHyperparameters(
        seed=13, learning_rate=2e-3, weight_decay=0.01, max_grad_norm=None, lr_schedule="constant", warmup_steps=5
    ),
)


class Tokens(Regression):
    """Random tokens; the next one is predicted, or a label where the model gives one row of logits a sequence."""

    def __init__(self) -> None:
        super().__init__(torch.float32)

    def training_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        generator = stream(seed, "data")
        while True:
            yield {"tokens": torch.randint(VOCABULARY, (batch_size, TOKENS + 1), generator=generator)}

    def row_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        tokens = batch["tokens"]
        output = model(tokens[:, :-1])
        logits = getattr(output, "logits", output)
        if logits.ndim == 2:
            return F.cross_entropy(logits, tokens[:, -1] % logits.shape[1], reduction="none")
        return F.cross_entropy(logits.mT, tokens[:, 1:], reduction="none").sum(dim=1)

    def row_counts(self, batch: Batch) -> Tensor:
        return torch.full((len(batch["tokens"]),), float(TOKENS), device=batch["tokens"].device)


@dataclass(frozen=True)
class Base:
    """A real architecture with random weights."""

    build: Callable[[], nn.Module]
    targets: tuple[str, ...]
    heads: tuple[str, ...] = ()


def tiny_bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return BertForSequenceClassification(
        BertConfig(vocab_size=VOCABULARY, max_position_embeddings=32, num_labels=2, **sizes, **still)
    )


@dataclass
class Run:
    """What training left of one trial, and what it was after seven steps."""

    state: dict[str, Tensor]
    state_then: dict[str, Tensor]
    losses: list[float]
    penalties: list[float]
    outcome: Outcome


def run_pack(
    name: str,
    which: Sequence[int],
    *,
    base: Base,
    task: Task,
    trials: Sequence[TrialHyperparameters] = TRIALS,
    gradient_accumulation_steps: int = 1,
    dtype: torch.dtype = torch.float32,
) -> list[Run]:
    """Train the trials named by `which` in one pack."""
    torch.manual_seed(0)
    model = base.build().to(dtype)
    variant = attached(
        name,
        model,
        targets=base.targets,
        heads=base.heads,
        configs=[knobs(name, **KNOBS[k]) for k in which],
        seeds=[trials[k].seed for k in which],
        steps=STEPS,
    )
    heard: list[dict[str, list[float]]] = []
    then: list[dict[str, Tensor]] = []

    def listen(step: int, metrics: dict[str, list[float]]) -> None:
        heard.append(metrics)
        if step == POISONED_AFTER:
            then.extend(variant.trial_state(k) for k in range(len(which)))

    outcomes = train(
        variant,
        task,
        [trials[k] for k in which],
        SharedHyperparameters(steps=STEPS, batch_size=ROWS, gradient_accumulation_steps=gradient_accumulation_steps),
        on_step=listen,
    )
    return [
        Run(
            variant.trial_state(k),
            then[k] if then else {},
            [metrics["train/task_loss"][k] for metrics in heard],
            [metrics["train/penalty"][k] for metrics in heard],
            outcome,
        )
        for k, outcome in enumerate(outcomes)
    ]


def assert_identical(alone: Run, packed: Run) -> None:
    assert alone.losses == packed.losses
    assert alone.penalties == packed.penalties
    assert alone.state.keys() == packed.state.keys()
    assert [key for key in alone.state if not torch.equal(alone.state[key], packed.state[key])] == []
