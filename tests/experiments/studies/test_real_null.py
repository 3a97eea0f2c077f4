"""Equal arms of real training runs: how often a study of them says better or worse."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from models import train
from project_paths import CONFIGS
from simulated_tuning import ALPHA, FIRST, LAST, PLACES, Scores, any_of, replicated, resampled, shared, verdicts

from experiments.config.loading import load
from experiments.config.schema import RunConfig
from experiments.training.context import TrainingContext
from experiments.training.evaluation import evaluate
from experiments.training.hyperparameters import shared_hyperparameters, trial_hyperparameters

SEEDS, PACK = 1000, 50
MULTIPLIERS = (0.25, 0.5, 1.0, 2.0, 4.0)
FAMILIES, ARMS = 2000, 19
CONFIG = load(
    CONFIGS / "planted.yaml",
    rank=2,
    overrides=[
        "task.matrices=[{d_out: 16, d_in: 16, rank: 8}]", "task.noise=0.5", "task.evaluation_rows=64",
        "training.steps=60", "training.batch_size=16", "training.evaluate_every=0", "training.learning_rate=4e-2",
    ],
)  # fmt: skip


def trial_config(seed: int, multiplier: float) -> RunConfig:
    training = CONFIG.training.model_copy(update={"learning_rate": CONFIG.learning_rate * multiplier})
    return CONFIG.model_copy(update={"seed": seed, "training": training})


def losses(context: TrainingContext, configs: Sequence[RunConfig]) -> np.ndarray:
    """(trials, 2): the loss of each run of a pack on validation and on test, in the product's own training."""
    variant = context.attached(configs, [None] * len(configs))
    try:
        shared_by_all = shared_hyperparameters(configs[0])
        outcomes = train(variant, context.task, [*map(trial_hyperparameters, configs)], shared_by_all)
        assert all(outcome.failure is None for outcome in outcomes)
        found = [evaluate(variant, context.task, split, "float32") for split in ("validation", "test")]
        return np.array([[scores["loss"] for scores in of_split] for of_split in found]).T
    finally:
        variant.detach()


def pool_of(seeds: int) -> Scores:
    """(seeds, places): every point of the grid with every seed; nothing lies beyond the grid."""
    torch.manual_seed(0)
    context = TrainingContext(CONFIG)
    context.load()
    configs = [trial_config(seed, multiplier) for seed in range(seeds) for multiplier in MULTIPLIERS]
    found = np.concatenate([losses(context, configs[n : n + PACK]) for n in range(0, len(configs), PACK)])
    validation, test = (np.full((seeds, len(PLACES)), np.inf) for _ in range(2))
    validation[:, FIRST : LAST + 1], test[:, FIRST : LAST + 1] = found.reshape(seeds, -1, 2).transpose(2, 0, 1)
    return Scores(validation, test)


def allowed() -> float:
    return ALPHA + 3 * float(np.sqrt(ALPHA * (1 - ALPHA) / FAMILIES))


@pytest.mark.slow
def test_equal_arms_of_real_runs_rarely_differ_unless_their_tuning_is_shared() -> None:
    pool = pool_of(SEEDS)
    assert pool.validation[:, FIRST : LAST + 1].mean(0).argmin() in (1, 2, 3)  # the best rate is inside the grid
    generator = np.random.default_rng(0)
    rates = {}
    for seeds in (5, 8, 20):
        families = resampled(pool, generator, families=FAMILIES, arms=ARMS, seeds=seeds)
        rates[seeds] = any_of(verdicts(*replicated(families), 1e-9), "better", "worse")
        once = resampled(pool, generator, families=FAMILIES, arms=ARMS, seeds=seeds + 2)
        rates[f"shared {seeds}"] = any_of(verdicts(*shared(once, 2), 1e-9), "better", "worse")
    assert max(rates[seeds] for seeds in (5, 8, 20)) <= allowed(), rates
    assert rates["shared 8"] > 0.08, rates
