"""A search of planted ranks, where the best allocation and every allocation's risk are known exactly."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from in_process_search import study_state_of, worker_on
from project_paths import CONFIGS

from experiments.record.run_dir import RunDirectory
from experiments.studies.protocol.trials import ArmProgress

RANKS, BUDGET, SEEDS = (0, 2, 8, 2), 12, 10
ENOUGH = 0.95  # of the gap from uniform ranks to the best
DECAY = 2**-0.5  # the task's own
TREE: dict[str, Any] = {
    "name": "planted_search",
    "config": str(CONFIGS / "planted.yaml"),
    "set": {
        "variant": "lora",
        "task.matrices": [{"rank": rank, "d_out": 16, "d_in": 16} for rank in RANKS], "task.evaluation_rows": 512,
        "training.batch_size": 64, "training.steps": 200, "training.evaluate_every": 0, "training.checkpoint_every": 0,
    },
    "search": {"budget": {"total_rank": BUDGET}, "trials": 100, "batch": 10, "contenders": 8, "highest_rank": 8},
    "protocol": {
        "tuning": {"seeds": [100, 101, 102]},
        "evaluation": {"seeds": [0, 1]},
        "reference": {"allocation": "uniform"},
        "margin": 0.001,
    },
}  # fmt: skip


def least_risk(ranks: Mapping[str, int]) -> float:
    """What is left of the planted updates at these ranks (Eckart and Young)."""
    tails = zip(ranks.values(), RANKS, strict=True)
    return sum(DECAY ** (2 * i) for rank, true in tails for i in range(rank + 1, true + 1))


@pytest.mark.acceptance
def test_a_search_closes_the_gap_from_uniform_to_the_optimum(tmp_path: Path) -> None:
    closed = shares_closed("tpe", tmp_path)
    assert sum(share >= ENOUGH for share in closed) >= 9, closed


@pytest.mark.acceptance
def test_random_search_with_as_many_trials_closes_less_in_the_median(tmp_path: Path) -> None:
    closed = shares_closed("random", tmp_path)
    assert median(closed) < ENOUGH, closed  # which the median of the others exceeds


def shares_closed(sampler: str, folder: Path) -> list[float]:
    """Of each search, how much of the risk that uniform ranks leave is gone with the ranks and knobs it has chosen."""
    searches = {"allocation": "priority", "sampler": sampler, "search_seed": list(range(SEEDS))}
    worker = worker_on(folder, pack=32, **TREE, arms=[{"allocation": "uniform"}, searches])
    worker.work()
    study_state = study_state_of(worker)
    uniform = least_risk(dict.fromkeys("abcd", BUDGET // 4))
    return [
        1 - _confirmed_risk(progress, study_state.entries, folder / "planted_search") / uniform
        for progress in study_state.arms
        if progress.arm.search["allocation"] == "priority"
    ]


def _confirmed_risk(progress: ArmProgress, entries: Mapping[str, Any], folder: Path) -> float:
    """The exact risk of what the search chose, trained on fresh seeds: their mean."""
    evaluations = progress.evaluations("tuned")
    risks = [
        RunDirectory(folder / str(entries[trial.key].facts["folder"])).result()["diagnostics"]["update_distance"]
        for trial in evaluations
    ]
    assert min(risks) >= least_risk(progress.tuning.replications[0].knobs["rank"]) - 1e-6
    return sum(risks) / len(risks)
