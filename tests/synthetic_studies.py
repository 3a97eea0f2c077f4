"""Studies for tests of what they conclude: states whose trials end as a test says, and a study that trains here."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from project_paths import CONFIGS

from experiments.config.yaml_files import yaml_text
from experiments.studies.protocol.looks import StudyProgress
from experiments.studies.protocol.progress import StudyState, snapshot
from experiments.studies.protocol.search_stage import Proposal, repeats_of, trial_key
from experiments.studies.protocol.trials import ArmProgress, PlannedTrial, Replication, TrialResult
from experiments.studies.queue.entries import Entry
from experiments.studies.queue.storage import storage_address
from experiments.studies.queue.trial_queue import TrialQueue
from experiments.studies.spec.arm import Arm
from experiments.studies.spec.study import Study, load_study
from experiments.studies.workers.packing import Packing
from experiments.studies.workers.worker import Worker
from experiments.training.context import TrainingContext
from experiments.training.interruption import Interruption

Ending = Mapping[str, Any]  # score, loss and test of a done trial; failure of one that failed; state of any other
Outcome = Callable[[PlannedTrial], Ending]


def study_of(folder: Path, *overrides: str, **changed: Any) -> Study:
    """A study of two variants and `full` on the bytes, with keys of its file replaced."""
    protocol = {
        "margin": 0.01,
        "tuning": {"shared": True, "learning_rate_multipliers": [0.5, 1, 2], "seeds": [100, 101]},
        "evaluation": {"seeds": list(range(6))},
    }
    protocol |= changed.pop("protocol", {})
    arms = [{"variant": ["lora", "rslora"], "rank": [2, 4]}, {"variant": "full"}]
    tree = {"name": "s", "config": str(CONFIGS / "bytes.yaml"), "arms": arms, "protocol": protocol}
    path = folder / "study.yaml"
    path.write_text(yaml_text(tree | changed))
    return load_study(path, overrides)


def trained(folder: Path, study: Study, *, pack: int) -> StudyState:
    """The state of a study that one worker has trained in this process; its records are below `folder`."""
    address = storage_address(None, runs_dir=folder, study=study.name, environment={})
    direction = "maximize" if study.higher_is_better else "minimize"
    queue = TrialQueue.open(address, study.name, direction=direction)
    context = TrainingContext(study.arms[0].config)
    context.load()
    packing = Packing(context, size=pack)
    Worker(study, queue, context, packing, runs_dir=folder, interruption=Interruption()).work()
    return snapshot(study, queue)


def planted_study(folder: Path) -> Study:
    """Two arms of one small matrix and six steps, of which one cannot be tuned: its rates are far too small."""
    return study_of(
        folder,
        "task.matrices=[{d_out: 16, d_in: 16, rank: 4}]", "task.evaluation_rows=64", "training.steps=6",
        "training.batch_size=16", "training.evaluate_every=3", "training.checkpoint_every=2", "wandb.mode=disabled",
        config=str(CONFIGS / "planted.yaml"),
        arms=[{"variant": "lora", "rank": [1, 2]}, {"variant": "full"}],
        protocol={
            "tuning": {"shared": True, "learning_rate_multipliers": [1, 4, 1e32], "seeds": [100]},
            "evaluation": {"seeds": [0, 1]},
        },
    )  # fmt: skip


def study_state_of(study: Study, outcome: Outcome, families: Mapping[str, int] | None = None) -> StudyState:
    """The state of a study when everything has come to what `outcome` says of each trial."""
    entries: dict[str, Entry] = {}
    results: dict[str, TrialResult] = {}
    proposals: dict[str, Proposal] = {}
    while True:
        found = StudyProgress(study, results, proposals, families or {})
        arms = found.arms
        suggested = {key: point for progress in arms for key, point in _points(study, progress).items()}
        if suggested:
            proposals |= suggested
            continue
        wanted = {trial.key: trial for arm in arms for trial in arm.wanted}
        new = [trial for key, trial in wanted.items() if key not in entries]
        if not new:
            return StudyState(arms, wanted, entries, found.comparisons)
        for trial in new:
            ending = dict(outcome(trial))
            entry = entries[trial.key] = _entry(len(entries), trial, ending)
            if entry.state == "failed":
                results[trial.key] = TrialResult(failed=True, reason=ending["failure"])
            elif entry.state == "done":
                results[trial.key] = TrialResult(
                    failed=False, score=entry.score, loss=ending.get("loss"), test=ending.get("test")
                )


def _points(study: Study, progress: ArmProgress) -> dict[str, Proposal]:
    """What a search asks for: points with other ranks for every number, over the matrices of the byte transformer."""
    if study.config.search is None:
        return {}
    found: dict[str, Proposal] = {}
    for repeat, asking in zip(
        repeats_of(study.config.search, study.protocol), progress.tuning.replications, strict=True
    ):
        found |= _asked_for(progress.arm, asking, repeat.seeds[0])
    return found


def _asked_for(arm: Arm, asking: Replication, seed: int) -> dict[str, Proposal]:
    of = arm.source if asking.asks_for == "allocation" and arm.source is not None else arm
    kinds = ("query", "key", "value", "output", "up", "down")
    names = [f"layers.{layer}.{kind}" for layer in range(4) for kind in kinds]
    found = {}
    for number in asking.asks:
        own = np.random.default_rng([number, int(of.config_hash, 16) % 2**32])
        ranks = dict(zip(names, own.integers(0, 9, len(names)).tolist(), strict=True))
        key = trial_key(of, asking.asks_for, number, seed)
        knobs = {"rank": ranks, "alpha_per_rank": float(own.uniform(0.5, 8)), "learning_rate_ratio": 1.0 + number}
        found[key] = Proposal(of.centre * float(own.uniform(0.25, 4)), knobs)
    return found


def _entry(number: int, trial: PlannedTrial, ending: dict[str, Any]) -> Entry:
    state = ending.pop("state", "failed" if "failure" in ending else "done")
    score = ending.pop("score", None)
    return Entry(number, trial.key, state, "worker", score, {}, {"folder": f"folder-{trial.key}", **ending}, {})


def valley(trial: PlannedTrial, *, best: float = 1.0) -> Ending:
    """Better scores near multiplier `best`, and the more rank the lower; a seed's luck is shared by all arms."""
    rank = trial.arm.keys.get("rank", 32)
    rank = rank if isinstance(rank, int) else 2
    luck = 0.004 * float(np.random.default_rng(trial.seed).standard_normal())
    own = 0.001 * float(np.random.default_rng([trial.seed, int(trial.arm.config_hash, 16) % 2**32]).standard_normal())
    multiplier = (trial.learning_rate or 0.0) / trial.arm.centre / best
    score = 3 - 0.05 * np.log2(rank) + 0.03 * np.log2(multiplier) ** 2 + luck + own
    if trial.arm.config.task.name == "digits":  # scored by accuracy: higher is better
        score, own = 1 - score / 10, -own
    ending = {"score": float(score), "loss": float(score)}
    return ending | ({"test": float(score) + 0.1 + own} if trial.stage == "evaluation" else {})
