"""What every test shares: one torch thread, no network, no account, workers that start at once."""

import os
from collections.abc import Iterator
from unittest.mock import patch

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
for variable in ("WANDB_API_KEY", "WANDB_DISABLED", "WANDB_MODE"):
    os.environ.pop(variable, None)


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def workers_do_not_import_torch_again() -> Iterator[None]:
    """Of studies that a test starts in its own process; a study that is started as a command has workers of its own."""
    from forked_python import forked_worker

    from experiments.studies.workers import pool, prestarted

    with patch.object(prestarted, "new_worker", forked_worker), patch.object(pool, "new_worker", forked_worker):
        yield
