"""Stage 1 of an arm over a grid of learning rates: the choice of a rate by the results on the tuning seeds.

Every rate of the grid is tried with every tuning seed, on validation. The best rate has the best mean score
among those at which no seed failed (a failure is never a score); ties go to the lower mean loss, then to the smaller
rate. A best rate at an end of the grid extends the grid once on that side, by two points with the ratio of its last
two; still at an end, the arm is `not tuned`: it is evaluated, and excluded from verdicts. A higher rate that failed is
an end that was seen, for training diverges there; a lower one is not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from experiments.studies.protocol.trials import TUNED, PlannedTrial, Side, Stage, TrialResult, Tuning
from experiments.studies.spec.arms import Arm
from experiments.studies.spec.study_config import ProtocolConfig, rounded

POINTS_ADDED = 2


@dataclass(frozen=True)
class _Point:
    """A rate of the grid whose trials have all ended; without means where one failed."""

    multiplier: float
    rate: float
    scores: tuple[float, ...]  # of each seed, in the protocol's order
    losses: tuple[float, ...]
    failure: str | None

    def merit(self, *, higher_is_better: bool) -> tuple[float, float, float]:
        """The better point has the greater one."""
        score = fmean(self.scores)
        return (score if higher_is_better else -score, -fmean(self.losses), -self.rate)


def tuning_of(
    arm: Arm, protocol: ProtocolConfig, results: Mapping[str, TrialResult], *, higher_is_better: bool
) -> Tuning:
    """Stage 1 of an arm, as far as the results go."""
    grid = sorted(protocol.tuning.learning_rate_multipliers)
    trials = grid_trials(arm, protocol, grid)
    points = _points(trials, results)
    if points is None:
        return Tuning("open", trials, None, None, (), None, "trials of the grid are pending")
    if _without_effect(points):
        centre = min(points, key=lambda point: abs(math.log(point.multiplier)))
        reason = "the learning rate has no effect: all scores and losses are equal"
        return Tuning("tuned", trials, centre.rate, centre.multiplier, (), None, reason)
    best = _best(points, higher_is_better=higher_is_better)
    if best is None:
        return Tuning("not tuned", trials, None, None, (), None, f"every rate failed: {points[0].failure}")
    side = _end(points, best)
    if side is None:
        return Tuning("tuned", trials, best.rate, best.multiplier, (), None, _describe(points, best))
    added = _beyond(grid, side)
    trials = (*trials, *grid_trials(arm, protocol, added))
    points = _points(trials, results)
    if points is None:
        reason = f"the best rate was {best.rate:g}, the {side[:-2]}est of the grid: it goes on to {_rates(arm, added)}"
        return Tuning("open", trials, None, None, added, side, reason)
    best = _best(points, higher_is_better=higher_is_better)
    assert best is not None  # there was one before more points came
    end = _end(points, best)
    reason = f"after the grid was extended to {_rates(arm, added)}: {_describe(points, best)}"
    return Tuning("not tuned" if end else "tuned", trials, best.rate, best.multiplier, added, side, reason)


def grid_trials(arm: Arm, protocol: ProtocolConfig, multipliers: Sequence[float]) -> tuple[PlannedTrial, ...]:
    return tuple(
        planned_trial(arm, "tuning", (TUNED,), seed, rounded(arm.centre * multiplier), multiplier)
        for multiplier in multipliers
        for seed in protocol.tuning.seeds
    )


def planned_trial(
    arm: Arm, stage: Stage, settings: tuple[str, ...], seed: int, rate: float, multiplier: float | None
) -> PlannedTrial:
    return PlannedTrial(f"{arm.config_hash}-{stage}-lr{rate:.6g}-s{seed}", arm, stage, settings, seed, rate, multiplier)


def _rates(arm: Arm, multipliers: Sequence[float]) -> str:
    return " and ".join(f"{rounded(arm.centre * multiplier):g}" for multiplier in multipliers)


def _points(trials: Sequence[PlannedTrial], results: Mapping[str, TrialResult]) -> list[_Point] | None:
    """The grid's rates in ascending order; None while a trial has no result."""
    ended: dict[float, list[TrialResult]] = {}
    at: dict[float, float] = {}
    for trial in trials:
        if trial.key not in results:
            return None
        assert trial.multiplier is not None  # the grid's have one
        assert trial.learning_rate is not None
        ended.setdefault(trial.multiplier, []).append(results[trial.key])
        at[trial.multiplier] = trial.learning_rate
    return [_point(multiplier, at[multiplier], ended[multiplier]) for multiplier in sorted(ended)]


def _point(multiplier: float, rate: float, results: Sequence[TrialResult]) -> _Point:
    scores: list[float] = []
    losses: list[float] = []
    for result in results:
        if result.failed or result.score is None or not math.isfinite(result.score):
            return _Point(multiplier, rate, (), (), result.reason or "no finite score")
        scores.append(result.score)
        losses.append(math.inf if result.loss is None or math.isnan(result.loss) else result.loss)
    return _Point(multiplier, rate, tuple(scores), tuple(losses), None)


def _without_effect(points: Sequence[_Point]) -> bool:
    """Whether every rate gave the same scores and losses, seed by seed."""
    return bool(points[0].scores) and len({(point.scores, point.losses) for point in points}) == 1


def _best(points: Sequence[_Point], *, higher_is_better: bool) -> _Point | None:
    finished = [point for point in points if point.failure is None]
    return max(finished, key=lambda point: point.merit(higher_is_better=higher_is_better), default=None)


def _end(points: Sequence[_Point], best: _Point) -> Side | None:
    """The side on which nothing bounds the best rate: no higher one tried, or no lower one finished."""
    if best.rate == points[-1].rate:
        return "higher"
    return None if any(point.failure is None and point.rate < best.rate for point in points) else "lower"


def _beyond(grid: Sequence[float], side: Side) -> tuple[float, ...]:
    """The multipliers that extend an ascending grid, in steps of the ratio of its last two on that side."""
    end, before = (grid[-1], grid[-2]) if side == "higher" else (grid[0], grid[1])
    return tuple(rounded(end * (end / before) ** step) for step in range(1, POINTS_ADDED + 1))


def _describe(points: Sequence[_Point], best: _Point) -> str:
    """Where the best rate lies, and which rates failed."""
    side = _end(points, best)
    above = next((point for point in points if point.rate > best.rate), None)
    if side == "higher":
        where = "the highest tried"
    elif side == "lower":
        where = "the lowest that finished"
    else:
        assert above is not None  # else the best would be the highest
        below = max(point.rate for point in points if point.rate < best.rate and point.failure is None)
        where = f"between {below:g} and {above.rate:g}" + (", which failed" if above.failure else "")
    failed = [f"{point.rate:g} ({point.failure})" for point in points if point.failure]
    text = f"the best rate is {best.rate:g}, {where}, with a mean score of {fmean(best.scores):.6g}"
    return text + (f"; failed: {', '.join(failed)}" if failed else "")
