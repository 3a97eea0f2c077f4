"""A tiny study, and the worker that trains it in this process."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from project_paths import CONFIGS

from experiments.config.yaml_files import yaml_text
from experiments.record.run_dir import RunDirectory
from experiments.studies.protocol.progress import snapshot
from experiments.studies.queue.storage import storage_address
from experiments.studies.queue.trial_queue import TrialQueue
from experiments.studies.spec.study import Study, load_study
from experiments.studies.workers.packing import Packing
from experiments.studies.workers.worker import Worker
from experiments.training.context import TrainingContext
from experiments.training.interruption import Interrupted, Interruption
from experiments.training.loop import train_pack
from experiments.training.trial import TrialRun

TREE: dict[str, Any] = {
    "name": "tiny",
    "config": str(CONFIGS / "planted.yaml"),
    "set": {
        "task.matrices": [{"d_out": 24, "d_in": 16, "rank": 4}], "task.noise": 0.1, "task.evaluation_rows": 64,
        "training.batch_size": 8, "training.steps": 20, "training.evaluate_every": 0, "training.checkpoint_every": 6,
    },
    "arms": [{"variant": ["lora", "adalora"], "rank": [1, 2]}, {"variant": "full"}],
    "protocol": {
        "tuning": {"shared": True, "learning_rate_multipliers": [0.5, 1, 1e30], "seeds": [100]},
        "evaluation": {"seeds": [0, 1, 2]},
        "margin": 0.01,
    },
}  # fmt: skip


def study_in(folder: Path, **changed: Any) -> Study:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tiny.yaml").write_text(yaml_text(TREE | changed))
    return load_study(folder / "tiny.yaml")


def worker_on(folder: Path, *, pack: int, **changed: Any) -> Worker:
    study = study_in(folder, **changed)
    queue = TrialQueue.open(
        storage_address(None, runs_dir=folder, study=study.name, environment={}), study.name, direction="minimize"
    )
    context = TrainingContext(study.arms[0].config)
    context.load()
    packing = Packing(context, size=pack)
    return Worker(study, queue, context, packing, runs_dir=folder, interruption=Interruption())


def interrupt_every(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every worker of this process asked to stop after so many more steps of its packs, again and again."""
    done = 0

    def interrupted(context: TrainingContext, trial_runs: Sequence[TrialRun], **more: Any) -> list[TrialRun]:
        def count(trials: int) -> None:
            nonlocal done
            done += 1
            if done % steps == 0:
                more["interruption"].asked = True

        return train_pack(context, trial_runs, **more | {"on_step": count})

    monkeypatch.setattr("experiments.studies.workers.worker.train_pack", interrupted)


def starts_until_over(worker_of: Callable[[], Worker]) -> tuple[int, Worker]:
    """How many workers it took, each of which went on where the one before had been interrupted, and the last."""
    starts = 0
    while True:
        worker, starts = worker_of(), starts + 1
        try:
            worker.work()
        except Interrupted:
            continue
        return starts, worker


def outcome(worker: Worker) -> dict[str, tuple[Any, ...]]:
    """What the study knows of every trial, and the bytes of what it learned and predicted.

    A failed one keeps its checkpoint.
    """
    study_state = snapshot(worker.study, worker.queue)
    assert study_state.complete
    found = {}
    for key, entry in study_state.entries.items():
        folder = RunDirectory(worker.runs_dir / "tiny" / str(entry.facts["folder"]))
        paths = [*folder.path.glob("*.safetensors"), *folder.path.glob("predictions.parquet")]
        files = {path.name: path.read_bytes() for path in paths}
        files.pop("checkpoint.safetensors", None)  # its random state is the process's
        history = folder.history()
        found[key] = (entry.state, entry.score, entry.facts.get("test"), entry.facts.get("failure"), history, files)
    return found
