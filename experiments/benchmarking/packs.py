"""The packed training step: our loop's own, for trials of one case, beside PEFT's of the same weights and batch."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.benchmarking.cases import PackCase
from experiments.benchmarking.implementations import (
    ALPHA_PER_RANK,
    BUILDERS,
    DEFAULT,
    PEFT,
    RATE,
    Implementation,
    gradients,
)
from experiments.benchmarking.workload import Workload, build_workload, in_place, logits_of, random_batch, with_rank
from experiments.models.first_row import compute_first_row_only
from experiments.tasks.task import Batch, Split, Task
from experiments.training.hyperparameters import SharedHyperparameters, TrialHyperparameters
from experiments.training.loop import Training, compute_gradients
from lora_variants.interface.attach import attach
from lora_variants.interface.layer import AdaptedLayer, rank_bucket
from lora_variants.interface.pack import Pack
from lora_variants.interface.ranks import RankWarning
from lora_variants.lora import LoRA, LoRAConfig

CLIPPING = "PEFT, clipping"
STEPS = 10**6  # of a trial: more than are ever timed
DIFFERENT_BATCHES = 4  # of each trial, over and over


class RandomBatches(Task):
    """A workload's model with random batches of the workload's shape, others for every seed."""

    score_name = "loss"
    higher_is_better = False

    def __init__(self, workload: Workload) -> None:
        self.workload = workload

    def data_sha256(self) -> dict[str, str]:
        return {}

    def architecture(self) -> nn.Module:
        return self.workload.base

    def base_model(self, report: object = None) -> nn.Module:
        return self.workload.base

    def training_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        drawn = [random_batch(self.workload.case, generator) for _ in range(DIFFERENT_BATCHES)]
        return cycle([{"tokens": tokens, "labels": labels} for tokens, labels in drawn])

    def evaluation_batches(self, split: Split) -> Iterator[Batch]:
        return iter(())

    def row_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        logits, labels = logits_of(model, batch["tokens"]), batch["labels"]
        losses = F.cross_entropy(logits.float().flatten(0, -2), labels.flatten(), reduction="none")
        return losses.view(len(labels), -1).sum(dim=1)

    def row_counts(self, batch: Batch) -> Tensor:
        labels = batch["labels"]
        return torch.full((len(labels),), labels[0].numel(), dtype=torch.float32, device=labels.device)

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        return dict(means)


@dataclass(frozen=True)
class PackOfTrials:
    """A pack in training: its modules for the base's paths, and the loop's own step while they are in place."""

    ranks: tuple[int, ...]
    modules: Mapping[str, nn.Module]
    training: Training

    def step(self) -> object:
        """One step of every trial: batches, forward, backward, norms, clipping, optimizer, and what it reports."""
        with self.as_in_training():
            return self.training.step()

    @contextmanager
    def as_in_training(self) -> Iterator[None]:
        """The base computes the rows that a run of ours has it compute; afterwards all, as the others do."""
        base = self.training.variant.model
        compute_first_row_only(base, wanted=self.training.shared.batch_size % 8 == 0)
        try:
            yield
        finally:
            compute_first_row_only(base, wanted=False)

    def factors(self, trial: int) -> list[Tensor]:
        """A (r, d_in) and B (d_out, r) of every path in order, as views without padding."""
        return [part for layer in self._layers() for part in layer.parts(trial).values()]

    def gradients(self, trial: int) -> list[Tensor]:
        """Those of a trial's A and B of every path in order."""
        rank = self.ranks[trial]
        pairs = [(layer.A.grad, layer.B.grad) for layer in self._layers()]
        return [part for A, B in pairs for part in (A[trial, :rank], B[trial, :, :rank])]  # type: ignore[index]

    def _layers(self) -> list[AdaptedLayer]:
        return list(self.training.variant.layers.values())


def buckets(ranks: Sequence[int]) -> list[tuple[int, ...]]:
    """The ranks of each pack: those of trials that are padded to the same length train together."""
    found: dict[int, list[int]] = {}
    for rank in ranks:
        found.setdefault(rank_bucket(rank), []).append(rank)
    return [tuple(alike) for alike in found.values()]


def ranks_of(case: PackCase, trials: int) -> tuple[int, ...]:
    return tuple(islice(cycle(case.ranks), trials))


def build_pack(workloads: Mapping[int, Workload], ranks: Sequence[int]) -> PackOfTrials:
    """Trials of these ranks, each at its own rate, that start where PEFT's do.

    `workloads` are by rank, over one base.
    """
    first = workloads[ranks[0]]
    configs = [LoRAConfig.model_validate({"rank": r, "alpha": float(ALPHA_PER_RANK * r)}) for r in ranks]
    pack = Pack(seeds=tuple(range(len(ranks))), total_steps=(STEPS,) * len(ranks))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)  # what a rank is worth is not measured here
        variant = attach(LoRA, first.base, targets=first.paths, pack=pack, configs=configs)
    modules = {path: first.base.get_submodule(path) for path in first.paths}
    trials = [TrialHyperparameters(seed=k, learning_rate=RATE * (1 + k / len(ranks))) for k in range(len(ranks))]
    shared = SharedHyperparameters(steps=STEPS, batch_size=first.case.batch_size, precision=first.case.precision)
    built = PackOfTrials(tuple(ranks), modules, Training(variant, RandomBatches(first), trials, shared))
    variant.detach()
    for k, rank in enumerate(ranks):
        start = [factor for path in first.paths for factor in workloads[rank].start[path]]
        for part, value in zip(built.factors(k), start, strict=True):
            part.copy_(value)
    return built


def workloads_of(case: PackCase, device: torch.device) -> dict[int, Workload]:
    """By rank, over one base and with one batch."""
    first = build_workload(replace(case.case, rank=case.ranks[0]), device)
    return {rank: first if rank == case.ranks[0] else with_rank(first, rank) for rank in case.ranks}


def build_theirs(workloads: Mapping[int, Workload]) -> dict[str, dict[int, Implementation]]:
    """PEFT with torch's fused AdamW, with its default, and with the first after clipping; each for every rank."""
    builders = {PEFT: BUILDERS[PEFT], DEFAULT: BUILDERS[DEFAULT], CLIPPING: _build_clipping}
    return {name: {r: build(workload) for r, workload in workloads.items()} for name, build in builders.items()}


def _build_clipping(workload: Workload) -> Implementation:
    """PEFT's step with what our loop also does: gradients are clipped, as torch does it."""
    peft = BUILDERS[PEFT](workload)
    parameters = [parameter for pair in peft.factors.values() for parameter in pair]

    def update() -> None:
        nn.utils.clip_grad_norm_(parameters, 1.0)
        peft.update()

    return replace(peft, update=update)


def largest_differences(
    pack: PackOfTrials, workloads: Mapping[int, Workload], peft: Mapping[int, Implementation]
) -> dict[str, float]:
    """How far loss and gradients of trials in a pack are from PEFT's of the same weights and batch, relatively.

    The first trial of every rank, and the last of all, have that batch; the others have their own. The weights are
    what they were; the gradients are gone.
    """
    some = workloads[pack.ranks[0]]
    checked = sorted({pack.ranks.index(rank) for rank in pack.ranks} | {len(pack.ranks) - 1})
    training, base = pack.training, some.base
    batches = [next(training.task.training_batches(trial.seed, some.case.batch_size)) for trial in training.trials]
    for k in checked:
        batches[k] = {"tokens": some.tokens.cpu(), "labels": some.labels.cpu()}
    with in_place(base, pack.modules), pack.as_in_training():
        losses, _ = compute_gradients(training.variant, training.task, batches, training.shared)
    found = {"loss": 0.0, "gradient": 0.0}
    for k in checked:
        loss, expected = _loss_and_gradients(workloads[pack.ranks[k]], peft[pack.ranks[k]])
        found["loss"] = max(found["loss"], float((losses[k] - loss).abs() / loss))
        for ours, theirs in zip(pack.gradients(k), expected, strict=True):
            found["gradient"] = max(found["gradient"], float((ours - theirs).norm() / theirs.norm()))
    for group in training.groups:
        for parameter in group.parameters:
            parameter.grad = None
    return found


def _loss_and_gradients(workload: Workload, implementation: Implementation) -> tuple[Tensor, list[Tensor]]:
    with in_place(workload.base, implementation.modules):
        loss = implementation.loss()
        loss.backward()
    found = gradients(implementation, workload.case.rank)
    for parameter in (p for pair in implementation.factors.values() for p in pair):
        parameter.grad = None
    return loss.detach(), found
