"""What a trained variant is worth: the task's metrics of every trial of a pack on a whole split."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from experiments.tasks.task import Predictions, Split, Task
from experiments.training.batches import stack
from lora_variants.interface.pack import Pack
from lora_variants.interface.variant import Variant


class Evaluation(dict[str, float]):
    """The task's metrics on a whole split, with what was predicted of each of its rows."""

    predict: Callable[[], Predictions]

    @property
    def predictions(self) -> Predictions:
        """Made when they are asked for: of the evaluations during training nobody asks."""
        return self.predict()


FinalScores = tuple[Evaluation, dict[str, float] | None]  # on validation, and on the base's own domain


def final_scores(variant: Variant, task: Task, precision: str) -> list[FinalScores]:
    """What each trial of a pack scores at its end; the second is None where there are no data of the base's domain."""
    validation = evaluate(variant, task, "validation", precision)
    forgetting = _forgetting(variant, task, precision) if task.has_forgetting_split else [None] * len(validation)
    return list(zip(validation, forgetting, strict=True))


def _forgetting(variant: Variant, task: Task, precision: str) -> list[dict[str, float] | None]:
    """The loss on text of the base's own domain: of the untouched base, of the adapted model, and the difference."""
    with variant.disabled():
        before = evaluate(variant, task, "forgetting", precision)
    after = evaluate(variant, task, "forgetting", precision)
    losses = [(b["loss"], a["loss"]) for b, a in zip(before, after, strict=True)]
    return [{"before": b, "after": a, "change": a - b} for b, a in losses]


def evaluate(variant: Variant, task: Task, split: Split, precision: str) -> list[Evaluation]:
    """What every trial scores on a whole split: task loss alone, no penalty, no dropout.

    A variant that can be evaluated in several ways has each way's metrics under 'way/...'; the predictions are those
    that give the score.
    """
    found = [Evaluation() for _ in range(variant.pack.trials)]
    for mode, holds in variant.evaluation_modes().items():
        with holds:
            evaluations = _evaluations(variant.model, variant.pack, task, split, precision)
        for of_trial, evaluation in zip(found, evaluations, strict=True):
            of_trial |= {f"{mode}/{name}" if mode else name: value for name, value in evaluation.items()}
            if not mode:
                of_trial.predict = evaluation.predict
    return found


def evaluate_plain(model: nn.Module, task: Task, split: Split, precision: str) -> Evaluation:
    """What a model without adapters scores on a whole split."""
    (found,) = _evaluations(model, Pack(seeds=(0,), total_steps=(0,)), task, split, precision)
    return found


def _evaluations(model: nn.Module, pack: Pack, task: Task, split: Split, precision: str) -> list[Evaluation]:
    rows, counts = split_rows(model, pack, task, split, precision)
    found = []
    for k in range(pack.trials):
        of_trial = {name: values[k] for name, values in rows.items()}
        found.append(evaluation := Evaluation(task.split_metrics(of_trial, counts[k])))
        evaluation.predict = partial(task.predictions, split, of_trial, counts[k])
    return found


@torch.no_grad()
def split_rows(
    model: nn.Module, pack: Pack, task: Task, split: Split, precision: str
) -> tuple[dict[str, Float[Tensor, "trials rows"]], Float[Tensor, "trials rows"]]:
    """Each of the task's quantities for every row of a split, and the rows' counts, in float64."""
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


def autocast(device: torch.device, precision: str) -> AbstractContextManager[None]:
    """What a forward runs in; what is trained stays in float32."""
    return nullcontext() if precision == "float32" else torch.autocast(device.type, dtype=getattr(torch, precision))


def by_split(split: str, scores: Sequence[dict[str, float]]) -> list[dict[str, float]]:
    """Each trial's metrics under the names they are logged by: 'validation/loss'."""
    return [{f"{split}/{name}": value for name, value in score.items()} for score in scores]
