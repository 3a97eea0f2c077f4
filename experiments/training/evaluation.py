"""What a trained variant is worth: the task's metrics of every trial of a pack on a whole split."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Float
from torch import Tensor

from experiments.tasks.task import Batch, Split, Task
from lora_variants.interface.variant import Variant


def evaluate(variant: Variant, task: Task, split: Split, precision: str) -> list[dict[str, float]]:
    """The task's metrics of every trial on a whole split: task loss alone, no penalty, no dropout.

    A variant that can be evaluated in several ways has each way's metrics under 'way/...'.
    """
    found: list[dict[str, float]] = [{} for _ in range(variant.pack.trials)]
    for mode, holds in variant.evaluation_modes().items():
        with holds:
            rows, counts = split_rows(variant, task, split, precision)
        for k, metrics in enumerate(found):
            of_trial = task.split_metrics({name: values[k] for name, values in rows.items()}, counts[k])
            metrics |= {f"{mode}/{name}" if mode else name: value for name, value in of_trial.items()}
    return found


@torch.no_grad()
def split_rows(
    variant: Variant, task: Task, split: Split, precision: str
) -> tuple[dict[str, Float[Tensor, "trials rows"]], Float[Tensor, "trials rows"]]:
    """Each of the task's quantities for every row of a split, and the rows' counts, in float64."""
    pack, model = variant.pack, variant.model
    device = next(model.parameters()).device
    model.eval()
    found: dict[str, list[Tensor]] = {}
    counts: list[Tensor] = []
    for batch in task.evaluation_batches(split):
        everyone = stack([batch] * pack.trials, device)
        pack.rows = len(next(iter(batch.values())))
        with autocast(device, precision):
            quantities = task.row_quantities(model, everyone)
        for name, rows in quantities.items():
            found.setdefault(name, []).append(rows.cpu().double().view(pack.trials, -1))
        counts.append(task.row_counts(everyone).cpu().double().view(pack.trials, -1))
    return {name: torch.cat(parts, dim=1) for name, parts in found.items()}, torch.cat(counts, dim=1)


def stack(batches: Sequence[Batch], device: torch.device) -> Batch:
    """The rows of all trials, trial-major, where the model is."""
    return {key: torch.cat([batch[key] for batch in batches]).to(device) for key in batches[0]}


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """What a forward runs in; what is trained stays in float32."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, dtype=getattr(torch, precision))


def by_split(split: str, scores: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Each trial's metrics under the names they are logged by: 'validation/loss'."""
    return [{f"{split}/{name}": value for name, value in score.items()} for score in scores]
