"""What every test shares: one torch thread, no network, no account."""

import os

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
for variable in ("WANDB_API_KEY", "WANDB_MODE"):
    os.environ.pop(variable, None)


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread() -> None:
    import torch

    torch.set_num_threads(1)
