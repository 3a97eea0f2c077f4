"""Scores of updates that no run trained: any ΔW over the base, in packs, each read of the test split noted."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from experiments.config.loading import resolve
from experiments.config.schema import RunConfig
from experiments.record.ledger import note_test_read
from experiments.training.context import TrainingContext
from experiments.training.evaluation import evaluate


@dataclass(frozen=True)
class Scored:
    """An update to score: ΔW (d_out, d_in) by layer, and the heads that it is scored with."""

    name: str  # of its run
    purpose: str  # what it is scored for, as the ledger says
    updates: Mapping[str, Tensor]
    heads: Mapping[str, Tensor] = field(default_factory=dict)


def score_updates(
    context: TrainingContext, config: RunConfig, given: Sequence[Scored], *, runs_dir: Path, pack: int
) -> Iterator[dict[str, float]]:
    """The metrics of each update on the test split, in their order; `pack` of them are scored together.

    On a CPU a score is the same in any pack. Raises: ValueError for a layer that the configuration does not adapt.
    """
    whole = resolve(config.tree() | {"variant": {"name": "full"}, "start": None})
    if context.task.trains_alone() is not None:
        pack = 1
    for first in range(0, len(given), pack):
        together = given[first : first + pack]
        variant = context.attached([whole] * len(together), [None] * len(together))
        try:
            for trial, scored in enumerate(together):
                variant.start_from(trial, scored.updates, scored.heads)
                note_test_read(
                    runs_dir, data=context.data_sha256["test"], study=config.study, run=scored.name,
                    purpose=scored.purpose,
                )  # fmt: skip
            yield from evaluate(variant, context.task, "test", config.training.precision)
        finally:
            variant.detach()
