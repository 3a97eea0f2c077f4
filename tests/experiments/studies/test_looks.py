"""Looks at a study: who goes on, what a word rests on, and that nothing but file and results decides."""

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_studies import Ending, study_of, study_state_of

from analysis.stats.comparisons import compare
from analysis.stats.paired_scores import PairedScores
from analysis.study_results.conclusion import conclusion_of
from analysis.study_results.results import results_table
from analysis.study_results.verdict_tables import UNEQUAL
from analysis.study_results.verdicts import evaluations, families
from experiments.config.errors import ConfigError
from experiments.studies.protocol.looks import StudyProgress
from experiments.studies.protocol.progress import StudyState
from experiments.studies.protocol.trials import ArmProgress, PlannedTrial, TrialResult
from experiments.studies.spec.frozen import changes, frozen
from experiments.studies.spec.study import Study

LOOKS = [5, 8, 12]
REPLICATED = {"tuning": {"grid": {"learning_rate_multipliers": [0.5, 1, 2]}}, "evaluation": {"looks": LOOKS}}


def sequential(folder: Path, **protocol: object) -> Study:
    """LoRA is the reference of three arms."""
    arms = [{"variant": ["lora", "adalora", "full"]}, {"variant": "lora_plus"}]
    return study_of(folder, arms=arms, protocol=REPLICATED | protocol)


def outcome(trial: PlannedTrial, gaps: Mapping[str, float], sd: float = 0.007) -> Ending:
    """The best rate is the arm's own; test scores differ from LoRA's by an arm's gap, and by the luck of a run."""
    own = np.random.default_rng([trial.seed, int(trial.arm.config_hash, 16) % 2**32]).standard_normal()
    multiplier = (trial.learning_rate or 0.0) / trial.arm.centre
    score = 3 + 0.05 * np.log2(multiplier) ** 2 + gaps.get(str(trial.arm.keys["variant"]), 0.0) + sd * own / 2**0.5
    ending = {"score": float(score), "loss": float(score)}
    return ending | ({"test": float(score)} if trial.stage == "evaluation" else {})


GAPS = {"full": 0.1, "adalora": 0.008}


def seeds_of(study: Study, state: StudyState) -> dict[str, int]:
    return {str(arm.arm.keys["variant"]): len(arm.seeds) for arm in state.arms}


def words_of(study: Study, state: StudyState, folder: Path) -> dict[str, tuple[str | None, int]]:
    judged = families(study, state, evaluations(study, state, results_table(study, state, folder)))["tuned"]
    return {str(each.arm.keys["variant"]): (each.verdict, each.found.n) for each in judged}


def seed_scores_of(state: StudyState, arm: ArmProgress) -> np.ndarray:
    tests = {trial.seed: state.entries[trial.key].facts["test"] for trial in arm.evaluations("tuned")}
    return np.array([tests[seed] for seed in arm.seeds])


def test_an_arm_goes_on_while_a_comparison_of_it_has_no_word(tmp_path: Path) -> None:
    study = sequential(tmp_path)
    state = study_state_of(study, lambda trial: outcome(trial, GAPS))
    assert state.complete
    assert seeds_of(study, state) == {"lora": 12, "full": 5, "adalora": 8, "lora_plus": 12}
    assert words_of(study, state, tmp_path) == {
        "full": ("worse", 5), "adalora": ("worse", 8), "lora_plus": ("equivalent", 12),
    }  # fmt: skip


def test_the_means_of_arms_that_stop_at_different_looks_are_said_to_be_of_other_seeds(tmp_path: Path) -> None:
    study = sequential(tmp_path)
    state = study_state_of(study, lambda trial: outcome(trial, GAPS))
    assert UNEQUAL in conclusion_of(study, state, tmp_path).lines()
    alike = sequential(tmp_path, evaluation={"seeds": list(range(5))})
    same = study_state_of(alike, lambda trial: outcome(trial, GAPS))
    assert UNEQUAL not in conclusion_of(alike, same, tmp_path).lines()


def test_the_words_are_those_of_the_procedure_on_all_scores(tmp_path: Path) -> None:
    study = sequential(tmp_path)
    whole = study_state_of(sequential(tmp_path, evaluation={"seeds": list(range(12))}), lambda t: outcome(t, GAPS))
    tests = {each.arm.keys["variant"]: seed_scores_of(whole, each) for each in whole.arms}
    pairs = [PairedScores(name, tests[name], tests["lora"], False, 0.01) for name in ("adalora", "full", "lora_plus")]
    found = compare(pairs, looks=LOOKS)
    state = study_state_of(study, lambda trial: outcome(trial, GAPS))
    assert words_of(study, state, tmp_path) == {each.name: (each.verdict, each.n) for each in found}


@pytest.mark.parametrize("seed", range(6))
def test_in_whatever_order_results_come_nothing_wanted_becomes_unwanted_and_the_end_is_the_same(
    tmp_path: Path, seed: int
) -> None:
    study, shuffled = sequential(tmp_path), random.Random(seed)
    results: dict[str, TrialResult] = {}
    before: set[str] = set()
    while True:
        found = StudyProgress(study, results, {})
        wanted = {trial.key: trial for arm in found.arms for trial in arm.wanted}
        assert before <= wanted.keys()
        before, open_trials = set(wanted), [trial for key, trial in wanted.items() if key not in results]
        if not open_trials:
            break
        for trial in shuffled.sample(open_trials, shuffled.randint(1, len(open_trials))):
            ending = outcome(trial, GAPS)
            results[trial.key] = TrialResult(False, ending["score"], ending["loss"], ending.get("test"))
    alone = study_state_of(study, lambda trial: outcome(trial, GAPS))
    assert before == set(alone.wanted)
    assert list(found.comparisons) == list(alone.comparisons)


def test_a_run_that_fails_after_a_look_ends_what_is_open_and_takes_no_word_back(tmp_path: Path) -> None:
    study = sequential(tmp_path)

    def failing(trial: PlannedTrial) -> Ending:
        fails = trial.arm.keys["variant"] == "lora" and trial.seed == 10
        return {"failure": "diverged"} if fails else outcome(trial, GAPS)

    state = study_state_of(study, failing)
    assert words_of(study, state, tmp_path) == {"full": ("worse", 5), "adalora": ("worse", 8), "lora_plus": (None, 8)}
    (without,) = (each.excluded for each in state.comparisons if each.excluded)
    assert without == "lora r=16: 1 of 12 evaluation runs failed"
    assert state.complete


def test_a_study_that_is_under_way_says_which_comparisons_are_open(tmp_path: Path) -> None:
    study = sequential(tmp_path)

    def halfway(trial: PlannedTrial) -> Ending:
        return {"state": "waiting"} if trial.seed == 7 else outcome(trial, GAPS)

    state = study_state_of(study, halfway)
    assert not state.complete
    assert {str(each.arm.keys["variant"]): each.excluded for each in state.comparisons} == {
        "full": None,
        "adalora": "open after 5 seeds: its tuning is not over",
        "lora_plus": "open after 5 seeds: its tuning is not over",
    }
    assert words_of(study, state, tmp_path) == {"full": ("worse", 5), "adalora": (None, 5), "lora_plus": (None, 5)}


def test_a_look_that_waits_for_others_of_the_family_has_no_word_yet(tmp_path: Path) -> None:
    study = sequential(tmp_path)

    def one_waits(trial: PlannedTrial) -> Ending:
        waits = trial.arm.keys["variant"] == "lora_plus" and trial.seed == 7
        return {"state": "waiting"} if waits else outcome(trial, GAPS)

    state = study_state_of(study, one_waits)
    assert words_of(study, state, tmp_path) == {"full": ("worse", 5), "adalora": (None, 5), "lora_plus": (None, 5)}
    (adalora,) = (each for each in state.comparisons if each.arm.keys["variant"] == "adalora")
    assert adalora.excluded == "open after 5 seeds: others of its family are pending"


def test_an_arm_may_fail_at_a_look_while_its_reference_is_tuned_for_it(tmp_path: Path) -> None:
    study = study_of(tmp_path, arms=[{"variant": ["lora", "lora_plus"]}], protocol=REPLICATED)

    def failing(trial: PlannedTrial) -> Ending:
        if trial.arm.keys["variant"] == "lora_plus" and trial.seed == 6:
            return {"failure": "diverged"}
        waits = trial.arm.keys["variant"] == "lora" and trial.seed == 7
        return {"state": "waiting"} if waits else outcome(trial, {"lora_plus": 0.008}, 0.02)

    state = study_state_of(study, failing)
    assert words_of(study, state, tmp_path) == {"lora_plus": (None, 5)}
    assert [each.excluded for each in state.comparisons] == ["1 of 8 evaluation runs failed"]


def test_an_arm_that_is_not_tuned_has_a_difference_though_its_reference_goes_on(tmp_path: Path) -> None:
    study = sequential(tmp_path)

    def endless(trial: PlannedTrial) -> Ending:
        ending, lower = dict(outcome(trial, GAPS)), (trial.learning_rate or 0.0) / trial.arm.centre
        if trial.arm.keys["variant"] == "full":  # higher rates are better and better
            ending = {name: value - lower for name, value in ending.items()}
        return ending

    state = study_state_of(study, endless)
    judged = families(study, state, evaluations(study, state, results_table(study, state, tmp_path)))["tuned"]
    (found,) = (each for each in judged if each.excluded)
    assert (found.excluded, found.verdict, found.found.n) == ("not tuned", None, 5)
    assert found.interval is not None
    assert found.ordinary_interval is not None
    assert found.interval[0] < found.ordinary_interval[0]  # that of its look


def test_the_best_point_for_all_seeds_is_read_when_an_arm_has_all_its_seeds(tmp_path: Path) -> None:
    study = sequential(tmp_path)
    seen: dict[str, int] = {}

    def noted(trial: PlannedTrial) -> Ending:
        if "best point" in trial.settings:
            seen[str(trial.arm.keys["variant"])] = max(seen.get(str(trial.arm.keys["variant"]), 0), trial.seed + 1)
        return outcome(trial, GAPS)

    state = study_state_of(study, noted)
    for arm in state.arms:
        assert {trial.seed for trial in arm.evaluations("best point")} == set(arm.seeds)


def test_the_arm_whose_rates_another_takes_goes_on_with_it(tmp_path: Path) -> None:
    arms = [
        {"variant": "lora"},
        {"variant": "full"},
        {"variant": "lora", "label": "borrower", "training.weight_decay": 0.01, "rate_of": {"variant": "full"}},
    ]
    study = study_of(tmp_path, arms=arms, protocol=REPLICATED | {"reference": {"label": "lora r=16"}})

    def open_long(trial: PlannedTrial) -> Ending:
        own = replace(trial, learning_rate=trial.arm.centre) if trial.arm.label == "borrower" else trial
        return outcome(own, {"full": 0.1}, 0.02)

    state = study_state_of(study, open_long)
    reached = {arm.arm.label: len(arm.seeds) for arm in state.arms}
    assert reached["full"] >= reached["borrower"] > 5


@pytest.mark.parametrize(
    ("protocol", "said"),
    [
        ({"evaluation": {"looks": [8, 5]}}, "each is after more seeds than the one before; got [8, 5]"),
        ({"evaluation": {"looks": [4, 8]}}, "a word needs 5 seeds; got 4"),
        (
            {"evaluation": {"looks": [5, 8], "seeds": [1, 2, 3]}},
            "after all 3 seeds; got 8: give as many seeds, or one of the two",
        ),
        (
            {"tuning": {"shared": True}, "evaluation": {"looks": LOOKS}},
            "with one tuning for all seeds a false word is the likelier the more looks",
        ),
    ],
)
def test_looks_that_cannot_be_are_refused(tmp_path: Path, protocol: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        sequential(tmp_path, **protocol)
    assert said in str(error.value)


def test_looks_are_settled_before_the_first_evaluation(tmp_path: Path) -> None:
    before = frozen(sequential(tmp_path))
    assert changes(before, frozen(sequential(tmp_path, evaluation={"looks": [5, 12]}))) == [
        "protocol.evaluation.looks: was [5, 8, 12], is [5, 12]"
    ]


def test_what_a_version_settled_that_looked_once_is_no_reason_to_look_more_often(tmp_path: Path) -> None:
    study = sequential(tmp_path, evaluation={"seeds": list(range(12))})
    before = frozen(study)
    del before["protocol"]["evaluation"]["looks"]
    assert changes(before, frozen(study)) == []
    assert changes(before, frozen(sequential(tmp_path))) == ["protocol.evaluation.looks: was [12], is [5, 8, 12]"]


def test_seeds_alone_are_one_look_and_nothing_is_the_four_looks(tmp_path: Path) -> None:
    assert sequential(tmp_path, evaluation={"seeds": [3, 1, 2]}).protocol.evaluation.looks == [3]
    default = sequential(tmp_path, evaluation={}).protocol.evaluation
    assert (default.looks, default.seeds) == ([5, 8, 12, 20], list(range(20)))


def test_an_arm_that_has_its_word_in_a_setting_is_not_without_verdict_there(tmp_path: Path) -> None:
    study = sequential(tmp_path, fixed_learning_rates=[0.005])

    def failing(trial: PlannedTrial) -> Ending:
        late = trial.arm.keys["variant"] == "lora_plus" and trial.seed == 7 and "fixed 0.005" in trial.settings
        return {"failure": "diverged"} if late else outcome(trial, GAPS)

    state = study_state_of(study, failing)
    found = evaluations(study, state, results_table(study, state, tmp_path))
    (at_rate,) = (each for each in found if each.failed)
    assert [each.excluded for each in state.comparisons if each.setting == at_rate.setting] == [None] * 3
    assert at_rate.excluded is None


def test_few_seeds_have_a_difference_and_no_word(tmp_path: Path) -> None:
    for seeds in (1, 3):
        study = sequential(tmp_path, evaluation={"looks": [seeds]})
        state = study_state_of(study, lambda trial: outcome(trial, GAPS))
        judged = families(study, state, evaluations(study, state, results_table(study, state, tmp_path)))["tuned"]
        assert {(each.verdict, each.found.n, each.found.difference is None) for each in judged} == {
            (None, seeds, False)
        }


def test_before_anything_has_ended_every_comparison_is_open_at_fixed_rates_too(tmp_path: Path) -> None:
    study = sequential(tmp_path, fixed_learning_rates=[0.005, 0.3])
    found = StudyProgress(study, {}, {})
    assert len(found.comparisons) == 9
    assert all(each.open and each.excluded for each in found.comparisons)
