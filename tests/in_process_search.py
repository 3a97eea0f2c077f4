"""A tiny search, and the worker that trains it in this process."""

from pathlib import Path
from typing import Any

from project_paths import CONFIGS

from experiments.config.yaml_files import yaml_text
from experiments.studies.protocol.progress import StudyState, snapshot
from experiments.studies.queue.storage import storage_address
from experiments.studies.queue.trial_queue import TrialQueue
from experiments.studies.spec.study import Study, load_study
from experiments.studies.workers.packing import Packing
from experiments.studies.workers.worker import Worker
from experiments.training.context import TrainingContext
from experiments.training.interruption import Interruption

RANKS = (0, 1, 4, 1)  # of the planted updates
BUDGET = 6
TREE: dict[str, Any] = {
    "name": "tiny_search",
    "config": str(CONFIGS / "planted.yaml"),
    "set": {
        "variant": "lora",
        "task.matrices": [{"rank": rank, "d_out": 16, "d_in": 16} for rank in RANKS], "task.evaluation_rows": 32,
        "training.batch_size": 8, "training.steps": 12, "training.evaluate_every": 0, "training.checkpoint_every": 4,
    },
    "search": {"budget": {"total_rank": BUDGET}, "trials": 10, "batch": 4, "contenders": 3, "highest_rank": 8},
    "arms": [
        {"allocation": ["uniform", "gradient", "adalora", "random", "prior"]},
        {"allocation": "priority", "sampler": ["tpe", "cmaes"]},
        {"allocation": "grouped", "sampler": "tpe"},
    ],
    "protocol": {
        "tuning": {"learning_rate_multipliers": [0.5, 1, 2], "seeds": [100, 101]},
        "evaluation": {"seeds": [0, 1, 2, 3, 4]},
        "reference": {"allocation": "uniform"},
        "margin": 0.01,
    },
}  # fmt: skip


def study_in(folder: Path, **changed: Any) -> Study:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "search.yaml").write_text(yaml_text({**TREE, **changed}))
    return load_study(folder / "search.yaml")


def worker_on(folder: Path, *, pack: int, interruption: Interruption | None = None, **changed: Any) -> Worker:
    study = study_in(folder, **changed)
    queue = TrialQueue.open(
        storage_address(None, runs_dir=folder, study=study.name, environment={}), study.name, direction="minimize"
    )
    context = TrainingContext(study.arms[0].config)
    context.load()
    packing = Packing(context, size=pack)
    return Worker(study, queue, context, packing, runs_dir=folder, interruption=interruption or Interruption())


def study_state_of(worker: Worker) -> StudyState:
    return snapshot(worker.study, worker.queue)


def outcome(worker: Worker) -> dict[str, tuple[Any, ...]]:
    """What the study knows of every trial, and the adapter's bytes."""
    found = {}
    for key, entry in study_state_of(worker).entries.items():
        folder = worker.runs_dir / worker.study.name / str(entry.facts["folder"])
        files = {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}
        given = {name: entry.given.get(name) for name in ("knobs", "point", "refused")}
        found[key] = (entry.state, entry.score, entry.facts.get("test"), given, files)
    return found


class Impatient(Interruption):
    """It asks to stop after so many questions."""

    def __init__(self, patience: int) -> None:
        self.patience = patience

    @property
    def asked(self) -> bool:
        self.patience -= 1
        return self.patience < 0

    @asked.setter
    def asked(self, value: bool) -> None:
        pass


HALVED: dict[str, Any] = {
    "search": TREE["search"] | {"halving": {"rungs": [0.25, 0.5], "keep": 0.5}},
    "arms": [{"allocation": ["uniform", "priority", "random"]}],
}
HALVED_LONGER: dict[str, Any] = HALVED | {
    "set": TREE["set"] | {"training.steps": 120, "training.checkpoint_every": 20},
    "arms": [{"allocation": ["uniform", "priority"]}],
}
