"""What the trials over one frozen base have in common: the task, the base with its weights W0, the device."""

import warnings
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import nn

from experiments.config.schema import RunConfig
from experiments.config.seed import seed_parts
from experiments.models.weights import Report, fingerprint, silent
from experiments.record.starting_point import StartingPoint
from experiments.tasks.registry import TASKS
from experiments.tasks.task import Task
from experiments.training.device import choose_device, refuse_precision
from experiments.training.labels import refuse_labels
from lora_variants import VARIANTS
from lora_variants.interface.attach import attach
from lora_variants.interface.pack import Pack
from lora_variants.interface.ranks import RankWarning
from lora_variants.interface.variant import Variant


def load_task(config: RunConfig) -> Task:
    return TASKS[config.task.name].load()(config.task, config.model)


def attached(config: RunConfig, task: Task, model: nn.Module, start: StartingPoint | None = None) -> Variant:
    """The configuration's variant on the model, as a pack of one, with what it starts from."""
    variant = attached_pack([config], task, model)
    if start is not None:
        start.put_into(variant)
    return variant


def attached_pack(configs: Sequence[RunConfig], task: Task, model: nn.Module) -> Variant:
    """The variant of these configurations on the model, as one pack of fresh trials."""
    first = configs[0]
    if first.training.gradient_checkpointing:
        task.use_gradient_checkpointing(model)
    rows = first.training.batch_size // first.training.gradient_accumulation_steps
    task.leave_out_unread_rows(model, wanted=rows % 8 == 0)  # other numbers of rows would not be exact in packs
    seeds = [seed_parts(config.seed) for config in configs]
    pack = Pack(
        seeds=tuple(seed.init for seed in seeds),
        total_steps=tuple(config.training.steps for config in configs),
        dropout_seeds=tuple(seed.dropout for seed in seeds),
    )
    variant = attach(
        VARIANTS[first.variant.name].load(),
        model,
        targets=first.targets,
        head_modules=task.head_names(model),
        pack=pack,
        configs=[config.variant for config in configs],
    )
    own = [config.training.head_learning_rate for config in configs]
    if any(rate is not None for rate in own):
        variant.head_rates = tuple(rate or c.learning_rate for rate, c in zip(own, configs, strict=True))
    return variant


class TrainingContext:
    """A task with its base on a device; the rest of a configuration is a trial's own.

    Raises: ValueError for a device or precision that is not to be had, and for invalid data, before W0 is loaded.
    """

    def __init__(self, config: RunConfig) -> None:
        if config.training.threads is not None:
            torch.set_num_threads(config.training.threads)
        self.device, self.task = choose_device(config.training.device), load_task(config)
        refuse_precision(config.training.precision, self.device)

    def plan(self, config: RunConfig, start: StartingPoint | None = None) -> tuple[Variant, list[str]]:
        """The variant on arbitrary weights, and warnings: what does not fit is known before anything is computed."""
        refuse_labels(self.task, labels := config.training.labels)
        doubts = [] if start is None else start.compare_with_base(config)
        if labels is not True:
            doubts.append(f"training.labels={labels}: false labels, for a null; what is learned is of no other use")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RankWarning)
            variant = attached(config, self.task, self.task.architecture(), start)
        return variant, [*doubts, *(str(warning.message) for warning in caught)]

    def read_data(self, report: Report = silent) -> None:
        """What is wrong with the data is known after this, before anything is computed.

        Raises: DataError with what is wrong with each split; NotHereError.
        """
        self.task.read_data(report)

    @cached_property
    def data_sha256(self) -> dict[str, str]:
        return self.task.data_sha256()

    def load(self, report: Report = silent) -> None:
        """Have the base with its weights W0 in `base`; `report` hears of work that takes long."""
        base = self.task.base_model(report)
        self.base_sha256 = fingerprint(base.state_dict())
        self.base_parameters = sum(p.numel() for p in base.parameters())
        self.base = base.to(self.device)

    def attached(self, configs: Sequence[RunConfig], starts: Sequence[StartingPoint | None]) -> Variant:
        """The variant of these configurations on the base, as one pack, with what each trial starts from."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RankWarning)  # said by whoever planned them
            variant = attached_pack(configs, self.task, self.base)
        for trial, start in enumerate(starts):
            if start is not None:
                start.put_into(variant, trial)
        return variant
