"""A search from file to verdicts: equal trials, one budget, the same proposals whatever packs and stops it met."""

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from in_process_search import BUDGET, TREE, Impatient, outcome, study_in, study_state_of, worker_on
from project_paths import CONFIGS
from tiny_studies import start

from analysis.study_results.conclusion import Conclusion, conclude
from experiments.config.errors import ConfigError
from experiments.config.loading import load
from experiments.config.yaml_files import parse_yaml, yaml_text
from experiments.record.run_dir import RunDirectory
from experiments.studies.protocol.estimand import unit, units_of
from experiments.studies.protocol.progress import enqueue
from experiments.studies.protocol.protocol import plan_ahead, progress_of
from experiments.studies.protocol.search_stage import Proposal, trial_key
from experiments.studies.protocol.trials import TrialResult
from experiments.studies.search.proposer import APART, refuse_impossible_searches
from experiments.studies.spec.study import load_study
from experiments.studies.workers.worker import Worker
from experiments.training.context import TrainingContext
from experiments.training.interruption import Interrupted


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Worker:
    worker = worker_on(tmp_path_factory.mktemp("search"), pack=8)
    worker.work()
    return worker


@pytest.fixture(scope="module")
def concluded(finished: Worker) -> Conclusion:
    return conclude(finished.study, study_state_of(finished), finished.runs_dir)


def test_every_arm_has_the_trials_that_were_planned_for_it(finished: Worker) -> None:
    study_state = study_state_of(finished)
    assert study_state.complete
    for progress in study_state.arms:
        planned = plan_ahead(progress.arm, finished.study.protocol, finished.study.config.search)
        assert Counter(trial.stage for trial in progress.wanted) == Counter(trial.stage for trial in planned)
        assert progress.tuning.state == "tuned"
    searched = {Counter(t.stage for t in arm.wanted)["search"] for arm in study_state.arms}
    assert searched == {10}  # baselines as well as searched allocations


def test_no_trained_trial_exceeds_the_budget(finished: Worker) -> None:
    study_state = study_state_of(finished)
    for key, trial in study_state.wanted.items():
        assert sum(trial.knobs["rank"].values()) <= BUDGET
        result = RunDirectory(
            finished.runs_dir / "tiny_search" / str(study_state.entries[key].facts["folder"])
        ).result()
        assert result["ranks_total"] <= BUDGET
        if trial.stage != "allocation":  # AdaLoRA starts above the budget that it ends at
            assert result["trainable_parameters"] <= 32 * BUDGET


def test_an_ask_beyond_the_budget_was_told_infeasible_and_never_trained(finished: Worker) -> None:
    grouped = next(arm for arm in study_state_of(finished).arms if arm.arm.label == "grouped")
    entries = study_state_of(finished).entries
    refused = [point for trial in grouped.tuning.trials if trial.stage == "search"
               for point in entries[trial.key].given["refused"]]  # fmt: skip
    assert refused
    trained = [entries[trial.key].given.get("point") for trial in grouped.tuning.trials]
    assert not [point for point in refused if point in trained]


def test_packs_give_what_trials_give_alone(finished: Worker, tmp_path: Path) -> None:
    worker = worker_on(tmp_path, pack=1, arms=[{"allocation": ["uniform", "adalora"]}, TREE["arms"][-1]])
    worker.work()
    alone, packed = outcome(worker), outcome(finished)
    assert len(alone) > 50
    assert alone == {key: packed[key] for key in alone}


def test_a_search_that_is_stopped_again_and_again_makes_the_same_suggestions(finished: Worker, tmp_path: Path) -> None:
    stops = 0
    while True:
        worker = worker_on(tmp_path, pack=8, interruption=Impatient(30 + 7 * stops))
        try:
            worker.work()
            break
        except Interrupted:
            stops += 1
    assert stops >= 5
    assert outcome(worker) == outcome(finished)


def test_adaloras_ranks_are_frozen_and_trained_again(finished: Worker) -> None:
    study_state = study_state_of(finished)
    arm = next(arm for arm in study_state.arms if arm.arm.label == "adalora")
    sources = [trial for trial in arm.tuning.trials if trial.stage == "allocation"]
    assert {trial.config.variant.name for trial in sources} == {"adalora"}
    best = min(sources, key=lambda trial: study_state.entries[trial.key].score or 9.0)
    ranks = study_state.entries[best.key].facts["ranks"]
    retrained = [trial for trial in arm.wanted if trial.stage != "allocation"]
    assert {trial.config.variant.name for trial in retrained} == {"lora"}
    assert all({**ranks, **trial.knobs["rank"]} == ranks | trial.knobs["rank"] for trial in retrained)
    assert {tuple(trial.knobs["rank"].values()) for trial in retrained} == {
        tuple(ranks.get(name, 0) for name in retrained[0].knobs["rank"])
    }


def test_the_gradient_gives_the_planted_ranks(finished: Worker) -> None:
    """At W0 the gradient of a linear matrix is -2 D up to the noise of a batch: its largest directions are D's."""
    arm = next(arm for arm in study_state_of(finished).arms if arm.arm.label == "gradient")
    ranks = next(trial for trial in arm.wanted if trial.stage == "search").knobs["rank"]
    assert ranks["matrices.0"] == 0
    assert ranks["matrices.2"] == max(ranks.values())


def test_the_conclusion_says_what_the_search_promised_and_what_was_confirmed(concluded: Conclusion) -> None:
    searches = {of["arm"]: of for of in concluded.summary["searches"]}
    assert set(searches) == {arm["arm"] for arm in concluded.summary["tuning"]["arms"]}
    for of in searches.values():
        assert of["optimism"] == pytest.approx(of["confirmed_score"] - of["search_score"])
        assert sum(of["knobs"]["rank"].values()) <= BUDGET
    table = next(table for table in concluded.tables if table.title.startswith("searches"))
    assert [row[0] for row in table.rows] == list(searches)
    verdicts = concluded.summary["comparisons"]["families"]["tuned"]["comparisons"]
    assert {of["reference"] for of in verdicts} == {"uniform"}
    assert all(of["verdict"] in ("better", "worse", "equivalent", "undecided") for of in verdicts)


def test_figures_and_table_are_written(finished: Worker, concluded: Conclusion) -> None:
    folder = finished.runs_dir / "tiny_search"
    names = {path.name for path in concluded.files}
    for figure in ("rank_map", "score_by_parameters", "comparisons", "score_by_arm", "rank_importance"):
        assert {f"{figure}.{kind}" for kind in ("csv", "pdf", "png")} <= names
    written = pd.read_parquet(folder / "study.parquet")
    assert len(written) == len(study_state_of(finished).wanted)
    drawn = pd.read_csv(folder / "figures" / "rank_map.csv")
    found = {of["arm"]: of["knobs"]["rank"] for of in concluded.summary["searches"]}
    for arm, ranks in found.items():
        assert drawn[drawn["arm"] == arm]["value"].tolist() == list(ranks.values())


def test_a_found_allocation_is_a_configuration_of_ours_and_of_peft(finished: Worker, concluded: Conclusion) -> None:
    folder = finished.runs_dir / "tiny_search" / "allocations"
    found = {of["arm"]: of for of in concluded.summary["searches"]}["gradient"]
    config = load(folder / "gradient.yaml")
    assert config.variant.rank == found["knobs"]["rank"]  # type: ignore[attr-defined]
    assert config.learning_rate == found["learning_rate"]
    theirs = json.loads((folder / "gradient.peft.json").read_text())
    adapted = {name: rank for name, rank in found["knobs"]["rank"].items() if rank}
    assert {name: theirs["rank_pattern"].get(name, theirs["r"]) for name in theirs["target_modules"]} == adapted


@pytest.mark.slow
def test_searches_with_other_seeds_are_other_searches_with_one_map(tmp_path: Path) -> None:
    worker = worker_on(
        tmp_path, pack=8, arms=[{"allocation": "uniform"}, {"allocation": "priority", "search_seed": [0, 1]}]
    )
    worker.work()
    points = {
        arm.arm.label: [trial.knobs for trial in arm.tuning.trials if trial.stage == "search"]
        for arm in study_state_of(worker).arms
    }
    assert points["priority search_seed=0"] != points["priority search_seed=1"]
    drawn = conclude(worker.study, study_state_of(worker), tmp_path).drawn["rank_map"]
    assert set(drawn["arm"]) == {"uniform", "priority"}
    assert set(drawn[drawn["arm"] == "priority"]["over"]) == {"2 searches"}


def test_the_plan_of_a_search_says_the_budget_and_nothing_of_ranks_that_no_trial_has(tmp_path: Path) -> None:
    study_in(tmp_path)
    plan = start(tmp_path / "search.yaml", tmp_path / "runs", plan=True)
    assert (plan.error, plan.code) == (None, 0)
    assert plan.said.count(f"{BUDGET} ranks") == len(load_study(tmp_path / "search.yaml").arms)
    assert "trainable" not in plan.said
    assert not (tmp_path / "runs").exists()


def test_a_failed_trial_of_a_search_is_tried_again_at_its_point(tmp_path: Path) -> None:
    worker = worker_on(tmp_path, pack=8, arms=[{"allocation": "uniform"}])
    worker.proposer.enqueue(worker.queue, study_state_of(worker))  # type: ignore[union-attr]
    before = {key: entry.given for key, entry in study_state_of(worker).entries.items()}
    for claim in worker.queue.claim(lambda entries: entries[:2]):
        worker.queue.fail(claim, "for a test", {})
    assert enqueue(worker.queue, study_state_of(worker), at_most=99, retry_failed=True) == 2
    again = study_state_of(worker)
    assert {key: entry.given for key, entry in again.entries.items()} == before
    assert {entry.state for entry in again.entries.values()} == {"waiting"}


def test_a_search_whose_trials_all_failed_chooses_nothing_and_says_why_the_first_did(tmp_path: Path) -> None:
    study = study_in(tmp_path, arms=[{"allocation": "uniform"}])
    (arm,), search = study.arms, study.config.search
    keys = [trial_key(arm, "search", n, 100) for n in range(10)]
    results = {key: TrialResult(failed=True, reason=f"reason {n}") for n, key in enumerate(keys)}
    proposals = {key: Proposal(2 * arm.centre, {}) for key in keys}
    progress = progress_of(arm, study.protocol, results, higher_is_better=False, search=search, proposals=proposals)
    assert (progress.complete, progress.tuning.state) == (True, "not tuned")
    assert progress.tuning.reason == "every trial of the search failed: reason 0"
    assert [trial.multiplier for trial in progress.wanted] == [2.0] * 10


def test_where_every_run_that_ranks_are_derived_from_failed_there_is_no_search(tmp_path: Path) -> None:
    worker = worker_on(tmp_path, pack=8, arms=[{"allocation": "adalora"}])
    worker.proposer.enqueue(worker.queue, study_state_of(worker))  # type: ignore[union-attr]
    for claim in worker.queue.claim(lambda entries: entries):
        worker.queue.fail(claim, "for a test", {})
    (progress,) = study_state_of(worker).arms
    assert (progress.complete, progress.tuning.state) == (True, "not tuned")
    assert progress.tuning.reason.endswith("failed: for a test")


@pytest.mark.parametrize(
    ("repeats", "units", "own"), [(1, "seeds", None), (2, "searches", "2 seeds"), (4, "searches", "1 seed")]
)
def test_one_search_is_compared_by_seed_and_whole_searches_by_search(
    tmp_path: Path, repeats: int, units: str, own: str | None
) -> None:
    protocol = TREE["protocol"] | {"tuning": {"seeds": [100, 101, 102, 103]}, "evaluation": {"seeds": [0, 1, 2, 3]}}
    study = study_in(tmp_path, search=TREE["search"] | {"repeats": repeats}, protocol=protocol)
    assert units_of(study) == units
    assert own is None or unit(study).endswith(f"evaluated on {own} of its own")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tree: tree["search"].update(budget={"total_rank": 99}),
            r"uniform: a budget of 99 \(total_rank\) is impos",
        ),
        (lambda tree: tree["search"].update(budget={"parameters": 31}), r"a budget of 31 \(parameters\) is impossible"),
        (lambda tree: tree.update(arms=[{"allocation": ["uniform", "mlp"]}]), r"mlp: target 'mlp': the linear layers"),
        (
            lambda tree: tree.update(
                config=str(CONFIGS / "bytes.yaml"),
                set={"variant": "lora", "targets": ["attention"]},
                arms=[{"allocation": ["uniform", "mlp"]}],
            ),
            r"mlp: allocation 'mlp': none of its layers is targeted; targets: \['attention'\]",
        ),
    ],
)
def test_what_the_model_has_no_room_for_is_said_before_the_first_trial(
    change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    tree = parse_yaml(yaml_text(TREE))
    change(tree)
    study = study_in(tmp_path, **tree)
    with pytest.raises(ValueError, match=message):
        refuse_impossible_searches(study, TrainingContext(study.arms[0].config))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree["search"].update(budget={}), "search.budget: give total_rank or parameters, one of them"),
        (
            lambda tree: tree["search"].update(space={"learning_rate": [2.0, 2.0]}),
            "search.space.learning_rate: .* a single value is nothing to search",
        ),
        (lambda tree: tree["search"].update(trials=1), "search.trials"),
        (lambda tree: tree.update(arms=[{"allocation": "unifrom"}]), r"'unifrom' is not known \(did you mean 'unif"),
        (lambda tree: tree.update(arms=[{"variant": "lora"}]), "allocation: missing; one of grouped, priority"),
        (lambda tree: tree.update(arms=[{"allocation": "uniform", "sampler": "tpf"}]), "'tpf' is not known"),
        (lambda tree: tree.update(arms=[{"allocation": "uniform", "rank": 4}]), "rank: cannot be set: the allocation"),
        (lambda tree: tree.pop("search"), "allocation: belongs to a search, and this study has no section `search`"),
        (lambda tree: tree["protocol"].update(fixed_learning_rates=[0.1]), "an arm that is searched has no fixed rate"),
        (lambda tree: tree.update(arms=[{"allocation": "uniform", "variant": "full"}]), "full"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_search_is_said_with_the_file(
    change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    tree = parse_yaml(yaml_text(TREE))
    change(tree)
    (tmp_path / "search.yaml").write_text(yaml_text(tree))
    with pytest.raises(ConfigError, match=message):
        load_study(tmp_path / "search.yaml")


def test_whole_searches_are_repeated_on_seeds_of_their_own_and_are_the_units_of_the_verdicts(tmp_path: Path) -> None:
    search = TREE["search"] | {"repeats": 5, "trials": 4, "contenders": 2}
    protocol = TREE["protocol"] | {
        "tuning": {"learning_rate_multipliers": [0.5, 2], "seeds": list(range(100, 110))},
        "evaluation": {"seeds": list(range(10))},
    }
    arms = [{"allocation": ["uniform", "adalora"]}, {"allocation": "grouped"}]
    worker = worker_on(tmp_path, pack=8, search=search, protocol=protocol, arms=arms)
    worker.work()
    state = study_state_of(worker)
    for progress in state.arms:
        searches = progress.tuning.replications
        assert [each.seeds for each in searches] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
        assert len({trial.seed for each in searches for trial in each.trials}) == 10
        for number, each in enumerate(searches):
            assert {trial.seed for trial in each.trials} == {100 + 2 * number, 101 + 2 * number}
            evaluated = [trial for trial in progress.evaluations("tuned") if trial.seed in each.seeds]
            assert all(trial.knobs == each.knobs and trial.learning_rate == each.chosen for trial in evaluated)
        first = [state.entries[each.trials[0].key].given.get("point") for each in searches]
        if progress.arm.label == "grouped":
            assert len(set(map(str, first))) == 5  # proposals of their own, before any score tells them apart
        if progress.arm.label != "uniform":
            assert len({str(each.knobs) for each in searches}) > 1  # each finds its own
    concluded = conclude(worker.study, state, tmp_path)
    judged = concluded.summary["comparisons"]["families"]["tuned"]["comparisons"]
    assert {each["n"] for each in judged} == {5}
    assert all(each["p"] is not None for each in judged)
    text = "\n".join(concluded.lines())
    assert "verdicts of methods" in text
    assert "each of 5 whole searches chooses ranks" in text
    [arm] = [each for each in concluded.summary["evaluation"]["settings"]["tuned"] if each["arm"] == "grouped"]
    runs = {t.seed: state.entries[t.key].facts["test"] for t in state.arms[2].evaluations("tuned")}
    assert arm["test_scores"] == {str(seed): (runs[seed] + runs[seed + 1]) / 2 for seed in range(0, 10, 2)}


def test_no_two_repeats_share_the_seed_of_their_proposals_whatever_seeds_of_32_bits_their_arms_have() -> None:
    assert APART > 2**32 - 1


@pytest.mark.parametrize("repeats", [1, 2])
def test_a_search_without_a_race_takes_the_best_on_its_one_seed(tmp_path: Path, repeats: int) -> None:
    search = TREE["search"] | {"trials": 3, "batch": 3, "contenders": 2, "repeats": repeats}
    protocol = TREE["protocol"] | {"tuning": {"seeds": [100, 101][:repeats]}, "evaluation": {"seeds": [0, 1, 2, 3]}}
    arms = [{"allocation": ["uniform", "random"]}]
    worker = worker_on(tmp_path, pack=4, search=search, protocol=protocol, arms=arms)
    worker.work()
    state = study_state_of(worker)
    assert state.complete
    for progress in state.arms:
        for each in progress.tuning.replications:
            of_search = [t for t in each.trials if t.stage == "search"]
            best = min(of_search, key=lambda trial: state.entries[trial.key].score or math.inf)
            assert each.reason == f"trial {each.number} is the best of the search, on one seed"
            assert each.chosen == best.learning_rate
    units = "seeds" if repeats == 1 else "searches"
    concluded = conclude(worker.study, state, tmp_path)
    assert f"a verdict needs 5 {units}, there are {4 if repeats == 1 else 2}" in "\n".join(concluded.lines())
    assert concluded.summary["comparisons"]["on"].endswith(f"paired by {units}")


def test_one_search_gives_verdicts_of_its_allocations(tmp_path: Path) -> None:
    concluded = conclude(*(lambda w: (w.study, study_state_of(w), tmp_path))(worker_on(tmp_path, pack=8)))
    assert concluded.summary["comparisons"]["verdicts"] == "of these allocations"


def test_seeds_that_do_not_divide_among_the_searches_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"3 searches share protocol\.tuning\.seeds in equal blocks; it has 2"):
        study_in(tmp_path, search=TREE["search"] | {"repeats": 3})
