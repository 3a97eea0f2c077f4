"""A search of planted ranks, where the best allocation and every allocation's risk are known exactly."""

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from test_search_study import board_of, worker_on
from tiny_studies import ROOT

from experiments.configuration import yaml_text
from experiments.record.folder import RunFolder
from experiments.studies.design.planned import ArmProgress

RANKS, BUDGET, SEEDS = (0, 2, 8, 2), 12, 10
DECAY = 2**-0.5  # the task's own
TREE: dict[str, Any] = {
    "name": "planted_search",
    "config": str(ROOT / "configs" / "planted.yaml"),
    "set": {
        "variant": "lora",
        "task.matrices": [{"rank": rank, "d_out": 16, "d_in": 16} for rank in RANKS], "task.evaluation_rows": 512,
        "training.rows": 64, "training.steps": 200, "training.evaluate_every": 0, "training.checkpoint_every": 0,
    },
    "search": {"budget": {"total_rank": BUDGET}, "trials": 100, "batch": 10, "contenders": 8, "highest_rank": 8},
    "arms": [
        {"allocation": "uniform"},
        {"allocation": "priority", "sampler": ["tpe", "random"], "search_seed": list(range(SEEDS))},
    ],
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


@pytest.mark.slow
def test_a_search_closes_the_gap_from_uniform_to_the_optimum_and_beats_random_search(tmp_path: Path) -> None:
    worker = worker_on(tmp_path, pack=32, **TREE)
    worker.work()
    board = board_of(worker)
    uniform = least_risk(dict.fromkeys("abcd", BUDGET // 4))
    closed: dict[str, list[float]] = {"tpe": [], "random": []}
    for progress in board.arms:
        if progress.arm.search["allocation"] == "priority":
            risk = _confirmed_risk(progress, board.entries, tmp_path / "planted_search")
            closed[progress.arm.search["sampler"]].append(1 - risk / uniform)
    said = yaml_text({name: sorted(round(value, 3) for value in values) for name, values in closed.items()})
    print(said)
    assert sum(value >= 0.95 for value in closed["tpe"]) >= 9, said
    assert median(closed["tpe"]) > median(closed["random"]), said


def _confirmed_risk(progress: ArmProgress, entries: Mapping[str, Any], folder: Path) -> float:
    """The exact risk of what the search chose, trained on fresh seeds: their mean."""
    evaluations = progress.evaluations("tuned")
    risks = [
        RunFolder(folder / str(entries[trial.key].facts["folder"])).result()["diagnostics"]["update_distance"]
        for trial in evaluations
    ]
    assert min(risks) >= least_risk(progress.tuning.knobs["rank"]) - 1e-6
    return sum(risks) / len(risks)
