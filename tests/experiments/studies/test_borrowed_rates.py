"""Arms that train at what another arm chose: nulls on false labels, which have no best rate of their own."""

import io
from pathlib import Path
from typing import Any

import pytest
from in_process_study import TREE, outcome, study_in, worker_on
from rich.console import Console

from analysis.study_results.conclusion import conclusion_of
from experiments.config.errors import ConfigError
from experiments.record.run_dir import RunDirectory
from experiments.studies.plan import plan_study
from experiments.studies.protocol.looks import StudyProgress
from experiments.studies.protocol.progress import snapshot
from experiments.studies.protocol.protocol import plan_ahead
from experiments.studies.protocol.trials import TUNED, TrialResult
from experiments.studies.queue.storage import storage_address
from experiments.studies.spec.study import Study
from experiments.studies.terminal import StudyView
from experiments.studies.workers.worker_process import PlainStudy
from experiments.terminal import Display

NULL = {"variant": "full", "training.labels": "shuffled", "label": "false labels", "rate_of": {"variant": "full"}}
ARMS: list[dict[str, Any]] = [{"variant": "full"}, {"variant": "lora", "rank": 1}, NULL]
PROTOCOL: dict[str, Any] = TREE["protocol"] | {
    "tuning": {"grid": {"learning_rate_multipliers": [0.5, 1, 2]}}, "reference": {"variant": "full"},
}  # fmt: skip


def study(folder: Path, arms: list[dict[str, Any]] = ARMS, **protocol: Any) -> Study:
    return study_in(folder, arms=arms, protocol=PROTOCOL | protocol)


def errors(folder: Path, null: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as error:
        study(folder, [*ARMS[:2], NULL | null])
    return "\n".join(error.value.errors)


def test_it_waits_for_the_choices_of_the_other_and_takes_each_seeds_own(tmp_path: Path) -> None:
    asked = study(tmp_path)
    best = {0: 0.5, 1: 1, 2: 1}
    results: dict[str, TrialResult] = {}
    for _ in range(4):
        full, _, null = StudyProgress(asked, results, {}).arms
        assert (null.tuning.state == "open") == (full.tuning.state == "open")
        assert null.wanted == () or full.tuning.state != "open"
        for trial in (*full.wanted, *null.wanted):
            score = abs((trial.multiplier or 0) - best[trial.seed])
            results.setdefault(trial.key, TrialResult(failed=False, score=score, loss=score))
    taken = {trial.seed: trial.learning_rate for trial in null.evaluations(TUNED)}
    assert taken == {seed: full.arm.centre * multiplier for seed, multiplier in best.items()}
    assert all(trial.config.training.labels == "shuffled" and trial.run_of is None for trial in null.wanted)
    assert null.complete
    assert not null.tuning.trials


def test_its_choices_are_those_of_a_grid_of_more_knobs_too_in_the_units_of_its_own_variant(tmp_path: Path) -> None:
    null = NULL | {"variant": "rslora", "rank": 1, "rate_of": {"variant": "lora"}}
    grid = {"learning_rate_multipliers": [0.5, 1, 2], "alpha_per_rank": [2, 8]}
    asked = study(tmp_path, [*ARMS[:2], null], tuning={"grid": grid})
    results: dict[str, TrialResult] = {}
    for _ in range(4):
        _, lora, borrowing = StudyProgress(asked, results, {}).arms
        for trial in lora.wanted:
            alpha, off = trial.knobs["alpha_per_rank"], abs((trial.multiplier or 0) - 4)
            results.setdefault(trial.key, TrialResult(failed=False, score=off + abs(alpha - 8), loss=0.0))
    variants = [trial.config.variant.model_dump() for trial in borrowing.wanted]
    assert [(variant["alpha"], variant["alpha_per_rank"]) for variant in variants] == [(4 * 8, None)] * 3
    assert all(each.added for each in lora.tuning.replications)
    assert not any(each.added for each in borrowing.tuning.replications)  # which extended nothing itself


def test_fixed_rates_of_the_others_grid_are_trained_from_the_start(tmp_path: Path) -> None:
    centre = study(tmp_path).arms[2].centre
    asked = study(tmp_path, fixed_learning_rates=[centre])
    null = StudyProgress(asked, {}, {}).arms[2]
    assert [(trial.learning_rate, trial.run_of) for trial in null.wanted] == [(centre, None)] * 3


def test_it_is_no_reference_and_compared_with_nothing_unless_all_arms_train_alike(tmp_path: Path) -> None:
    found = study(tmp_path)
    assert [(arm.label, to.label) for arm, to in found.comparisons()] == [("lora r=1", "full")]
    assert not any("compared with nothing" in warning for warning in found.warnings)
    every = study_in(tmp_path / "every", arms=ARMS[:2], protocol=PROTOCOL, set={"training.labels": "shuffled"})
    assert len(every.comparisons()) == 1


def test_who_tunes_a_null_is_told_what_that_finds(tmp_path: Path) -> None:
    tuned = {key: value for key, value in NULL.items() if key != "rate_of"}
    assert any("least harm" in warning for warning in study(tmp_path, [*ARMS[:2], tuned]).warnings)
    assert not any("least harm" in warning for warning in study(tmp_path / "taken").warnings)


@pytest.mark.parametrize(
    ("rate_of", "told"),
    [
        ({"variant": "rslora"}, "selects no arm that is tuned; they are full, lora r=1"),
        ({}, "keys of the arm whose rates it takes"),
        ("full", "keys of the arm whose rates it takes"),
        ({"label": "false labels"}, "selects no arm that is tuned"),
    ],
)
def test_what_selects_no_single_arm_is_refused(tmp_path: Path, rate_of: object, told: str) -> None:
    assert told in errors(tmp_path, {"rate_of": rate_of})


def test_several_arms_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        study(
            tmp_path,
            [{"variant": "full"}, {"variant": "lora", "rank": [1, 2]}, NULL | {"rate_of": {"variant": "lora"}}],
        )
    assert "selects 2 arms (lora r=1, lora r=2): name one, by label" in "\n".join(error.value.errors)


def test_a_study_with_a_search_has_none(tmp_path: Path) -> None:
    search = {"budget": {"total_rank": 4}, "trials": 2, "batch": 1, "contenders": 1}
    arms = [
        {"variant": "lora", "allocation": "uniform"},
        {"variant": "lora", "allocation": "uniform"} | {"rate_of": {"variant": "lora"}},
    ]
    with pytest.raises(ConfigError) as error:
        study_in(tmp_path, arms=arms, search=search, protocol=PROTOCOL | {"tuning": {"seeds": [100]}})
    assert "a study with a search has none" in "\n".join(error.value.errors)


def test_a_worker_is_told_whose_rates_an_arm_takes(tmp_path: Path) -> None:
    asked = study(tmp_path)
    told = PlainStudy.of(asked).study()
    assert [arm.rate_of for arm in told.arms] == [None, None, asked.arms[0].config_hash]


def test_the_plan_counts_its_trials_and_says_whose_rates_they_take(tmp_path: Path) -> None:
    asked = study(tmp_path)
    assert len(plan_ahead(asked.arms[2], asked.protocol)) == 3
    output = io.StringIO()
    view = StudyView(Display(Console(file=output, width=200, highlight=False)))
    address = storage_address(None, runs_dir=tmp_path, study=asked.name, environment={})
    plan_study(asked, view, address, tmp_path, workers=1, pack=1, sd=None)
    (row,) = [
        line for line in output.getvalue().splitlines() if line.strip().startswith("false labels") and "of full" in line
    ]
    assert row.split()[-1] == "3"
    assert "21 trained trials" in output.getvalue()


def test_a_study_with_a_null_comes_to_the_same_in_any_pack(tmp_path: Path) -> None:
    workers = [worker_on(tmp_path / str(pack), pack=pack, arms=ARMS, protocol=PROTOCOL) for pack in (1, 4)]
    for worker in workers:
        worker.work()
    assert outcome(workers[0]) == outcome(workers[1])
    state = snapshot(workers[0].study, workers[0].queue)
    null = state.arms[2]
    folder = workers[0].runs_dir / "tiny" / str(state.entries[null.wanted[0].key].facts["folder"])
    result = RunDirectory(folder).result()
    assert RunDirectory(folder).config_tree()["training"]["labels"] == "shuffled"
    full = state.arms[0].evaluations(TUNED)[0]
    assert (full.seed, full.learning_rate) == (null.wanted[0].seed, null.wanted[0].learning_rate)
    assert result["score"] > 2 * float(state.entries[full.key].score or 0)
    concluded = conclusion_of(workers[0].study, state, workers[0].runs_dir)
    assert concluded.complete
    assert "false labels" in "\n".join(concluded.lines())
