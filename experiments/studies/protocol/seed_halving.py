"""Halving inside a seed: the points of its grid train to a rung, and the best of them on validation train on.

A seed looks at nothing but its own runs, so that seeds stay independent replications. At half of a falling schedule
lower rates lead, which is why no fewer than three of five points may go on.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.studies.protocol.grid import Point
from experiments.studies.protocol.grid_trials import trial_at
from experiments.studies.protocol.trials import TUNED, PlannedTrial, TrialResult
from experiments.studies.spec.arm import Arm
from experiments.studies.spec.tuning_config import HalvedGridConfig


@dataclass(frozen=True)
class Rung:
    """The step at which the points of a seed are scored, and the part of them that goes on."""

    step: int
    keep: float
    higher_is_better: bool

    @property
    def unreachable(self) -> float:
        """The score with which a trial would go on by itself: it waits for the others of its seed."""
        return math.inf if self.higher_is_better else -math.inf


def rung_of(arm: Arm, halving: HalvedGridConfig | None, *, higher_is_better: bool) -> Rung | None:
    """None where the grid is not halved, or has no step at which it could be."""
    steps = arm.config.training.steps
    if halving is None or steps < 2:
        return None
    return Rung(min(steps - 1, max(1, round(halving.after * steps))), halving.keep, higher_is_better)


def rung_trials(arm: Arm, grid: Sequence[Point], seeds: Sequence[int], rung: Rung) -> tuple[PlannedTrial, ...]:
    """The first part of every run; the run itself goes on from there."""
    thresholds, part = {rung.step: rung.unreachable}, rung.step / arm.config.training.steps
    return tuple(
        trial_at(arm, "rung", (TUNED,), point, seed, thresholds=thresholds, part=part)
        for point in grid
        for seed in seeds
    )


@dataclass(frozen=True)
class AtRung:
    """What became of a seed's points at the rung: those that train on, and why others have no score there."""

    kept: tuple[Point, ...]  # in the grid's order
    failed: Mapping[Point, str]
    alike: bool  # whether all that have a score have the same one


def at_rung(
    arm: Arm, grid: Sequence[Point], seeds: Sequence[int], rung: Rung, results: Mapping[str, TrialResult]
) -> AtRung | None:
    """None while a trial has not reached the rung.

    All points train on where a run did not stop there: it had been trained before, or trains nothing.
    """
    reached: dict[Point, float] = {}
    failed: dict[Point, str] = {}
    for point in grid:
        keys = [trial.key for trial in rung_trials(arm, [point], seeds, rung)]
        if any(key not in results for key in keys):
            return None
        ended = [results[key] for key in keys]
        if any(not result.failed and rung.step not in result.reached and result.score is not None for result in ended):
            return AtRung(tuple(grid), {}, alike=True)
        scores = [result.reached.get(rung.step, math.nan) for result in ended if not result.failed]
        mean = sum(scores) / len(scores) if len(scores) == len(ended) else math.nan
        if math.isfinite(mean):
            reached[point] = mean if rung.higher_is_better else -mean
        else:
            failed[point] = next((result.reason for result in ended if result.reason), "not finite at the rung")
    best = sorted(reached, key=lambda point: -reached[point])[: math.ceil(rung.keep * len(grid))]
    return AtRung(tuple(point for point in grid if point in best), failed, alike=len({*reached.values()}) == 1)
