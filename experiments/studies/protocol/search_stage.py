"""Stage 1 of an arm that is searched: from the results so far to the trials that are wanted now.

An arm whose allocation is AdaLoRA's first has AdaLoRA trained at the budget, at the rates of the tuning grid; the ranks
that the best of these runs ends with are frozen. The search has `search.trials` trials with the first tuning seed,
batch by batch; a batch is asked for when all before it has ended. Then a race: the best points run with each further
tuning seed, and the worse half leaves after every one. The race goes by the mean over its own seeds: the score that
made a point a contender is the best of many. Points are proposed elsewhere and lie in the queue; given them,
everything here follows from file and results.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from experiments.studies.protocol.trials import TUNED, PlannedTrial, Replication, Stage, TrialResult
from experiments.studies.spec.arm import Arm
from experiments.studies.spec.search_config import SearchConfig
from experiments.studies.spec.study_config import ProtocolConfig


@dataclass(frozen=True)
class Proposal:
    """A point of an arm's space: the learning rate, and the variant's knobs with the rank of every layer.

    `thresholds`: by step, the score with which the search's trial goes on.
    """

    learning_rate: float
    knobs: Mapping[str, Any]
    thresholds: Mapping[int, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class _Runner:
    """A contender of the race, with its scores on the race's own seeds so far."""

    number: int
    scores: tuple[float, ...] = ()


@dataclass(frozen=True)
class _Race:
    """The trials of a race so far, and who is left; `open` while trials of a round have not ended."""

    trials: tuple[PlannedTrial, ...]
    left: tuple[_Runner, ...]
    open: bool


def trial_key(arm: Arm, stage: Stage, number: int, seed: int) -> str:
    """The name of a trial of an arm's search, or of what comes before and after it."""
    return f"{arm.config_hash}-{stage}-{number:04d}-s{seed}"


@dataclass(frozen=True)
class Repeat:
    """One whole search: its place among the repeats, the seeds of search and race, the evaluation seeds it serves."""

    number: int
    seeds: tuple[int, ...]
    serves: tuple[int, ...]
    rates: int  # of the runs that ranks are derived from


def repeats_of(search: SearchConfig, protocol: ProtocolConfig) -> tuple[Repeat, ...]:
    """Seeds of tuning and of evaluation are dealt to the repeats in equal blocks."""
    tuning, evaluation = protocol.tuning.own_seeds, protocol.evaluation.seeds
    rates, count = len(protocol.tuning.points.learning_rate_multipliers), search.repeats
    ours, theirs = len(tuning) // count, len(evaluation) // count
    return tuple(
        Repeat(n, tuple(tuning[n * ours : (n + 1) * ours]), tuple(evaluation[n * theirs : (n + 1) * theirs]), rates)
        for n in range(count)
    )


def searching_of(
    arm: Arm,
    search: SearchConfig,
    repeat: Repeat,
    results: Mapping[str, TrialResult],
    proposals: Mapping[str, Proposal],
    *,
    higher_is_better: bool,
) -> Replication:
    """One search of an arm, as far as results and proposals go."""
    seeds = repeat.seeds
    before = _sources(arm, repeat, results, proposals)
    if before.state != "tuned":
        return before
    keys = [trial_key(arm, "search", n, seeds[0]) for n in range(search.trials)]
    proposed = {n: proposals[key] for n, key in enumerate(keys) if key in proposals}
    trials = (*before.trials, *(_trial(arm, "search", n, seeds[0], proposed[n]) for n in proposed))
    ended = {n for n in proposed if keys[n] in results}
    if len(ended) < search.trials:
        asks = _asks(search, set(proposed), ended)
        return _open(repeat, trials, f"{len(ended)} of {search.trials} trials of the search have ended", asks)
    ranked = _ranked([results[key].score for key in keys], higher_is_better=higher_is_better)
    if not ranked:
        return _without_choice(repeat, trials, f"every trial of the search failed: {results[keys[0]].reason}")
    contenders = [_Runner(n) for n in ranked[: search.contenders]]
    race = _race(arm, contenders, seeds[1:], results, proposed, higher_is_better=higher_is_better)
    trials = (*trials, *race.trials)
    if race.open:
        return _open(repeat, trials, f"{len(race.left)} of {len(contenders)} contenders are left in the race")
    if not race.left:
        return _without_choice(repeat, trials, "every contender failed in the race")
    return _chosen(arm, repeat, trials, race.left[0], len(contenders), proposed)


def evaluation_trials(arm: Arm, searched: Replication) -> tuple[PlannedTrial, ...]:
    """The chosen point of a search on the fresh seeds that go by it; none while there is no choice."""
    if searched.number is None or searched.chosen is None:
        return ()
    chosen = Proposal(searched.chosen, searched.knobs)
    return tuple(_trial(arm, "evaluation", searched.number, seed, chosen) for seed in searched.seeds)


def best_source(arm: Arm, repeat: Repeat, results: Mapping[str, float | None], *, higher_is_better: bool) -> str | None:
    """The key of the run that an arm's ranks are derived from, given the scores by key; None where none has a score."""
    assert arm.source is not None
    keys = [trial_key(arm.source, "allocation", n, repeat.seeds[0]) for n in range(repeat.rates)]
    ranked = _ranked([results[key] for key in keys], higher_is_better=higher_is_better)
    return keys[ranked[0]] if ranked else None


def _sources(
    arm: Arm, repeat: Repeat, results: Mapping[str, TrialResult], proposals: Mapping[str, Proposal]
) -> Replication:
    """The runs that an arm's allocation is derived from; none for most."""
    if arm.source is None:
        return Replication(repeat.serves, "tuned", (), "")
    numbers, seed = range(repeat.rates), repeat.seeds[0]
    keys = [trial_key(arm.source, "allocation", n, seed) for n in numbers]
    known = [n for n in numbers if keys[n] in proposals]
    trials = tuple(_trial(arm.source, "allocation", n, seed, proposals[keys[n]]) for n in known)
    if any(key not in results for key in keys):
        reason = f"the {arm.source.label} runs that its ranks are derived from are pending"
        return _open(repeat, trials, reason, tuple(n for n in numbers if n not in known), "allocation")
    if all(results[key].failed for key in keys):
        return _without_choice(repeat, trials, f"every run of {arm.source.label} failed: {results[keys[0]].reason}")
    return Replication(repeat.serves, "tuned", trials, "")


def _trial(arm: Arm, stage: Stage, number: int, seed: int, proposal: Proposal) -> PlannedTrial:
    rate, key = proposal.learning_rate, trial_key(arm, stage, number, seed)
    thresholds = proposal.thresholds if stage == "search" else {}
    return PlannedTrial(key, arm, stage, (TUNED,), seed, rate, rate / arm.centre, proposal.knobs, thresholds)


def _open(
    repeat: Repeat,
    trials: tuple[PlannedTrial, ...],
    reason: str,
    asks: tuple[int, ...] = (),
    asks_for: Stage = "search",
) -> Replication:
    return Replication(repeat.serves, "open", trials, reason, asks=asks, asks_for=asks_for)


def _without_choice(repeat: Repeat, trials: tuple[PlannedTrial, ...], reason: str) -> Replication:
    return Replication(repeat.serves, "not tuned", trials, reason)


def _asks(search: SearchConfig, proposed: set[int], ended: set[int]) -> tuple[int, ...]:
    """The numbers of the next batch that nobody has proposed, once all earlier batches have ended."""
    first = search.batch * (min(set(range(search.trials)) - ended) // search.batch)
    batch = range(first, min(first + search.batch, search.trials))
    return tuple(n for n in batch if n not in proposed)


def _ranked(scores: Sequence[float | None], *, higher_is_better: bool) -> list[int]:
    """The numbers of the trials that have a score, the best first, equal ones in their order."""
    finished = {n: score for n, score in enumerate(scores) if score is not None and math.isfinite(score)}
    return sorted(finished, key=lambda n: -finished[n] if higher_is_better else finished[n])


def _race(
    arm: Arm,
    contenders: Sequence[_Runner],
    seeds: Sequence[int],
    results: Mapping[str, TrialResult],
    proposed: Mapping[int, Proposal],
    *,
    higher_is_better: bool,
) -> _Race:
    """Round by round; a contender that fails leaves."""
    left, trials = list(contenders), list[PlannedTrial]()
    for seed in seeds:
        round_of = {runner.number: _trial(arm, "race", runner.number, seed, proposed[runner.number]) for runner in left}
        trials += round_of.values()
        if any(trial.key not in results for trial in round_of.values()):
            return _Race(tuple(trials), tuple(left), open=True)
        scores = {n: results[trial.key].score for n, trial in round_of.items()}
        left = [
            _Runner(runner.number, (*runner.scores, score))
            for runner in left
            if (score := scores[runner.number]) is not None and math.isfinite(score)
        ]
        left.sort(key=lambda runner: -fmean(runner.scores) if higher_is_better else fmean(runner.scores))
        left = left[: -(-len(left) // 2)]
    return _Race(tuple(trials), tuple(left), open=False)


def _chosen(
    arm: Arm,
    repeat: Repeat,
    trials: tuple[PlannedTrial, ...],
    winner: _Runner,
    contenders: int,
    proposed: Mapping[int, Proposal],
) -> Replication:
    chosen = proposed[winner.number]
    how = "the best of the search, on one seed"
    if winner.scores:
        mean = f"a mean score of {fmean(winner.scores):.6g} over {len(winner.scores)} seeds of the race"
        how = f"the best of {contenders} contenders, with {mean}"
    return Replication(
        repeat.serves,
        "tuned",
        trials,
        f"trial {winner.number} is {how}",
        chosen.learning_rate,
        chosen.learning_rate / arm.centre,
        knobs=chosen.knobs,
        number=winner.number,
    )
