"""What a run is and where it goes: its hash, its run directory, and what it runs on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from experiments.config.schema import RunConfig
from experiments.record.environment import describe
from experiments.record.learned_on import refuse_other_base
from experiments.record.run_dir import RunDirectory, run_dir_name
from experiments.record.starting_point import StartingPoint
from experiments.tasks.task import Task


@dataclass(frozen=True)
class RunDescription:
    """12 hex digits of all that the run's result depends on, its run directory, and its `environment.json`.

    `name` is that of the run directory. A study's trial trains in another directory first, which takes that name later.
    """

    config_hash: str
    name: str
    run_dir: RunDirectory
    environment: Mapping[str, Any]


class Loaded(Protocol):
    """A task whose base model, with its weights W0, is on a device."""

    @property
    def task(self) -> Task: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def base_sha256(self) -> str: ...

    @property
    def data_sha256(self) -> Mapping[str, str]: ...


def describe_run(
    config: RunConfig, loaded: Loaded, runs_dir: Path, *, rank_total: int, start: StartingPoint | None
) -> RunDescription:
    """Say what the run of this configuration is; `rank_total` is the sum of the ranks of all its layers.

    Raises: RunStoreError for a run to come that starts from what was learned on another base model.
    """
    config_hash = hash_run(config, base_sha256=loaded.base_sha256, data_sha256=loaded.data_sha256, start=start)
    name = run_dir_name(config, rank_total=rank_total, config_hash=config_hash)
    run_dir = RunDirectory(runs_dir.resolve() / config.study / name)
    if not run_dir.finished:
        refuse_other_base(config, loaded.base_sha256)
    environment = describe(
        device=loaded.device,
        base_sha256=loaded.base_sha256,
        base_facts=loaded.task.base_facts(),
        data_sha256=loaded.data_sha256,
        start_sha256=None if start is None else start.sha256,
    )
    return RunDescription(config_hash, name, run_dir, environment)


def hash_run(
    config: RunConfig, *, base_sha256: str, data_sha256: Mapping[str, str], start: StartingPoint | None
) -> str:
    """12 hex digits of the configuration and of the content of W0, the data and the start."""
    start_sha256 = {} if start is None else {"start_sha256": start.sha256}
    return config.config_hash(base=base_sha256, **data_sha256, **start_sha256)
