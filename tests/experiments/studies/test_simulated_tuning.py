"""The simulated tuning, by which verdicts are calibrated, against the code that plans and concludes real studies."""

from pathlib import Path

import numpy as np
import pytest
from simulated_tuning import (
    CENTRE,
    HIGHEST,
    LOWEST,
    STEPS,
    WITHOUT,
    Runs,
    choice,
    replicated,
    shared,
    verdicts,
)
from synthetic_studies import study_of, study_state_of

from analysis.study_results.results import results_table
from analysis.study_results.verdicts import evaluations, families
from experiments.studies.protocol.trials import TUNED, PlannedTrial
from experiments.studies.spec.study import Study

MARGIN = 1.7
ARMS, SEEDS = 6, 6


@pytest.mark.parametrize("is_shared", [False, True], ids=["replicated", "shared"])
def test_the_arrays_come_to_the_verdicts_of_real_studies(tmp_path: Path, is_shared: bool) -> None:
    study = small_study(tmp_path, is_shared=is_shared)
    generator, found, seen = np.random.default_rng(0), set[str](), set[str]()
    for number in range(20):
        fresh, tuning = (mishaps(generator, number, seeds=seeds) for seeds in (SEEDS, 2))
        scored = shared(tuning, fresh) if is_shared else replicated(fresh)
        expected = verdicts(scored, MARGIN)[0].tolist()
        scores, words = concluded(study, tmp_path, fresh, tuning)
        np.testing.assert_array_equal(scores, scored.scores[0])
        assert words == expected, number
        found |= set(expected)
        seen |= what_happened(averaged(tuning) if is_shared else fresh)
    assert found == {"better", "worse", "equivalent", "undecided", WITHOUT}
    assert seen == {"extended down", "extended up", "chose an end", "no point", "failed above", "tie", "no effect"}


def small_study(folder: Path, *, is_shared: bool) -> Study:
    """Lower scores are better."""
    tuning = {"shared": True, "learning_rate_multipliers": [0.25, 0.5, 1, 2, 4], "seeds": [100, 101]}
    protocol = {"tuning": tuning if is_shared else {}, "evaluation": {"seeds": list(range(SEEDS))}, "margin": MARGIN}
    arms = [{"variant": "lora", "rank": list(range(1, ARMS + 1))}]
    return study_of(folder, arms=arms, protocol=protocol | {"reference": {"rank": 1}})


def mishaps(generator: np.random.Generator, number: int, *, seeds: int) -> Runs:
    """Runs of a family that is not like others: by its number, optima off the grid, ties, failures of every kind."""
    shape = (1, ARMS, seeds, len(STEPS))
    distance = STEPS - generator.uniform(-4, 4, (1, ARMS, 1, 1)) / (1 + number % 3)
    if number % 4 == 0:
        distance[:, 1:] = STEPS - 3.6  # a seed in two chooses the end of its extended grid
    effect = generator.choice([-9.0, 0.0, 0.0, 3.0], (1, ARMS, 1, 1))
    run = 0.1 * (1 + number % 7) * generator.standard_normal(shape) + 0.5 * distance**2 + effect
    validation, loss, test = run + 0.3 * generator.standard_normal((3, *shape))
    if number % 4 == 1:
        validation, loss = np.round(validation), np.round(loss)
    if number % 4 == 2:
        test[generator.random(shape) < 0.03] = np.nan
        test[:, generator.integers(ARMS), :, generator.integers(CENTRE, HIGHEST + 1) :] = np.nan
    if number % 4 == 3:
        test[:, -1, generator.integers(seeds)] = np.nan
        validation[:, 1], loss[:, 1] = 5.0, 6.0
    failed = np.isnan(test)
    return Runs(np.where(failed, np.nan, validation), np.where(failed, np.nan, loss), test)


def concluded(study: Study, folder: Path, fresh: Runs, tuning: Runs) -> tuple[np.ndarray, list[str]]:
    """The (arms, seeds) scores and the words of a study whose runs come to these."""
    place = {arm.config_hash: number for number, arm in enumerate(study.arms)}

    def outcome(trial: PlannedTrial) -> dict[str, object]:
        assert trial.multiplier is not None
        runs, seed = (tuning, trial.seed - 100) if trial.seed >= 100 else (fresh, trial.seed)
        at = (0, place[trial.arm.config_hash], seed, CENTRE + round(np.log2(trial.multiplier)))
        if np.isnan(runs.validation[at]):
            return {"failure": "diverged"}
        ending = {"score": float(runs.validation[at]), "loss": float(runs.loss[at])}
        return ending | ({"test": float(runs.test[at])} if trial.stage == "evaluation" else {})

    state = study_state_of(study, outcome)
    evaluated = evaluations(study, state, results_table(study, state, folder / "runs"))
    scores = [[each.test.get(seed, np.nan) for seed in range(SEEDS)] for each in evaluated]
    return np.array(scores), [each.verdict or WITHOUT for each in families(study, state, evaluated)[TUNED]]


def averaged(runs: Runs) -> Runs:
    """Over the seeds, of which one is left."""
    return Runs(*(each.mean(axis=-2, keepdims=True) for each in (runs.validation, runs.loss, runs.test)))


def what_happened(runs: Runs) -> set[str]:
    """In the replications that these runs tune."""
    chosen, tuned = choice(runs.validation, runs.loss)
    grid = runs.validation[..., LOWEST : HIGHEST + 1]
    best = grid == np.where(np.isnan(grid), np.inf, grid).min(axis=-1, keepdims=True)
    signs = {
        "extended down": chosen < LOWEST,
        "extended up": chosen > HIGHEST,
        "chose an end": ~tuned & (chosen >= 0),
        "no point": chosen < 0,
        "failed above": np.isnan(grid[..., -1]) & tuned,
        "tie": best.sum(axis=-1) == 2,
        "no effect": np.ptp(grid, axis=-1) == 0,
    }
    return {name for name, where in signs.items() if where.any()}
