"""Searches: equal trials for every arm, batches that wait for each other, a race that forgets the lucky score."""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import fmean

import optuna
import pytest

from experiments.config.loading import load
from experiments.studies.protocol.protocol import plan_ahead, progress_of
from experiments.studies.protocol.search_stage import Proposal, trial_key
from experiments.studies.protocol.trials import ArmProgress, PlannedTrial, Replication, TrialResult
from experiments.studies.search.allocations import Interval
from experiments.studies.search.samplers import Observation, suggest
from experiments.studies.spec.arm import Arm
from experiments.studies.spec.search_config import SearchConfig
from experiments.studies.spec.study_config import ProtocolConfig

CONFIG = load(None, variant="lora", overrides=["task.name=bytes", "targets=['layers.*']", "rank=1", "pad_rank_to=8"])
ARM = Arm("priority", "0123456789ab", {"variant": "lora", "allocation": "priority"}, CONFIG, {"allocation": "priority"})
SEARCH = SearchConfig.model_validate({"budget": {"total_rank": 24}, "trials": 20, "batch": 8, "contenders": 5})
PROTOCOL = ProtocolConfig.model_validate(
    {"margin": 0.01, "tuning": {"seeds": [100, 101, 102]}, "evaluation": {"seeds": [0, 1, 2, 3, 4]}}
)
Score = Callable[[PlannedTrial], float | None]


def point_of(number: int) -> Proposal:
    return Proposal(1e-3 * (number + 1), {"rank": {"layers.0.query": number}})


def number_of(trial: PlannedTrial) -> int:
    return int(trial.knobs["rank"]["layers.0.query"])


def searched(progress: ArmProgress) -> Replication:
    (only,) = progress.tuning.replications
    return only


class Simulated:
    """A study of one arm whose asks are answered and whose trials end as `score` says; None is a failure."""

    def __init__(self, score: Score, search: SearchConfig = SEARCH, protocol: ProtocolConfig = PROTOCOL) -> None:
        self.score, self.search, self.protocol = score, search, protocol
        self.results: dict[str, TrialResult] = {}
        self.proposals: dict[str, Proposal] = {}

    def progress(self) -> ArmProgress:
        return progress_of(
            ARM,
            self.protocol,
            self.results,
            higher_is_better=False,
            search=self.search,
            proposals=self.proposals,
        )

    def answer(self) -> tuple[int, ...]:
        asks = searched(self.progress()).asks
        self.proposals |= {trial_key(ARM, "search", n, self.protocol.tuning.own_seeds[0]): point_of(n) for n in asks}
        return asks

    def end(self, trial: PlannedTrial) -> None:
        score = self.score(trial)
        self.results[trial.key] = TrialResult(failed=score is None, score=score, reason=None if score else "diverged")

    def finish(self) -> ArmProgress:
        while not (progress := self.progress()).complete:
            self.answer()
            for trial in self.progress().wanted:
                if trial.key not in self.results:
                    self.end(trial)
        return progress


def test_a_batch_is_suggested_when_all_before_it_has_ended() -> None:
    study = Simulated(lambda trial: float(number_of(trial)))
    assert study.answer() == tuple(range(8))
    assert searched(study.progress()).asks == ()
    for trial in study.progress().wanted[:7]:
        study.end(trial)
    assert searched(study.progress()).asks == ()
    study.end(study.progress().wanted[7])
    assert searched(study.progress()).asks == tuple(range(8, 16))
    assert not study.progress().complete


def test_a_batch_of_which_a_crash_left_a_part_is_asked_for_the_rest() -> None:
    study = Simulated(lambda trial: float(number_of(trial)))
    study.answer()
    for n in (3, 5, 6):
        del study.proposals[trial_key(ARM, "search", n, 100)]
    assert searched(study.progress()).asks == (3, 5, 6)


def test_every_arm_gets_the_planned_trials_and_no_more() -> None:
    for search in (SEARCH, SEARCH.model_copy(update={"contenders": 1}), SEARCH.model_copy(update={"trials": 3})):
        study = Simulated(lambda trial: float(number_of(trial)), search)
        stages = [trial.stage for trial in study.finish().wanted]
        planned = [trial.stage for trial in plan_ahead(ARM, PROTOCOL, search)]
        assert {s: stages.count(s) for s in stages} == {s: planned.count(s) for s in planned}


def test_the_race_goes_by_fresh_seeds_and_forgets_the_score_that_made_a_contender() -> None:
    def score(trial: PlannedTrial) -> float:
        number = number_of(trial)
        lucky = trial.stage == "search" and number == 7
        return -100.0 if lucky else float(abs(number - 3))

    progress = Simulated(score).finish()
    raced = {number_of(trial) for trial in progress.wanted if trial.stage == "race"}
    assert 7 in raced
    assert searched(progress).number == 3
    assert searched(progress).knobs == point_of(3).knobs
    assert {number_of(trial) for trial in progress.evaluations("tuned")} == {3}


def test_the_winner_is_the_best_mean_of_the_race_over_all_its_seeds() -> None:
    scores = {(101, 0): 1.0, (101, 1): 1.1, (101, 2): 1.2, (102, 0): 2.0, (102, 1): 0.0, (102, 2): 0.0}

    def score(trial: PlannedTrial) -> float:
        number = number_of(trial)
        return float(number) if trial.stage == "search" else scores.get((trial.seed, number), 9.0)

    progress = Simulated(score).finish()
    rounds = {s: sorted(number_of(t) for t in progress.wanted if t.stage == "race" and t.seed == s) for s in (101, 102)}
    assert rounds == {101: [0, 1, 2, 3, 4], 102: [0, 1, 2]}  # the better half goes on
    assert searched(progress).number == 1
    assert f"{fmean([1.1, 0.0]):.6g} over 2 seeds" in searched(progress).reason


def test_a_failure_is_never_a_score_neither_in_the_search_nor_in_the_race() -> None:
    def score(trial: PlannedTrial) -> float | None:
        number = number_of(trial)
        if number == 0 or (trial.stage == "race" and number == 1):
            return None
        return float(number)

    progress = Simulated(score).finish()
    assert searched(progress).number == 2
    nothing = Simulated(lambda trial: None).finish()
    assert nothing.tuning.state == "not tuned"
    assert "diverged" in searched(nothing).reason
    assert {trial.stage for trial in nothing.wanted} == {"search"}
    lost = Simulated(lambda trial: None if trial.stage == "race" else 1.0).finish()
    assert lost.tuning.state == "not tuned"


def test_scores_that_are_not_finite_are_no_scores() -> None:
    progress = Simulated(lambda trial: -math.inf if number_of(trial) == 4 else float(number_of(trial))).finish()
    assert searched(progress).number == 0


def test_higher_scores_win_where_higher_is_better() -> None:
    study = Simulated(lambda trial: float(number_of(trial)))
    study.finish()
    up = progress_of(ARM, PROTOCOL, study.results, higher_is_better=True, search=SEARCH, proposals=study.proposals)
    assert {number_of(trial) for trial in up.wanted if trial.stage == "race"} == {15, 16, 17, 18, 19}


SPACE = {"a": Interval(0.0, 1.0), "b": Interval(0, 5), "c": Interval(0.1, 10.0, log=True)}


def history(count: int) -> list[Observation]:
    tried = []
    for asked in suggest(SPACE, [], range(count), sampler="random", seed=3, higher_is_better=False):
        distance = (asked.point["a"] - 0.3) ** 2 + (asked.point["b"] - 2) ** 2 + math.log(asked.point["c"]) ** 2
        tried.append(Observation(asked.point, distance))
    return tried


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "gp", "random"])
def test_the_same_finished_history_leads_to_the_same_next_trial(sampler: str) -> None:
    def ask(numbers: range) -> list[Mapping[str, float]]:
        found = suggest(SPACE, history(10), numbers, sampler=sampler, seed=1, higher_is_better=False)
        return [asked.point for asked in found]

    batch = ask(range(16, 20))
    assert ask(range(16, 20)) == batch
    assert ask(range(16, 18)) == batch[:2]
    assert len({str(point) for point in batch}) == 4  # trials of a batch are not one another's copies
    other = suggest(SPACE, history(10), range(16, 17), sampler=sampler, seed=2, higher_is_better=False)
    assert other[0].point != batch[0] or sampler == "gp"  # whose best guess may be the same one


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_samplers_learn_from_the_history(sampler: str) -> None:
    def distance(point: Mapping[str, float]) -> float:
        return (point["a"] - 0.3) ** 2 + (point["b"] - 2) ** 2 + math.log(point["c"]) ** 2

    tried = history(8)
    for first in range(8, 40, 8):
        batch = suggest(SPACE, tried, range(first, first + 8), sampler=sampler, seed=1, higher_is_better=False)
        tried += [Observation(asked.point, distance(asked.point)) for asked in batch]
    random = [
        distance(a.point) for a in suggest(SPACE, [], range(200), sampler="random", seed=9, higher_is_better=False)
    ]
    assert fmean(t.score for t in tried[-8:] if t.score is not None) < 0.5 * fmean(random)


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "gp", "random"])
def test_an_ask_beyond_the_budget_is_told_infeasible_and_asked_again(sampler: str) -> None:
    def excess(point: Mapping[str, float]) -> float:
        return max(0.0, point["b"] - 1)

    tried = history(8)
    feasible = [t if t.point["b"] <= 1 else replace(t, point={**t.point, "b": 1}) for t in tried]
    found = suggest(SPACE, feasible, range(8, 14), sampler=sampler, seed=1, higher_is_better=False, excess=excess)
    assert all(asked.point["b"] <= 1 for asked in found)
    refused = [(point, over) for asked in found for point, over in zip(asked.refused, asked.excess, strict=True)]
    assert refused
    assert all(excess(point) == over > 0 for point, over in refused)


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
@pytest.mark.parametrize("higher", [True, False])
def test_an_infeasible_point_counts_as_the_worst_score_that_there_was_and_never_as_a_good_one(
    sampler: str, higher: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[optuna.Study] = []
    create = optuna.create_study
    monkeypatch.setattr(optuna, "create_study", lambda **given: made.append(create(**given)) or made[-1])
    points = [{"a": 0.1 * i, "b": i % 2, "c": 1.0 + i} for i in range(6)]
    tried = [Observation(point, score) for point, score in zip(points, (0.5, None, 7.0, 0.25, 3.0, 1.0), strict=True)]
    refused = {"a": 0.5, "b": 4, "c": 2.0}
    tried[3] = replace(tried[3], refused=(refused,), excess=(3.0,))
    suggest(
        SPACE, tried, range(6, 12), sampler=sampler, seed=1, higher_is_better=higher,
        excess=lambda point: max(0.0, point["b"] - 1),
    )  # fmt: skip
    told = [trial for trial in made[-1].trials if trial.state == optuna.trial.TrialState.COMPLETE]
    infeasible = [trial for trial in told if trial.params["b"] > 1]
    assert len(infeasible) > 2
    assert refused in [trial.params for trial in infeasible]
    assert {trial.value for trial in infeasible} == {0.25 if higher else 7.0}
    assert sorted(trial.value or 0.0 for trial in told if trial not in infeasible) == [0.25, 0.5, 1.0, 3.0, 7.0]


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "gp", "random"])
def test_no_question_to_a_sampler_warns_of_anything(sampler: str) -> None:
    tried = history(6)
    tried[1] = replace(tried[1], score=None, reached=(3, 0.5))
    tried[2] = replace(tried[2], refused=({"a": 0.5, "b": 4, "c": 2.0},), excess=(3.0,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        suggest(
            SPACE, tried, range(6, 8), sampler=sampler, seed=1, higher_is_better=False,
            excess=lambda point: max(0.0, point["b"] - 2),
        )  # fmt: skip


def test_a_space_without_a_feasible_point_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match=r"exceed the budget, the last by 7: .* raise the budget"):
        suggest(SPACE, [], range(1), sampler="random", seed=0, higher_is_better=False, excess=lambda point: 7.0)
