"""What a study says of choices at an end of its grid: that a wider one might serve the arm better."""

import math
from pathlib import Path

import pytest
from synthetic_studies import Ending, study_of, study_state_of

from analysis.study_results.conclusion import conclusion_of
from experiments.studies.protocol.trials import PlannedTrial

GRID = {"learning_rate_multipliers": [0.5, 1, 2], "alpha_per_rank": [2, 8]}
ARMS = [{"variant": ["lora", "full"], "rank": 2}]


def told(folder: Path, best_alpha: float, best_rates: dict[int, float]) -> tuple[str, str]:
    def ended(trial: PlannedTrial) -> Ending:
        alpha = trial.config.variant.model_dump().get("alpha_per_rank") or best_alpha
        off = abs(math.log2((trial.multiplier or 1) / best_rates.get(trial.seed, 1))) + abs(alpha - best_alpha)
        return {"score": 3 + off, "loss": 3 + off, "test": 3 + off}

    protocol = {"tuning": {"grid": GRID}, "evaluation": {"seeds": list(range(5))}}
    study = study_of(folder, arms=ARMS, protocol=protocol)
    conclusion = conclusion_of(study, study_state_of(study, ended), folder)
    return "\n".join(conclusion.warnings), "\n".join(conclusion.lines())


@pytest.mark.parametrize(("alpha", "word"), [(8, "highest"), (2, "lowest")])
def test_a_knob_that_most_seeds_chose_at_an_end_is_told_and_one_that_the_arm_lacks_is_not(
    tmp_path: Path, alpha: float, word: str
) -> None:
    warnings, _ = told(tmp_path, alpha, {})
    assert f"lora r=2: 5 of 5 choices are the {word} alpha_per_rank of the grid, {alpha:g}" in warnings
    assert "full" not in warnings


def test_seeds_at_the_end_of_their_extended_grid_are_told_while_the_arm_is_tuned(tmp_path: Path) -> None:
    warnings, lines = told(tmp_path, 8, {0: 64, 1: 64})
    assert "lora r=2: 2 of 5 choices are a rate at the end of their extended grid" in warnings
    assert "seeds that chose beyond those points: lora r=2 2" in lines


def test_choices_inside_the_grid_say_nothing_of_rates(tmp_path: Path) -> None:
    warnings, lines = told(tmp_path, 8, {})
    assert "extended grid" not in warnings
    assert "chose beyond" not in lines
