"""A worker in a process of its own: it reads what to do from its standard input, and stops when that is closed."""

import os
import pickle
import sys
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch

from experiments.config.loading import resolve
from experiments.record.out_of_resources import describe_exhaustion
from experiments.studies.queue.storage import NO_PATIENCE, Address, Patience, QueueError
from experiments.studies.queue.trial_queue import TrialQueue
from experiments.studies.spec.arm import Arm
from experiments.studies.spec.study import Study
from experiments.studies.spec.study_config import StudyConfig
from experiments.studies.workers.packing import Packing
from experiments.studies.workers.worker import Worker
from experiments.training.context import TrainingContext
from experiments.training.interruption import Interruption

DONE, FAULTY, BROKEN, STOPPED = 0, 2, 3, 130


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker is told."""

    study: "PlainStudy"
    address: Address
    runs_dir: Path
    pack: int | None
    workers: int
    name: str
    base_sha256: str
    patience_seconds: float = 0.0  # with a database that does not answer
    log: Path | None = None  # where it writes; None: where it is started


@dataclass(frozen=True)
class PlainStudy:
    """A study as its driver read it, in plain values: all workers of a start go by one file, whatever becomes of it."""

    config: dict[str, Any]
    arms: list[dict[str, Any]]
    score_name: str
    higher_is_better: bool

    @classmethod
    def of(cls, study: Study) -> Self:
        arms = [_plain(arm) for arm in study.arms]
        return cls(study.config.model_dump(), arms, study.score_name, study.higher_is_better)

    def study(self) -> Study:
        config = StudyConfig.model_validate(self.config)
        return Study(config, tuple(map(_arm, self.arms)), {}, (), self.score_name, self.higher_is_better)


def _plain(arm: Arm) -> dict[str, Any]:
    tree = {"label": arm.label, "config_hash": arm.config_hash, "keys": dict(arm.keys), "tree": arm.config.tree()}
    source = None if arm.source is None else _plain(arm.source)
    return tree | {"search": dict(arm.search), "source": source, "seed_offset": arm.seed_offset, "rate_of": arm.rate_of}


def _arm(plain: dict[str, Any]) -> Arm:
    source = None if plain["source"] is None else _arm(plain["source"])
    config = resolve(plain["tree"])
    named = plain["label"], plain["config_hash"], plain["keys"]
    return Arm(*named, config, plain["search"], source, rate_of=plain["rate_of"], seed_offset=plain["seed_offset"])


def open_queue(
    study: Study, address: Address, *, worker: str | None = None, patience: Patience = NO_PATIENCE
) -> TrialQueue:
    """The study's queue, made if there is none; `worker` is the name of this process.

    Raises: QueueError.
    """
    direction: Literal["maximize", "minimize"] = "maximize" if study.higher_is_better else "minimize"
    return TrialQueue.open(address, study.name, direction=direction, worker=worker, patience=patience)


def main() -> int:
    """0: all that the study wants has ended; 2: what the user can mend; 3: an error; 130: interrupted.

    Whatever a worker has to tell a person goes to standard error.
    """
    try:
        spec: WorkerSpec = pickle.load(sys.stdin.buffer)
    except EOFError:  # there was nothing to do for this one
        return DONE
    if spec.log is not None:
        _write_to(spec.log)
    interruption = Interruption()
    threading.Thread(target=_stop_with_the_driver, args=(interruption,), daemon=True).start()
    try:
        with interruption.heeded():
            _work(spec, interruption)
    except KeyboardInterrupt as stop:
        _tell(str(stop) or "interrupted")
        return STOPPED
    except (ValueError, OSError, QueueError) as error:
        if interruption.asked and isinstance(error, QueueError):  # nobody waits for a database that is away
            _tell(f"interrupted: {error}")
            return STOPPED
        _tell(f"{traceback.format_exc()}error: {describe_exhaustion(error) or error}")
        return FAULTY
    except Exception:
        _tell(traceback.format_exc())
        return BROKEN
    return DONE


def _tell(text: str) -> None:
    """Say it where this process writes, if that can be written."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _write_to(log: Path) -> None:
    """What this process says from now on goes to the end of a file."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
        os.dup2(file, stream.fileno())
    os.close(file)


def _work(spec: WorkerSpec, interruption: Interruption) -> None:
    study = spec.study.study()
    torch.set_num_threads(study.arms[0].config.training.threads or 1)
    context = TrainingContext(study.arms[0].config)
    context.load()
    if context.base_sha256 != spec.base_sha256:
        raise QueueError("the base model has changed since the study was started; start it again")
    packing = Packing(context, size=spec.pack, workers=spec.workers)
    patience = Patience(spec.patience_seconds, say=_tell, is_over=lambda: interruption.asked)
    queue = open_queue(study, spec.address, worker=spec.name, patience=patience)
    worker = Worker(
        study, queue, context, packing,
        runs_dir=spec.runs_dir, interruption=interruption, workers=spec.workers,
    )  # fmt: skip
    worker.work()


def _stop_with_the_driver(interruption: Interruption) -> None:
    """The end of the standard input: the driver asks to stop, or is no more. Read past Python's buffer and its lock."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    interruption.asked = True
