"""An evaluation is of the plain model: no dropout of base or adapter, whatever the model was doing before."""

from collections.abc import Iterator

import pytest
import torch
from models import ALONE, Regression, attached, knobs
from torch import nn

from experiments.tasks.task import Batch, Split
from experiments.training.evaluation import evaluate, evaluate_plain
from lora_variants import VARIANTS
from lora_variants.interface.rng import stream


class Dropping(nn.Module):
    """A base with a dropout of its own between its two layers."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.dropout, self.head = nn.Dropout(p), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.dropout(torch.tanh(self.first(x)))))


class TwoBatches(Regression):
    """A split whose second batch is the shorter one."""

    def evaluation_batches(self, split: Split) -> Iterator[Batch]:
        batch = next(self.training_batches(7, 6))
        yield {key: rows[:4] for key, rows in batch.items()}
        yield {key: rows[4:] for key, rows in batch.items()}


@pytest.mark.parametrize(
    ("name", "trials"), [*((name, 1) for name in VARIANTS), *((name, 2) for name in VARIANTS if name not in ALONE)]
)
def test_a_model_in_training_is_evaluated_without_any_dropout(name: str, trials: int) -> None:
    torch.manual_seed(0)
    base, task = Dropping(0.5 if trials == 1 else 0.0).double(), TwoBatches()
    configs = [knobs(name, rank=2, dropout=0.5)] * trials
    variant = attached(name, base, targets=["first", "second"], configs=configs)
    for trial in range(trials):
        for i, tensor in enumerate(variant.trained_tensors(trial).values()):
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=stream(trial, i), dtype=torch.float64))
    batch = next(task.training_batches(7, 6))
    expected = []
    for trial in range(trials):
        plain = variant.merge(trial).eval()
        expected.append(float((plain(batch["x"]) - batch["y"]).square().mean().detach()))
        variant.unmerge()
    variant.model.train()
    found = evaluate(variant, task, "validation", "float32")
    assert found == [{"loss": pytest.approx(loss, rel=1e-9)} for loss in expected]
    plain = variant.merge(0).train()
    assert evaluate_plain(plain, task, "validation", "float32") == {"loss": pytest.approx(expected[0], rel=1e-9)}
