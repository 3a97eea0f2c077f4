"""Which trials may share a pack, and how many of them train fastest together on this machine."""

import math
import os
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from experiments.config.schema import RunConfig
from experiments.record.out_of_resources import is_out_of_memory
from experiments.studies.spec.arm import Arm
from experiments.training.context import TrainingContext, attached_pack
from experiments.training.device import peak_bytes
from experiments.training.hyperparameters import shared_hyperparameters, trial_hyperparameters
from experiments.training.loop import Training
from lora_variants import VARIANTS

OWN_KNOBS = {
    "learning_rate", "head_learning_rate", "weight_decay", "lr_schedule", "warmup_ratio", "max_grad_norm",
    "checkpoint_every",
}  # fmt: skip
LARGEST_PACK = 32
PROBE_STEPS = 2  # at least
PROBE_SECONDS = 0.1  # at least: short steps vary more
SMALLEST_SHARE = 4  # trials: in smaller packs a trial-step costs much more
LONG_STEP_SECONDS = 2.0  # a pack whose step takes this long is not asked for more
WORTH_IT = 0.98  # a larger pack is taken where it saves this much
SURE_FROM = 4  # trials: smaller packs take too little time to say that larger ones do not pay
MEMORY_SHARE = 0.5  # of what is free may go to one more doubling


@dataclass(frozen=True)
class Speed:
    """What one trial-step costs in a pack of this size, seconds of processor time (of wall time on a GPU)."""

    trials: int
    seconds: float


NOT_MEASURED = Speed(1, 0.0)  # nothing trains, or it does not fit into memory


class Packing:
    """Groups of arms whose trials may share a pack, and the size of a pack for each group, measured.

    After `patience` seconds of measuring, the first group is not tried in larger packs, and a further one is measured
    alone and taken to gain as much as the last that trains anything.

    Trials share a pack if they have all in common but what belongs to a trial, and if every layer's rank is padded to
    the same length: then a trial's arithmetic is the same alone and in the pack.
    """

    def __init__(
        self, context: TrainingContext, *, size: int | None = None, workers: int = 1, patience: float = math.inf
    ) -> None:
        self.context, self.fixed, self.workers = context, size, workers
        self.patience, self.deadline = patience, 0.0
        self._groups: dict[str, Hashable] = {}
        self._totals: dict[str, int] = {}
        self._speeds: dict[Hashable, list[Speed]] = {}
        self._estimated: set[Hashable] = set()

    @property
    def impatient(self) -> bool:
        return time.process_time() > self.deadline

    def group(self, arm: Arm) -> Hashable:
        """What the trials of an arm share with those that they may be packed with."""
        if arm.config_hash not in self._groups:
            variant, _ = self.context.plan(arm.config)
            training = arm.config.training.model_dump(exclude=OWN_KNOBS)
            shared = (arm.config.variant.name, tuple(arm.config.targets), tuple(sorted(training.items())))
            self._groups[arm.config_hash] = (*shared, tuple(sorted(variant.rank_padded_to().items())))
            self._totals[arm.config_hash] = sum(layer.ranks[0] for layer in variant.layers.values())
        return self._groups[arm.config_hash]

    def rank_total(self, arm: Arm) -> int:
        """The sum of the ranks of all layers."""
        self.group(arm)
        return self._totals[arm.config_hash]

    def size(self, arm: Arm) -> int:
        """How many trials of the arm's group to train together."""
        if self._alone(arm.config):
            return 1
        if self.fixed is not None:
            return self.fixed
        speeds = self.speeds(arm)
        best = min(speed.seconds for speed in speeds)
        return min(speed.trials for speed in speeds if speed.seconds * WORTH_IT <= best)

    def speeds(self, arm: Arm) -> list[Speed]:
        """What a trial-step costs in packs of 1, 2, 4, ..., measured once a group; the last may be the slowest."""
        group = self.group(arm)
        if group not in self._speeds:
            known = [speeds for speeds in self._speeds.values() if speeds[0].seconds]  # others train nothing
            self.deadline = self.deadline or time.process_time() + self.patience
            if known and self.impatient:
                self._speeds[group] = self._like(known[-1], arm.config)
                self._estimated.add(group)
            else:
                self._speeds[group] = self._measured(arm.config)
        return self._speeds[group]

    def is_estimated(self, arm: Arm) -> bool:
        """Whether only a pack of one was measured, and larger ones are taken to gain what another group's do."""
        return self.group(arm) in self._estimated

    def _like(self, other: list[Speed], config: RunConfig) -> list[Speed]:
        """The speeds of another group, in proportion to what a pack of one takes here."""
        try:
            alone = self._seconds(config, 1)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            alone = 0.0
        return [Speed(speed.trials, speed.seconds * alone / other[0].seconds) for speed in other if alone] or [
            NOT_MEASURED
        ]

    def halve(self, arm: Arm, trials: int) -> None:
        """A pack of so many did not fit into memory."""
        group = self.group(arm)
        kept = [speed for speed in self._speeds.get(group, []) if speed.trials <= trials // 2]
        self._speeds[group] = kept or [Speed(max(1, trials // 2), 0.0)]
        self.fixed = None if self.fixed is None else max(1, min(self.fixed, trials // 2))

    def _alone(self, config: RunConfig) -> bool:
        task, variant = self.context.task, VARIANTS[config.variant.name].load()
        return variant.trains_alone or task.trains_alone() is not None

    def _measured(self, config: RunConfig) -> list[Speed]:
        found: list[Speed] = []
        trials, memory = 1, _peak(self.context)
        while trials <= (1 if self._alone(config) else LARGEST_PACK):
            try:
                found.append(Speed(trials, self._seconds(config, trials)))
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                return found or [NOT_MEASURED]  # a trial for which memory is too little alone fails when it trains
            if not found[-1].seconds:  # nothing trains
                break
            before, memory = memory, _peak(self.context)
            if trials >= SURE_FROM and found[-1].seconds > WORTH_IT * min(speed.seconds for speed in found[:-1]):
                break
            if trials >= SURE_FROM and self.impatient:
                break
            if found[-1].seconds * trials > LONG_STEP_SECONDS:
                break
            if 2 * (memory - before) > MEMORY_SHARE * _free_bytes(self.context) / self.workers:
                break
            trials *= 2
        return found

    def _seconds(self, config: RunConfig, trials: int) -> float:
        """Of one trial-step: the fastest of a few, after one that is not counted."""
        configs = [config.model_copy(update={"seed": trial}) for trial in range(trials)]
        variant = attached_pack(configs, self.context.task, self.context.base)
        try:
            training = Training(
                variant, self.context.task, [trial_hyperparameters(c) for c in configs], shared_hyperparameters(config)
            )
            if not training.trains:
                return 0.0
            training.step()
            timed = [self._timed(training) for _ in range(PROBE_STEPS)]
            while sum(timed) < PROBE_SECONDS:
                timed.append(self._timed(training))
            return min(timed) / trials
        finally:
            variant.detach()

    def _timed(self, training: Training) -> float:
        on_gpu = self.context.device.type == "cuda"
        clock = time.perf_counter if on_gpu else time.process_time
        if on_gpu:
            torch.cuda.synchronize(self.context.device)
        since = clock()
        training.step()
        if on_gpu:
            torch.cuda.synchronize(self.context.device)
        return clock() - since


def share(size: int, waiting: int, workers: int) -> int:
    """How many trials a worker takes. Split the tail evenly so no worker gets a tiny pack."""
    return min(size, max(-(-waiting // max(1, workers)), SMALLEST_SHARE))


def groups_of(arms: Sequence[Arm], packing: Packing) -> dict[Hashable, list[Arm]]:
    """The arms of each group, in the study's order."""
    found: dict[Hashable, list[Arm]] = {}
    for arm in arms:
        found.setdefault(packing.group(arm), []).append(arm)
    return found


def _peak(context: TrainingContext) -> int:
    return peak_bytes(context.device) or 0


def _free_bytes(context: TrainingContext) -> float:
    if context.device.type == "cuda":
        return torch.cuda.mem_get_info(context.device)[0]
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return float("inf")
