"""Allocations from the gradient at W0, against gradients that are computed here with formulas alone."""

from collections.abc import Mapping

import numpy as np
import pytest
from project_paths import CONFIGS

from experiments.config.loading import load
from experiments.config.schema import RunConfig
from experiments.studies.search.allocations import Prior
from experiments.studies.search.budget import Unit
from experiments.studies.search.search_space import LEAST_SENSITIVITY, SearchSpace
from experiments.studies.spec.search_config import SearchConfig
from experiments.tasks.planted import Planted
from experiments.training.context import TrainingContext

SEED, ROWS, BATCHES = 100, 16, 3
SHAPES = {"matrices.0": (24, 16), "matrices.1": (16, 40), "matrices.2": (16, 16)}  # (d_out, d_in)
PLANTED = [{"rank": 4, "decay": 1.0}, {"rank": 2, "size": 1.3}, {"rank": 8, "size": 0.3, "decay": 0.9}]


def config() -> RunConfig:
    matrices = [
        f"{{d_out: {d_out}, d_in: {d_in}, {', '.join(f'{key}: {value}' for key, value in of.items())}}}"
        for (d_out, d_in), of in zip(SHAPES.values(), PLANTED, strict=True)
    ]
    overrides = [f"task.matrices=[{', '.join(matrices)}]", f"batch_size={ROWS}", "rank=1", "targets=['matrices.*']"]
    return load(CONFIGS / "planted.yaml", variant="lora", overrides=overrides)


def space(unit: Unit, amount: int) -> SearchSpace:
    search = SearchConfig.model_validate(
        {"budget": {unit: amount}, "gradient_batches": BATCHES, "blocks": 1, "highest_rank": 16}
    )
    own = config()
    context = TrainingContext(own)
    context.load()
    return SearchSpace(search, context, own, seed=SEED)


def gradients() -> dict[str, np.ndarray]:
    """Of the mean of ‖W0 x - y‖² over the rows of each batch, and over the batches: 2 (W0 x - y) xᵀ / rows."""
    task = Planted(config().task)
    model, batches = task.base_model(), task.training_batches(SEED, ROWS)
    total = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for _ in range(BATCHES):
        batch = {key: rows.double().numpy() for key, rows in next(batches).items()}
        x_from = y_from = 0
        for name, (d_out, d_in) in SHAPES.items():
            W0 = model.get_parameter(f"{name}.weight").detach().double().numpy()
            x, y = batch["x"][:, x_from : x_from + d_in], batch["y"][:, y_from : y_from + d_out]
            total[name] += 2 * (x @ W0.T - y).T @ x / ROWS / BATCHES
            x_from, y_from = x_from + d_in, y_from + d_out
    return total


def test_the_spectra_are_those_of_the_mean_gradient() -> None:
    found = space("total_rank", 12).spectra
    assert found.keys() == SHAPES.keys()
    for name, gradient in gradients().items():
        np.testing.assert_allclose(found[name], np.linalg.svd(gradient, compute_uv=False), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
def test_the_prior_divides_the_budget_by_powers_of_the_frobenius_norms_of_the_gradients(power: float) -> None:
    own = space("total_rank", 21)
    norms = {name: float(np.linalg.norm(gradient)) for name, gradient in gradients().items()}
    point = {"power": power} | {name: 0.0 for name in own.allocation("prior").space() if name != "power"}
    ranks = own.allocation("prior").ranks(point)
    assert ranks == own.budget.divided(weights(norms, power))
    sums = {name: float(np.linalg.svd(of, compute_uv=False).sum() ** 0.5) for name, of in gradients().items()}
    assert ranks != own.budget.divided(weights(sums, power))  # sums of values that nobody squared divide otherwise


def weights(norms: Mapping[str, float], power: float) -> dict[str, float]:
    return {name: (norm / max(norms.values())) ** power for name, norm in norms.items()}


def test_ranks_are_sensitivities_in_units_of_the_largest_and_a_layer_without_any_can_come_in() -> None:
    own = space("total_rank", 12)
    for ranks, expected in (((0, 8, 2), (LEAST_SENSITIVITY, 1.0, 0.25)), ((0, 0, 0), (LEAST_SENSITIVITY,) * 3)):
        prior = own.allocation("prior", dict(zip(SHAPES, ranks, strict=True)))
        assert isinstance(prior, Prior)
        assert prior.sensitivities == dict(zip(SHAPES, expected, strict=True))


def test_the_gradient_allocation_takes_the_directions_of_most_energy_per_parameter() -> None:
    amount = 150
    own = space("parameters", amount)
    costs = {name: sum(shape) for name, shape in SHAPES.items()}
    values = {name: np.linalg.svd(gradient, compute_uv=False) for name, gradient in gradients().items()}

    def chosen(exponent: float) -> dict[str, int]:
        """One by one, by brute force."""
        ranks, left = dict.fromkeys(SHAPES, 0), amount
        while fitting := [n for n in SHAPES if costs[n] <= left and ranks[n] < min(16, len(values[n]))]:
            best = max(fitting, key=lambda name: values[name][ranks[name]] ** exponent / costs[name])
            ranks[best] += 1
            left -= costs[best]
        return ranks

    assert own.allocation("gradient").ranks({}) == chosen(2.0)
    assert chosen(2.0) != chosen(1.0)
