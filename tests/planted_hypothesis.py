"""Finished studies of planted updates, on which the low-rank hypothesis is known to be true or false."""

from pathlib import Path
from typing import Any

from in_process_study import worker_on

from analysis.study_results.conclusion import conclude
from experiments.studies.protocol.progress import snapshot

SIDE = 16
SEEDS = [0, 1, 2, 3, 4]


def finished_study(folder: Path, *, rank: int, name: str = "tiny", **changed: Any) -> Path:
    """The folder of a study over matrices of 16 x 16 with an update of this rank, all singular values alike.

    `changed`: keys of the study's file, `set` and `protocol` by key of theirs.
    """
    matrix = {"d_out": SIDE, "d_in": SIDE, "rank": rank, "decay": 1.0, "size": (2 / rank) ** 0.5}
    knobs = {
        "task.matrices": [matrix], "task.hidden": True, "task.noise": 0.1, "task.evaluation_rows": 512,
        "training.steps": 150, "training.batch_size": 128, "training.evaluate_every": 0,
        "training.checkpoint_every": 0, "wandb.mode": "disabled",
    }  # fmt: skip
    protocol: dict[str, Any] = {
        "tuning": {"grid": {"learning_rate_multipliers": [1, 4, 16]}},
        "evaluation": {"seeds": SEEDS},
        "reference": {"variant": "full"},
        "margin": 0.01,
    }
    tree = {
        "name": name,
        "set": knobs | changed.pop("set", {}),
        "arms": [{"variant": "full"}, {"variant": "lora", "rank": [1, 2, 4, SIDE]}],
        "protocol": protocol | changed.pop("protocol", {}),
        "hypothesis": {"rho0": 0.25},
    }
    worker = worker_on(folder, pack=8, **tree | changed)
    worker.work()
    conclude(worker.study, snapshot(worker.study, worker.queue), folder)
    return folder / name
