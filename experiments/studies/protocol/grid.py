"""The points that an arm is tuned over: learning rates, each with each value of the other knobs of the grid."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from experiments.studies.spec.arm import Arm
from experiments.studies.spec.tuning_config import GridConfig, combinations, rounded


@dataclass(frozen=True)
class Point:
    """A learning rate, as a multiple of the arm's own, with values of the grid's other knobs that the arm has."""

    multiplier: float
    values: Mapping[str, float] = field(default_factory=dict, hash=False)

    def rate(self, arm: Arm) -> float:
        return rounded(arm.centre * self.multiplier)

    def name(self, arm: Arm) -> str:
        """'lr0.005', 'lr0.005-alpha_per_rank8': what tells its trials from those of other points."""
        return "-".join([f"lr{self.rate(arm):.6g}", *(f"{name}{value:.6g}" for name, value in self.values.items())])


def points_of(arm: Arm, grid: GridConfig) -> tuple[Point, ...]:
    """As many for every arm: one that lacks a knob has as many more rates, evenly spaced over the same range."""
    tunes = type(arm.config.variant).tuned_knobs
    values = combinations({name: values for name, values in grid.knobs.items() if name in tunes})
    multipliers = rates_of(grid, grid.size // len(values))
    return tuple(Point(multiplier, each) for each in values for multiplier in multipliers)


def rates_of(grid: GridConfig, count: int) -> Sequence[float]:
    """The grid's multipliers in ascending order or, where more are asked for, so many of equal ratio."""
    given = sorted(grid.learning_rate_multipliers)
    if count == len(given):
        return given
    return [rounded(rate) for rate in np.geomspace(given[0], given[-1], count).tolist()]


def ratios_beyond(grid: GridConfig) -> tuple[float, float]:
    """The ratios of points below the lowest rate and above the highest: of the grid's last two there, for every arm."""
    given = sorted(grid.learning_rate_multipliers)
    return given[0] / given[1], given[-1] / given[-2]


def centre_of(points: Sequence[Point]) -> Point:
    """The one nearest to the arm's own learning rate, the first of its grid's other values."""
    return min(points, key=lambda point: abs(math.log(point.multiplier)))
