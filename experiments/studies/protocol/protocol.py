"""The protocol of a study: from the results so far to the trials that are wanted now, arm by arm.

Tuning settles, on validation, what an arm is evaluated with: over a grid of points (`grid_stage.py`) or, where arms are
allocations of a budget of ranks, by a search (`search_stage.py`). By default each evaluation seed is a replication of
all of it: the grid is trained with that seed, the best point on its validation split is the seed's choice, and the same
run's test score is the seed's score. The seeds are then independent replications of "train the grid once, keep the best
on validation", and the noise of tuning is in every interval. Where tuning is shared, all evaluation seeds go by one
choice, made on seeds of its own, and are trained at it.

Everything here is a function of the study's file and of the results: every worker comes to the same trials. More
results never make a trial unwanted; a result that is taken back (a failure that is tried again) may move the choice.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from experiments.studies.protocol.grid import Point, points_of, ratios_beyond
from experiments.studies.protocol.grid_stage import best_of, replication_of, tried_points
from experiments.studies.protocol.grid_trials import grid_trials, trial_at
from experiments.studies.protocol.search_stage import Proposal, evaluation_trials, repeats_of, searching_of
from experiments.studies.protocol.seed_halving import rung_of, rung_trials
from experiments.studies.protocol.trials import (
    BEST_POINT,
    TUNED,
    ArmProgress,
    PlannedTrial,
    Replication,
    Stage,
    TrialResult,
    Tuning,
)
from experiments.studies.spec.arm import Arm
from experiments.studies.spec.search_config import SearchConfig
from experiments.studies.spec.study_config import ProtocolConfig
from experiments.studies.spec.tuning_config import rounded


def settings_of(protocol: ProtocolConfig) -> tuple[str, ...]:
    """The settings in which arms are compared; each is a family of comparisons."""
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
        repeats = repeats_of(search, protocol)
        tuning = together(
            [searching_of(arm, search, each, results, proposals, higher_is_better=higher_is_better) for each in repeats]
        )
        evaluation = tuple(trial for each in tuning.replications for trial in evaluation_trials(arm, each))
    wanted = tuple({trial.key: trial for trial in (*tuning.trials, *evaluation)}.values())
    complete = not tuning.asking and all(trial.key in results for trial in wanted)
    return ArmProgress(arm, tuple(protocol.evaluation.seeds), wanted, tuning, complete)


def borrowing(arm: Arm, protocol: ProtocolConfig, tuning: Tuning, results: Mapping[str, TrialResult]) -> ArmProgress:
    """What an arm wants that trains, seed by seed, at what the tuning of another arm chose."""
    replications = tuple(
        replace(each, trials=(), multiplier=None, added=(), side=None, knobs=arm.at(each.values))
        for each in tuning.replications
    )
    taken = replace(tuning, replications=replications, best_point=None)
    wanted = _once([*_at_taken_rates(arm, taken), *_at_fixed_rates(arm, protocol, taken)])
    complete = taken.state != "open" and all(trial.key in results for trial in wanted)
    return ArmProgress(arm, tuple(protocol.evaluation.seeds), wanted, taken, complete)


def _at_taken_rates(arm: Arm, tuning: Tuning) -> Iterator[PlannedTrial]:
    for each in tuning.replications:
        if each.chosen is not None and tuning.state != "open":
            at = "-".join([f"lr{each.chosen:.6g}", *(f"{name}{value:.6g}" for name, value in each.values.items())])
            for seed in each.seeds:
                key = f"{arm.config_hash}-evaluation-{at}-s{seed}"
                yield PlannedTrial(key, arm, "evaluation", (TUNED,), seed, each.chosen, None, each.knobs)


def tuning_of(
    arm: Arm, protocol: ProtocolConfig, results: Mapping[str, TrialResult], *, higher_is_better: bool
) -> Tuning:
    """The tuning of an arm over its grid, as far as the results go."""
    grid, fresh = points_of(arm, protocol.tuning.points), protocol.evaluation.seeds
    shared = [(protocol.tuning.own_seeds, fresh)]
    seeds = shared if protocol.tuning.shared else [([seed], [seed]) for seed in fresh]
    ratios = ratios_beyond(protocol.tuning.points)
    rung = rung_of(arm, protocol.tuning.halving, higher_is_better=higher_is_better)
    replications = [
        replication_of(
            arm, grid, results, seeds=own, serves=served, ratios=ratios, higher_is_better=higher_is_better, rung=rung
        )
        for own, served in seeds
    ]
    tuning = together(replications)
    if protocol.tuning.shared or tuning.state == "open":
        return tuning
    points = (*grid, *_added(replications))
    tried = [each for point in points for each in tried_points(arm, [point], fresh, results) or ()]
    best = best_of(tried, higher_is_better=higher_is_better)
    return replace(tuning, best_point=None if best is None else best.point)


def together(replications: Sequence[Replication]) -> Tuning:
    """Not tuned where more than half of the replications are not: they chose an end of their extended grid."""
    found = tuple(replications)
    astray = sum(each.state == "not tuned" for each in found)
    if any(each.state == "open" for each in found):
        pending = [each for each in found if each.state == "open"]
        reason = pending[0].reason if len(found) == 1 else f"{len(pending)} of {len(found)} replications are not over"
        return Tuning("open", found, reason)
    reason = found[0].reason if len(found) == 1 else _describe(found)
    return Tuning("not tuned" if 2 * astray > len(found) else "tuned", found, reason)


def plan_ahead(arm: Arm, protocol: ProtocolConfig, search: SearchConfig | None = None) -> tuple[PlannedTrial, ...]:
    """The trials to expect of an arm whose grid is not extended; those at a point yet to be chosen have no rate."""
    if arm.rate_of is not None:
        taken = [_to_be_chosen(arm, "evaluation", seed) for seed in protocol.evaluation.seeds]
        return (*_at_fixed_rates(arm, protocol, Tuning("open", (), "")), *taken)
    if search is not None:
        return tuple(
            trial for repeat in range(search.repeats) for trial in _search_ahead(arm, protocol, search, repeat)
        )
    fresh = protocol.evaluation.seeds
    seeds = protocol.tuning.own_seeds if protocol.tuning.shared else fresh
    grid = _grid_ahead(arm, protocol, seeds)
    fixed = _evaluation(arm, protocol, Tuning("tuned", (), ""))  # without choices
    settings = (TUNED,) if protocol.tuning.shared else (TUNED, BEST_POINT)
    run_of = None if protocol.tuning.shared else ""
    chosen = [
        replace(_to_be_chosen(arm, "evaluation", seed, number), settings=(setting,), run_of=run_of)
        for number, setting in enumerate(settings)
        for seed in fresh
    ]
    return (*grid, *fixed, *chosen)


def _grid_ahead(arm: Arm, protocol: ProtocolConfig, seeds: Sequence[int]) -> tuple[PlannedTrial, ...]:
    grid = points_of(arm, protocol.tuning.points)
    rung = rung_of(arm, protocol.tuning.halving, higher_is_better=False)
    if rung is None:
        return grid_trials(arm, grid, seeds)
    begun = rung_trials(arm, grid, seeds, rung)
    kept = range(math.ceil(rung.keep * len(grid)))
    rest = [replace(_to_be_chosen(arm, "tuning", seed, n), part=1 - begun[0].part) for n in kept for seed in seeds]
    return (*begun, *rest)


def _search_ahead(arm: Arm, protocol: ProtocolConfig, search: SearchConfig, number: int) -> list[PlannedTrial]:
    repeat = repeats_of(search, protocol)[number]
    first, *others = repeat.seeds
    before = [_to_be_chosen(arm, "allocation", first, n) for n in range(repeat.rates if arm.source is not None else 0)]
    searched = [_to_be_chosen(arm, "search", first, n) for n in range(search.trials)]
    left = min(search.contenders, search.trials)
    raced: list[PlannedTrial] = []
    for seed in others:
        raced += [_to_be_chosen(arm, "race", seed, n) for n in range(left)]
        left = -(-left // 2)
    return [*before, *searched, *raced, *(_to_be_chosen(arm, "evaluation", seed) for seed in repeat.serves)]


def _to_be_chosen(arm: Arm, stage: Stage, seed: int, number: int = 0) -> PlannedTrial:
    return PlannedTrial(f"{arm.config_hash}-{stage}-{number}-s{seed}", arm, stage, (TUNED,), seed, None, None)


def _added(replications: Sequence[Replication]) -> list[Point]:
    """The points by which some replication extended its grid, each once."""
    found: list[Point] = []
    for point in (point for each in replications for point in each.added):
        if point not in found:
            found.append(point)
    return found


def _evaluation(arm: Arm, protocol: ProtocolConfig, tuning: Tuning) -> tuple[PlannedTrial, ...]:
    """The trials at the fixed rates and at what was chosen."""
    return _once([*_at_choices(arm, protocol, tuning), *_at_fixed_rates(arm, protocol, tuning)])


def _once(trials: Iterable[PlannedTrial]) -> tuple[PlannedTrial, ...]:
    """One that counts for several settings is evaluated once."""
    found: dict[str, PlannedTrial] = {}
    for trial in trials:
        before = found.get(trial.key)
        found[trial.key] = trial if before is None else replace(before, settings=(*before.settings, *trial.settings))
    return tuple(found.values())


def _at_choices(arm: Arm, protocol: ProtocolConfig, tuning: Tuning) -> Iterator[PlannedTrial]:
    if tuning.state == "open":
        return
    for each in tuning.replications:
        if each.multiplier is not None:
            for seed in each.seeds:
                yield _evaluated(arm, protocol, TUNED, Point(each.multiplier, each.values), seed)
    if tuning.best_point is not None:
        for seed in protocol.evaluation.seeds:
            yield _evaluated(arm, protocol, BEST_POINT, tuning.best_point, seed)


def _evaluated(arm: Arm, protocol: ProtocolConfig, setting: str, point: Point, seed: int) -> PlannedTrial:
    trial = trial_at(arm, "evaluation", (setting,), point, seed)
    return trial if protocol.tuning.shared else replace(trial, run_of=trial_at(arm, "tuning", (), point, seed).key)


def _at_fixed_rates(arm: Arm, protocol: ProtocolConfig, tuning: Tuning) -> Iterator[PlannedTrial]:
    """One that is a point of the grid waits until tuning is over, and is read of the run that tuning trained.

    A halved grid trains no run of it for sure: it is trained on, and before it would be in the way of the rung.
    """
    tuned = arm.rate_of is None and not protocol.tuning.shared
    grid, own = points_of(arm, protocol.tuning.points) if tuned else (), arm.config.variant
    points = {point.rate(arm): point for point in grid if own.model_copy(update=arm.at(point.values)) == own}
    for rate in map(rounded, protocol.fixed_learning_rates):
        if rate in points and tuning.state == "open":
            continue
        for seed in protocol.evaluation.seeds:
            if rate in points and protocol.tuning.halving is None:
                yield _evaluated(arm, protocol, _fixed(rate), points[rate], seed)
            else:
                key = f"{arm.config_hash}-evaluation-lr{rate:.6g}-s{seed}"
                yield PlannedTrial(key, arm, "evaluation", (_fixed(rate),), seed, rate, None)


def _fixed(rate: float) -> str:
    return f"fixed {rate:.6g}"


def _describe(replications: Sequence[Replication]) -> str:
    """What each chose, the most frequent first, and how many of them chose an end of their extended grid."""
    chosen = Counter(_words(each) for each in replications if each.chosen is not None)
    units = "searches" if any(each.number is not None for each in replications) else "seeds"
    text = ", ".join(f"{words} ({count} of {len(replications)} {units})" for words, count in chosen.most_common())
    ends = sum(each.state == "not tuned" and each.chosen is not None for each in replications)
    lost = [each for each in replications if each.chosen is None]
    text = f"chosen: {text or 'nothing'}"
    text += f"; at the end of an extended grid: {ends}" if ends else ""
    return text + (f"; without a choice: {len(lost)} ({lost[0].reason})" if lost else "")


def _words(each: Replication) -> str:
    if each.number is not None:
        return f"trial {each.number} at {each.chosen:g}"
    return " ".join([f"{each.chosen:g}", *(f"{name}={value:g}" for name, value in each.values.items())])
