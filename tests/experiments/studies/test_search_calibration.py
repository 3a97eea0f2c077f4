"""Searches among allocations that are all equal: how often a verdict says that one is better."""

from pathlib import Path

import numpy as np
import pytest
from synthetic_studies import Ending, study_of, study_state_of

from analysis.study_results.results import results_table
from analysis.study_results.verdicts import evaluations, families
from experiments.studies.protocol.trials import PlannedTrial

STUDIES, MOST_WRONG = 200, 16


@pytest.mark.slow
def test_with_all_allocations_equal_a_search_rarely_says_better_or_worse(tmp_path: Path) -> None:
    """The best of a search is chosen by its luck, which the evaluation on fresh seeds does not have."""
    study = study_of(
        tmp_path,
        search={"budget": {"total_rank": 96}, "trials": 12, "batch": 6, "contenders": 4},
        arms=[{"allocation": ["uniform", "grouped", "priority", "gradient", "random"]}],
        protocol={
            "reference": {"allocation": "uniform"},
            "tuning": {"seeds": [100, 101]},
            "evaluation": {"seeds": list(range(8))},
        },
    )
    wrong, promised = 0, []
    for number in range(STUDIES):

        def equal(trial: PlannedTrial, number: int = number) -> Ending:
            """A seed's luck, which all arms share, and a run's own."""
            shared = np.random.default_rng([number, trial.seed]).normal()
            own = np.random.default_rng([number, *trial.key.encode()]).normal(size=2)
            return {"score": float(shared + own[0]), "loss": 0.0, "test": float(shared + own[1])}

        study_state = study_state_of(study, equal)
        table = results_table(study, study_state, tmp_path)
        judged = families(study, study_state, evaluations(study, study_state, table))["tuned"]
        assert len(judged) == 4
        assert not any(each.excluded for each in judged)
        wrong += any(each.verdict in ("better", "worse") for each in judged)
        searched = table[table["stage"] == "search"]["score"]
        promised.append(searched.min() - searched.mean())
    assert np.mean(promised) < -1  # every search found a point that looks better than it is
    assert wrong <= MOST_WRONG
