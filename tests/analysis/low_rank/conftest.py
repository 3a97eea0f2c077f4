"""One small study with an arm on false labels, for all tests of this folder."""

from pathlib import Path

import pytest
from planted_hypothesis import finished_study

NULL = {"variant": "full", "training.labels": "shuffled", "rate_of": {"label": "full"}, "label": "null"}


@pytest.fixture(scope="session")
def with_null(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study of six seeds over updates of true rank 2 of 16, alone below its runs folder."""
    return finished_study(
        tmp_path_factory.mktemp("runs"),
        rank=2,
        name="seeds",
        set={"task.evaluation_rows": 128},
        arms=[{"variant": "full", "label": "full"}, {"variant": "lora", "rank": 2}, NULL],
        hypothesis={"rho0": 0.25, "full": {"label": "full"}, "false_labels": {"label": "null"}},
        protocol={"evaluation": {"seeds": [0, 1, 2, 3, 4, 5]}, "reference": {"label": "full"}},
    )
