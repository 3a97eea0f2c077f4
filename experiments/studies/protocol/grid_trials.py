"""The trials of an arm at the points of its grid."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from experiments.studies.protocol.grid import Point
from experiments.studies.protocol.trials import TUNED, PlannedTrial, Stage
from experiments.studies.spec.arm import Arm


def grid_trials(
    arm: Arm, grid: Sequence[Point], seeds: Sequence[int], *, part: float = 1.0
) -> tuple[PlannedTrial, ...]:
    """Those of tuning, of which each trains `part` of its run's steps: the last, where it goes on from a rung."""
    return tuple(trial_at(arm, "tuning", (TUNED,), point, seed, part=part) for point in grid for seed in seeds)


def trial_at(
    arm: Arm,
    stage: Stage,
    settings: tuple[str, ...],
    point: Point,
    seed: int,
    *,
    thresholds: Mapping[int, float | None] = MappingProxyType({}),
    part: float = 1.0,
) -> PlannedTrial:
    """The trial of an arm at a point of its grid."""
    return PlannedTrial(
        f"{arm.config_hash}-{stage}-{point.name(arm)}-s{seed}",
        arm,
        stage,
        settings,
        seed,
        point.rate(arm),
        point.multiplier,
        arm.at(point.values),
        dict(thresholds),
        part,
    )
