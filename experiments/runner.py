"""One run from its configuration to its record: build, check, train, score, write down."""

import copy
import math
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.bases.weights import fingerprint
from experiments.config import RunConfig
from experiments.display import Display
from experiments.record.adapter_files import load_update, save_update
from experiments.record.checkpoint import Checkpoints
from experiments.record.environment import choose_device, describe, refuse_precision
from experiments.record.folder import RunFolder, folder_name
from experiments.record.ledger import note_test_read
from experiments.record.recorder import Recorder
from experiments.record.starting_point import StartingPoint, read_start
from experiments.tasks.table import TASKS
from experiments.tasks.task import Task
from experiments.training import Clock, Regime, Trial, by_split, evaluate, train
from lora_variants import VARIANTS, RankWarning
from lora_variants.attach import attach
from lora_variants.pack import Pack
from lora_variants.variant import Variant


class TrainingFailedError(RuntimeError):
    """A run that ended without a score, with the reason."""


@dataclass(frozen=True)
class Finished:
    """A finished run: its record, and whether it was there before."""

    folder: Path
    result: dict[str, Any]
    found: bool


def trial_of(config: RunConfig) -> Trial:
    """What the configuration says of one trial of a pack."""
    training = config.training
    return Trial(
        seed=config.seed,
        learning_rate=config.learning_rate,
        weight_decay=training.weight_decay,
        clip=training.clip,
        schedule=training.schedule,
        warmup=round(training.warmup * training.steps),
    )


def regime_of(config: RunConfig) -> Regime:
    """What the configuration says of all trials of a pack."""
    training = config.training
    return Regime(
        steps=training.steps,
        rows=training.rows,
        accumulation=training.accumulation,
        evaluate_every=training.evaluate_every,
        precision=training.precision,
    )


def load_task(config: RunConfig) -> Task:
    return TASKS[config.task.name].load()(config.task, config.model)


def attached(config: RunConfig, task: Task, model: nn.Module, start: StartingPoint | None = None) -> Variant:
    """The configuration's variant on the model, as a pack of one, with what it starts from."""
    if config.training.checkpointing:
        task.use_checkpointing(model)
    pack = Pack(seeds=(config.seed,), total_steps=(config.training.steps,))
    variant_class = VARIANTS[config.variant.name].load()
    variant = attach(
        variant_class,
        model,
        targets=config.targets,
        head_modules=task.head_names(model),
        pack=pack,
        configs=[config.variant],
    )
    if config.training.head_learning_rate is not None:
        variant.head_rates = (config.training.head_learning_rate,)
    if start is not None:
        start.put_into(variant)
    return variant


def execute(config: RunConfig, *, runs_dir: Path, test: bool, display: Display) -> Finished:
    """Carry out a run, or find it finished; the test split is read only with `test`.

    Raises: ValueError for what does not fit together, before anything is trained; TrainingFailedError.
    """
    if config.training.threads is not None:
        torch.set_num_threads(config.training.threads)
    device, task = choose_device(config.training.device), load_task(config)
    refuse_precision(config.training.precision, device)
    start = read_start(config.start)
    plan = _planned(config, task, start, display)
    runs_dir.mkdir(parents=True, exist_ok=True)  # so that a folder that cannot be written is known first
    data_sha256 = task.data_sha256()  # what is wrong with the data is known before anything is computed
    with display.live():
        base = task.base_model(display.report)
    base_sha256 = fingerprint(base.state_dict())
    start_sha256 = {} if start is None else {"start_sha256": start.sha256}
    identity = config.identity(base=base_sha256, **data_sha256, **start_sha256)
    rank_total = sum(layer.ranks[0] for layer in plan.layers.values())
    name = folder_name(config, rank_total=rank_total, identity=identity)
    folder = RunFolder(runs_dir.resolve() / config.study / name)
    with folder.held():  # from before the first look, so that no other process finishes it in between
        if folder.finished:
            folder.refuse_other(config)
            return Finished(folder.path, _found(config, task, base.to(device), folder, runs_dir, test), found=True)
        environment = describe(
            device=device,
            base_sha256=base_sha256,
            base_facts=task.base_facts(),
            data_sha256=data_sha256,
            **start_sha256,
        )
        clock = Clock()
        checkpoints = Checkpoints(folder, identity=identity, every=config.training.checkpoint_every, clock=clock)
        with folder:
            _begin(config, folder, checkpoints, environment, display)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RankWarning)  # said above
                variant = attached(config, task, base.to(device), None if checkpoints.start else start)
            with Recorder(config, task, variant, folder, display) as recorder:
                result = _carry_out(recorder, checkpoints, clock, runs_dir=runs_dir, test=test)
    return Finished(folder.path, result, found=False)


def _planned(config: RunConfig, task: Task, start: StartingPoint | None, display: Display) -> Variant:
    """The variant on a model of arbitrary weights: what does not fit together is known before anything is computed."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RankWarning)
        plan = attached(config, task, task.architecture(), start)
    if start is not None:
        display.say(start.in_words())
    for warning in caught:
        display.warn(str(warning.message))
    return plan


def _found(
    config: RunConfig, task: Task, base: nn.Module, folder: RunFolder, runs_dir: Path, test: bool
) -> dict[str, Any]:
    """The result of a finished run; its test score only for who asks, read now where it was not before."""
    result = folder.result()
    if not test:
        return {key: value for key, value in result.items() if key != "test"}
    if "test" not in result:
        result["test"] = _test(config, task, base, folder, runs_dir)
        folder.finish(result)
    return result


def _begin(
    config: RunConfig, folder: RunFolder, checkpoints: Checkpoints, environment: dict[str, Any], display: Display
) -> None:
    """The folder is ready for the steps from the checkpoint on, or from the first."""
    if checkpoints.start:
        folder.go_on()
        display.say(f"going on from the checkpoint at step {checkpoints.start}")
    else:
        folder.start(config, environment)
    checkpoints.begin()


def _carry_out(
    recorder: Recorder, checkpoints: Checkpoints, clock: Clock, *, runs_dir: Path, test: bool
) -> dict[str, Any]:
    """Train, score, and write the result last."""
    config, task, variant, folder = recorder.config, recorder.task, recorder.variant, recorder.folder
    regime, trial, since = regime_of(config), trial_of(config), time.perf_counter() - clock.seconds
    with recorder.display.live(), checkpoints.finishing_the_step():
        outcome = train(variant, task, [trial], regime, clock=clock, on_step=recorder.on_step, keeper=checkpoints)[0]
    if outcome.failure is not None:
        raise TrainingFailedError(f"{outcome.failure}\nrecord: {folder.path}")
    scores = evaluate(variant, task, "validation", regime)
    if not all(math.isfinite(value) for value in scores[0].values()):
        raise TrainingFailedError(f"not finite on the validation split: {scores[0]}\nrecord: {folder.path}")
    recorder.on_step(variant.pack.steps[0], by_split("validation", scores))
    seconds = {"training": clock.seconds, "besides": time.perf_counter() - since - clock.seconds}
    result = recorder.result(checkpoints, seconds=seconds, steps_executed=outcome.steps_executed)
    if task.has_forgetting_split:
        result["forgetting"] = _forgetting(variant, task, regime)
    files = save_update(variant, 0, folder.path)
    if test:
        result["test"] = _test(config, task, variant.detach(), folder, runs_dir)
    folder.finish(result)
    checkpoints.remove()
    recorder.finish(result, files)
    return result


def _forgetting(variant: Variant, task: Task, regime: Regime) -> dict[str, float]:
    """The loss on text of the base's own domain: of the untouched base, of the adapted model, and the difference."""
    with variant.disabled():
        before = evaluate(variant, task, "forgetting", regime)[0]["loss"]
    after = evaluate(variant, task, "forgetting", regime)[0]["loss"]
    return {"before": before, "after": after, "change": after - before}


def _test(config: RunConfig, task: Task, base: nn.Module, folder: RunFolder, runs_dir: Path) -> dict[str, float]:
    """The score on the test split of what is on disk, now or later the same; the read goes into the ledger."""
    note_test_read(runs_dir, data=task.data_sha256()["test"], study=config.study, run=folder.path.name)
    base = copy.deepcopy(base)
    if next(base.parameters()).dtype.itemsize < 4:
        base.float()  # in a narrow W0 + ΔW most of ΔW would be rounded away
    load_update(base, folder.path)
    plain = VARIANTS["head"].load()
    pack = Pack(seeds=(config.seed,), total_steps=(0,))
    tuned = attach(plain, base, targets=config.targets, pack=pack, configs=[plain.config_class(name="head")])
    return evaluate(tuned, task, "test", regime_of(config))[0]
