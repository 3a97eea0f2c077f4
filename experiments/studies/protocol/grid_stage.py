"""Tuning over a grid of points: the choice of a point by the results on validation, once or seed by seed.

Every point of the grid is tried with every seed of the replication: one where each evaluation seed is tuned by its own
runs, all tuning seeds where tuning is shared. The best point has the best mean score among those at which no seed
failed (a failure is never a score); ties go to the lower mean loss, then to the smaller rate and the smaller knobs. A
best rate at an end of the grid, at the chosen other knobs, extends the grid once on that side, by two points with the
ratio of the last two of the study's grid there, whatever rates the arm has; still at an end, the replication is `not
tuned`. A higher rate that failed is an end that was seen, for training diverges there; a lower one is not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

from experiments.studies.protocol.grid import Point, centre_of
from experiments.studies.protocol.grid_trials import grid_trials
from experiments.studies.protocol.seed_halving import AtRung, Rung, at_rung, rung_trials
from experiments.studies.protocol.trials import PlannedTrial, Replication, Side, TrialResult
from experiments.studies.spec.arm import Arm
from experiments.studies.spec.tuning_config import rounded

POINTS_ADDED = 2


@dataclass(frozen=True)
class PointResult:
    """A point whose trials have all ended; without scores where one failed, or where it did not pass its rung."""

    point: Point
    rate: float
    scores: tuple[float, ...]  # of each seed
    losses: tuple[float, ...]
    failure: str | None

    def merit(self, *, higher_is_better: bool) -> tuple[float, ...]:
        """The better point has the greater one."""
        score = fmean(self.scores)
        smaller = (-self.rate, *(-value for value in self.point.values.values()))
        return (score if higher_is_better else -score, -fmean(self.losses), *smaller)


def replication_of(
    arm: Arm,
    grid: Sequence[Point],
    results: Mapping[str, TrialResult],
    *,
    seeds: Sequence[int],
    serves: Sequence[int],
    ratios: tuple[float, float],
    higher_is_better: bool,
    rung: Rung | None = None,
) -> Replication:
    """Tuning on `seeds`, for the evaluation seeds that it `serves`, as far as the results go.

    `ratios`: those of points below the grid and above it.
    With a `rung`, the points that are not among the best there were seen, and are not chosen; one that failed there
    has failed.
    """
    served, before = tuple(serves), tuple[PlannedTrial, ...]()
    there: AtRung | None = AtRung(tuple(grid), {}, alike=True)
    if rung is not None:
        before = rung_trials(arm, grid, seeds, rung)
        there = at_rung(arm, grid, seeds, rung, results)
    if there is None:
        return Replication(served, "open", before, "trials up to the rung are pending")
    rest = 1 - before[0].part if before else 1.0
    trials = (*before, *grid_trials(arm, there.kept, seeds, part=rest))
    tried = tried_points(arm, there.kept, seeds, results)
    if tried is None:
        return Replication(served, "open", trials, "trials of the grid are pending")
    lost = [point for point in grid if point not in there.kept]
    tried += [PointResult(point, point.rate(arm), (), (), there.failed.get(point)) for point in lost]
    if there.alike and _without_effect(tried):
        reason = "the learning rate has no effect: all scores and losses are equal"
        return _chosen(arm, served, "tuned", trials, centre_of(grid), reason)
    best = best_of(tried, higher_is_better=higher_is_better)
    if best is None:
        failure = next(each.failure for each in tried if each.failure)
        return Replication(served, "not tuned", trials, f"every point failed: {failure}")
    side = _end(tried, best)
    if side is None:
        return _chosen(arm, served, "tuned", trials, best.point, _describe(tried, best))
    ends = [each.point for each in _slice(tried, best)]
    added = _beyond(ends[-1], ratios[1]) if side == "higher" else _beyond(ends[0], ratios[0])
    trials = (*trials, *grid_trials(arm, added, seeds))
    beyond = " and ".join(f"{point.rate(arm):g}" for point in added)
    more = tried_points(arm, added, seeds, results)
    if more is None:
        reason = f"the best rate was {best.rate:g}, the {side[:-2]}est of the grid: it goes on to {beyond}"
        return Replication(served, "open", trials, reason, added=added, side=side)
    best = best_of([*tried, *more], higher_is_better=higher_is_better)
    assert best is not None  # there was one before more points came
    state: Literal["tuned", "not tuned"] = "not tuned" if _end([*tried, *more], best) else "tuned"
    reason = f"after the grid was extended to {beyond}: {_describe([*tried, *more], best)}"
    return replace(_chosen(arm, served, state, trials, best.point, reason), added=added, side=side)


def tried_points(
    arm: Arm, grid: Sequence[Point], seeds: Sequence[int], results: Mapping[str, TrialResult]
) -> list[PointResult] | None:
    """The grid's points in its order; None while a trial has no result."""
    found = []
    for point in grid:
        keys = [trial.key for trial in grid_trials(arm, [point], seeds)]
        if any(key not in results for key in keys):
            return None
        found.append(_tried(point, point.rate(arm), [results[key] for key in keys]))
    return found


def best_of(tried: Sequence[PointResult], *, higher_is_better: bool) -> PointResult | None:
    """None where every point failed."""
    finished = [each for each in tried if each.scores]
    return max(finished, key=lambda each: each.merit(higher_is_better=higher_is_better), default=None)


def _tried(point: Point, rate: float, results: Sequence[TrialResult]) -> PointResult:
    scores: list[float] = []
    losses: list[float] = []
    for result in results:
        if result.failed or result.score is None or not math.isfinite(result.score):
            return PointResult(point, rate, (), (), result.reason or "no finite score")
        scores.append(result.score)
        losses.append(math.inf if result.loss is None or math.isnan(result.loss) else result.loss)
    return PointResult(point, rate, tuple(scores), tuple(losses), None)


def _chosen(
    arm: Arm,
    seeds: tuple[int, ...],
    state: Literal["tuned", "not tuned"],
    trials: tuple[PlannedTrial, ...],
    point: Point,
    reason: str,
) -> Replication:
    rate, knobs = point.rate(arm), arm.at(point.values)
    return Replication(seeds, state, trials, reason, rate, point.multiplier, knobs=knobs, values=point.values)


def _without_effect(tried: Sequence[PointResult]) -> bool:
    """Whether every point gave the same scores and losses, seed by seed."""
    found = {(each.scores, each.losses) for each in tried if each.scores or each.failure}
    return len(found) == 1 and bool(tried[0].scores)


def _slice(tried: Sequence[PointResult], best: PointResult) -> list[PointResult]:
    """The points that have the best one's other knobs, by ascending rate."""
    return sorted((each for each in tried if each.point.values == best.point.values), key=lambda each: each.rate)


def _end(tried: Sequence[PointResult], best: PointResult) -> Side | None:
    """The side on which nothing bounds the best rate: no higher one tried, or no lower one finished."""
    alike = _slice(tried, best)
    if best.rate == alike[-1].rate:
        return "higher"
    return None if any(each.failure is None and each.rate < best.rate for each in alike) else "lower"


def _beyond(end: Point, ratio: float) -> tuple[Point, ...]:
    """The points that extend the grid from its end, at the same other knobs."""
    return tuple(Point(rounded(end.multiplier * ratio**step), end.values) for step in range(1, POINTS_ADDED + 1))


def _describe(tried: Sequence[PointResult], best: PointResult) -> str:
    """Where the best point lies, and which points failed."""
    alike, side = _slice(tried, best), _end(tried, best)
    if side == "higher":
        where = "the highest tried"
    elif side == "lower":
        where = "the lowest that finished"
    else:
        above = next(each for each in alike if each.rate > best.rate)
        below = max(each.rate for each in alike if each.rate < best.rate and each.failure is None)
        where = f"between {below:g} and {above.rate:g}" + (", which failed" if above.failure else "")
    failed = [f"{_words(each)} ({each.failure})" for each in tried if each.failure]
    text = (
        f"the best rate is {best.rate:g}, {where}{_at_ends(tried, best)}, with a mean score of {fmean(best.scores):.6g}"
    )
    return text + (f"; failed: {', '.join(failed)}" if failed else "")


def _words(tried: PointResult) -> str:
    return " ".join([f"{tried.rate:g}", *(f"{name}={value:g}" for name, value in tried.point.values.items())])


def _at_ends(tried: Sequence[PointResult], best: PointResult) -> str:
    """The best point's other knobs, and which of them lie at an end of their grid."""
    text = ""
    for name, value in best.point.values.items():
        grid = [each.point.values[name] for each in tried]
        end = (
            "the highest of its grid" if value == max(grid) else "the lowest of its grid" if value == min(grid) else ""
        )
        text += f", {name} {value:g}" + (f" ({end})" if end else "")
    return text
