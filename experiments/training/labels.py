"""False labels: targets with nothing of the task in them, as the null of a claim about what training learns.

Zhang et al. 2017 (arXiv 1611.03530) trained on permuted labels; targets drawn from the base's own predictions leave
W0 optimal, so that all that is learned is noise.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from experiments.tasks.task import Batch, Task
from experiments.training.hyperparameters import SharedHyperparameters
from lora_variants.interface.rng import stream
from lora_variants.interface.variant import Variant

DRAWS = "draws"  # of a batch whose targets are yet to be drawn: uniform numbers, one a target


def refuse_labels(task: Task, labels: object) -> None:
    """Raise ValueError for false labels that the task has not."""
    if labels is not True and labels not in task.false_labels:
        way_out = "take training.labels=shuffled" if "shuffled" in task.false_labels else "leave training.labels out"
        raise ValueError(
            f"training.labels={labels}: task {task.config.name!r} has no such labels"
            + (", which are drawn from the predictions of a language model" if labels == "base_model" else "")
            + f"; {way_out}"
        )


def labelled_batches(task: Task, seed: int, shared: SharedHyperparameters) -> Iterator[Batch]:
    """A trial's training batches with the labels that it learns; those of the base are drawn by `with_targets`."""
    if shared.labels == "shuffled":
        yield from task.shuffled_batches(seed, shared.batch_size)
    generator = stream(seed, "labels")
    for batch in task.training_batches(seed, shared.batch_size):
        if shared.labels is True:
            yield batch
        else:
            yield batch | {DRAWS: torch.rand(task.targets_shape(batch), generator=generator)}


@torch.no_grad()
def with_targets(variant: Variant, task: Task, batch: Batch) -> Batch:
    """The batch, with targets drawn from what the frozen base predicts where they are yet to be drawn."""
    if DRAWS not in batch:
        return batch
    model, draws = variant.model, batch[DRAWS]
    was_training = model.training
    model.eval()
    with variant.disabled():
        logits = task.target_logits(model, batch)
    model.train(was_training)
    return {key: rows for key, rows in batch.items() if key != DRAWS} | {"targets": _drawn(logits, draws)}


def _drawn(logits: Tensor, draws: Tensor) -> Tensor:
    """One class for each row of probabilities, by inversion of their cumulative sums."""
    cumulative = logits.float().softmax(dim=-1).cumsum(dim=-1)
    return (cumulative < draws[..., None] * cumulative[..., -1:]).sum(dim=-1).clamp(max=logits.shape[-1] - 1)
