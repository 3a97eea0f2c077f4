"""The planted task: training finds what Eckart and Young say is there."""

import pytest
import torch
from models import train
from project_paths import CONFIGS

from experiments.config.loading import load
from experiments.training.context import attached, load_task
from experiments.training.evaluation import evaluate
from experiments.training.hyperparameters import shared_hyperparameters, trial_hyperparameters
from lora_variants.interface.layer import Factors

CONFIG = CONFIGS / "planted.yaml"


def trained(*overrides: str, variant: str = "lora") -> tuple[dict[str, float], float]:
    """Diagnostics and validation loss of a run as shipped."""
    config = load(CONFIG, variant=variant, overrides=overrides)
    task = load_task(config)
    attachment = attached(config, task, task.base_model())
    train(attachment, task, [trial_hyperparameters(config)], shared_hyperparameters(config))
    loss = evaluate(attachment, task, "validation", config.training.precision)[0]["squared_error"]
    return task.diagnostics(attachment, 0), loss


@pytest.mark.parametrize("rank", [1, 2, 4, 8])
def test_lora_comes_within_a_percent_of_the_best_update_of_its_rank(rank: int) -> None:
    found, loss = trained(f"rank={rank}", "steps=400")
    assert found["eckart_young_optimum"] == pytest.approx(sum(2.0**-i for i in range(rank + 1, 9)))
    excess = found["update_distance"] - found["eckart_young_optimum"]
    assert -1e-9 < excess <= 0.01 * found["update_size"]
    assert loss == pytest.approx(found["update_distance"], abs=0.03)  # 8192 rows


def test_a_rank_that_the_layers_share_unequally_has_the_optimum_of_its_own_ranks() -> None:
    matrices = "task.matrices=[{rank: 0}, {rank: 2}, {rank: 8}]"
    found, _ = trained(matrices, 'rank={"matrices.1": 2, "matrices.2": 4}', "steps=400")
    assert found["eckart_young_optimum"] == pytest.approx(sum(2.0**-i for i in range(5, 9)))
    assert found["update_distance"] - found["eckart_young_optimum"] <= 0.01 * found["update_size"]


def test_full_training_finds_the_planted_update_itself() -> None:
    found, loss = trained("steps=400", variant="full")
    assert found["update_distance"] <= 0.01 * found["update_size"]
    assert found["eckart_young_optimum"] == 0
    assert loss < 0.01


def test_a_hidden_layer_claims_no_closed_form() -> None:
    found, _ = trained("task.hidden=true", "steps=2")
    assert set(found) == {"update_distance", "update_size"}


def test_the_planted_updates_have_the_ranks_and_spectra_asked_for() -> None:
    config = load(CONFIG, overrides=["task.matrices=[{rank: 3, d_out: 24, d_in: 16, size: 2.0, decay: 0.5}]"])
    task = load_task(config)
    (update,) = task.updates  # type: ignore[attr-defined]
    assert update.shape == (24, 16)
    torch.testing.assert_close(torch.linalg.svdvals(update)[:4], torch.tensor([1.0, 0.5, 0.25, 0.0]).double())


def test_the_loss_is_the_squared_distance_of_the_update() -> None:
    config = load(CONFIG, overrides=["task.matrices=[{rank: 2, d_out: 8, d_in: 8}]", "rank=2"])
    task = load_task(config)
    variant = attached(config, task, task.base_model())
    untouched = evaluate(variant, task, "validation", config.training.precision)[0]["squared_error"]
    assert untouched == pytest.approx(task.diagnostics(variant, 0)["update_size"], rel=0.05)
    (layer,) = variant.layers.values()
    left, sigma, right = torch.linalg.svd(task.updates[0].float())  # type: ignore[attr-defined]
    layer.B.detach()[0, :, :2] = left[:, :2] * sigma[:2]  # type: ignore[union-attr]
    layer.A.detach()[0, :2] = right[:2] / float(layer.scale[0])  # type: ignore[union-attr, arg-type]
    assert isinstance(variant.deltas(0)["matrices.0"], Factors)
    assert evaluate(variant, task, "validation", config.training.precision)[0]["squared_error"] < 1e-9


def test_validation_and_test_are_different_rows() -> None:
    task = load_task(load(CONFIG))
    validation, test = (next(task.evaluation_batches(split))["x"] for split in ("validation", "test"))
    assert not torch.equal(validation, test)
    assert torch.equal(validation, next(task.evaluation_batches("validation"))["x"])


def test_slices_of_a_matrix_count_as_the_matrix_and_claim_no_optimum() -> None:
    found, loss = trained("targets=['matrices.0[1/2]', 'matrices.0[2/2]']", "rank=4", "steps=200")
    assert found["update_distance"] == pytest.approx(loss, rel=0.1)
    assert "eckart_young_optimum" not in found
