"""The protocol of a study: from the results so far to the trials that are wanted now, arm by arm.

Stage 1 settles what an arm is evaluated with, on validation: a grid of learning rates (`grid_stage.py`) or, where arms
are allocations of a budget of ranks, a search (`search_stage.py`). Stage 2 evaluates it on fresh seeds.

Everything here is a function of the study's file and of the results: every worker comes to the same trials. More
results never make a trial unwanted; a result that is taken back (a failure that is tried again) may move the choice.
"""

from collections.abc import Mapping
from types import MappingProxyType

from experiments.studies.protocol.grid_stage import grid_trials, planned_trial, tuning_of
from experiments.studies.protocol.search_stage import Proposal, evaluation_trial, searching_of
from experiments.studies.protocol.trials import TUNED, ArmProgress, PlannedTrial, Stage, TrialResult, Tuning
from experiments.studies.spec.arms import Arm
from experiments.studies.spec.search_config import SearchConfig
from experiments.studies.spec.study_config import ProtocolConfig, rounded


def settings_of(protocol: ProtocolConfig) -> tuple[str, ...]:
    """The settings in which arms are evaluated; each is a family of comparisons."""
    return (TUNED, *(_fixed(rate) for rate in protocol.fixed_learning_rates))


def progress_of(
    arm: Arm,
    protocol: ProtocolConfig,
    results: Mapping[str, TrialResult],
    *,
    higher_is_better: bool,
    search: SearchConfig | None = None,
    proposals: Mapping[str, Proposal] = MappingProxyType({}),
) -> ArmProgress:
    """What an arm wants, given the results by trial key, and of a search the points that were proposed."""
    if search is None:
        tuning = tuning_of(arm, protocol, results, higher_is_better=higher_is_better)
        evaluation = _evaluation(arm, protocol, tuning)
    else:
        tuning = searching_of(arm, search, protocol.tuning, results, proposals, higher_is_better=higher_is_better)
        fresh = protocol.evaluation.seeds if tuning.number is not None else ()
        evaluation = tuple(evaluation_trial(arm, tuning, seed) for seed in fresh)
    wanted = (*tuning.trials, *evaluation)
    complete = not tuning.asks and all(trial.key in results for trial in wanted)
    return ArmProgress(arm, wanted, tuning, complete)


def plan_ahead(arm: Arm, protocol: ProtocolConfig, search: SearchConfig | None = None) -> tuple[PlannedTrial, ...]:
    """The trials to expect of an arm whose grid is not extended; those at a rate yet to be chosen have none."""
    tuned = tuple(_to_be_chosen(arm, "evaluation", seed) for seed in protocol.evaluation.seeds)
    if search is None:
        nothing = Tuning("open", (), None, None, (), None, "")
        grid = grid_trials(arm, protocol, sorted(protocol.tuning.learning_rate_multipliers))
        return (*grid, *_evaluation(arm, protocol, nothing), *tuned)
    first, *others = protocol.tuning.seeds
    sources = len(protocol.tuning.learning_rate_multipliers) if arm.source is not None else 0
    before = [_to_be_chosen(arm, "allocation", first, number) for number in range(sources)]
    searched = [_to_be_chosen(arm, "search", first, number) for number in range(search.trials)]
    left = min(search.contenders, search.trials)
    raced: list[PlannedTrial] = []
    for seed in others:
        raced += [_to_be_chosen(arm, "race", seed, number) for number in range(left)]
        left = -(-left // 2)
    return (*before, *searched, *raced, *tuned)


def _to_be_chosen(arm: Arm, stage: Stage, seed: int, number: int = 0) -> PlannedTrial:
    return PlannedTrial(f"{arm.config_hash}-{stage}-{number}-s{seed}", arm, stage, (TUNED,), seed, None, None)


def _evaluation(arm: Arm, protocol: ProtocolConfig, tuning: Tuning) -> tuple[PlannedTrial, ...]:
    """The trials at the fixed rates and at the chosen one; a rate that is both is evaluated once."""
    settings = {rounded(rate): (_fixed(rate),) for rate in protocol.fixed_learning_rates}
    if tuning.chosen is not None:
        settings[tuning.chosen] = (TUNED, *settings.get(tuning.chosen, ()))
    return tuple(
        planned_trial(arm, "evaluation", names, seed, rate, tuning.multiplier if rate == tuning.chosen else None)
        for rate, names in settings.items()
        for seed in protocol.evaluation.seeds
    )


def _fixed(rate: float) -> str:
    return f"fixed {rate:.6g}"
