"""A batch in parts is the batch in one: every part is divided by the whole step's count, however the counts lie."""

import pytest
import torch
from models import LENGTH, Regression, variant_on
from torch import Tensor, nn

from experiments.tasks.task import Batch
from experiments.training.hyperparameters import SharedHyperparameters
from experiments.training.loop import compute_gradients
from lora_variants.interface.variant import Variant

ROWS = 8


class Scored(Regression):
    """Of each row the positions that are scored count, one to five: the short rows come first."""

    def row_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return ((model(batch["x"]) - batch["y"]).square().sum(dim=2) * batch["scored"]).sum(dim=1)

    def row_counts(self, batch: Batch) -> Tensor:
        return batch["scored"].sum(dim=1)


def started() -> tuple[Variant, list[Batch]]:
    """A pack of two trials with an update, and a batch of each."""
    variant, task = variant_on("lora", "linear", ranks=(2, 3)), Scored()
    for layer in variant.layers.values():
        nn.init.normal_(layer.get_parameter("B"), generator=torch.Generator().manual_seed(0))
    scored = (torch.arange(LENGTH) < 1 + torch.arange(ROWS)[:, None] * LENGTH // ROWS).double()
    return variant, [next(task.training_batches(seed, ROWS)) | {"scored": scored} for seed in variant.pack.seeds]


def step(parts: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The losses of both trials and all gradients."""
    variant, batches = started()
    shared = SharedHyperparameters(steps=1, batch_size=ROWS, gradient_accumulation_steps=parts)
    losses, _ = compute_gradients(variant, Scored(), batches, shared)
    return losses, {name: p.grad for name, p in variant.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_parts_of_unequal_counts_give_the_loss_and_the_gradients_of_the_whole_batch(parts: int) -> None:
    (whole, expected), (losses, gradients) = step(1), step(parts)
    torch.testing.assert_close(losses, whole, rtol=1e-12, atol=0)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("parts", [1, 4])
def test_a_trials_loss_is_the_mean_over_all_its_scored_positions(parts: int) -> None:
    variant, batches = started()
    means = []
    for trial, batch in enumerate(batches):
        losses = (variant.merge(trial)(batch["x"]) - batch["y"]).square().sum(dim=2)
        means.append(float(losses[batch["scored"].bool()].mean()))
        variant.unmerge()
    assert step(parts)[0].tolist() == [pytest.approx(mean, rel=1e-9) for mean in means]
