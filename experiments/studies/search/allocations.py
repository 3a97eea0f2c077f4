"""Allocations of a budget to layers: those that are searched, each by an encoding, and those that baselines fix.

An encoding turns a few numbers into the ranks of all layers; the numbers are what a sampler proposes. A fixed
allocation has no numbers: its ranks are the same in every trial (or, of `random`, a draw of its own).
"""

import random
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from experiments.studies.search.budget import Budget, Ranks

GROUP_RANKS = (0, 1, 2, 4, 8, 16, 32, 64, 128)
LARGEST_PRIORITY = 4.0  # a layer's share is 2 to this power, up or down
LARGEST_POWER = 2.0  # of a sensitivity: 0 is uniform, 1 proportional
LARGEST_RESIDUAL = 2.0  # a group's share is moved by a factor of 2 to this power, up or down


class Interval(NamedTuple):
    """A knob's values: real numbers, or whole ones where both ends are; `log` where factors count."""

    low: float | int
    high: float | int
    log: bool = False


Space = dict[str, Interval]
Point = Mapping[str, float | int]


class Allocation(ABC):
    """From a point of a space to ranks under a budget."""

    may_exceed: ClassVar[bool] = False

    def __init__(self, budget: Budget) -> None:
        self.budget = budget

    @abstractmethod
    def space(self) -> Space:
        """The numbers that decide; empty where nothing is left to decide."""

    @abstractmethod
    def ranks(self, point: Point) -> Ranks:
        """The rank of every layer."""

    def excess(self, point: Point) -> int:
        """By how much a point goes beyond the budget; 1 for one that adapts nothing. Most encodings know neither."""
        if not self.may_exceed:
            return 0
        ranks = self.ranks(point)
        return max(0, self.budget.excess(ranks)) if any(ranks.values()) else 1


class Grouped(Allocation):
    """One rank for each group of layers: a kind of matrix in a block of the model's depth."""

    may_exceed: ClassVar[bool] = True

    def __init__(self, budget: Budget, groups: Mapping[str, Sequence[str]]) -> None:
        super().__init__(budget)
        self.groups = groups
        highest = max(budget.limits.values())
        self.steps = tuple(rank for rank in GROUP_RANKS if rank <= highest)

    def space(self) -> Space:
        return {f"rank.{group}": Interval(0, len(self.steps) - 1) for group in self.groups}

    def ranks(self, point: Point) -> Ranks:
        return {
            name: min(self.steps[int(point[f"rank.{group}"])], self.budget.limits[name])
            for group, names in self.groups.items()
            for name in names
        }


class Priority(Allocation):
    """One number a layer, the logarithm of its weight in a division that uses the budget up; all equal is uniform.

    As weights themselves, numbers of one interval hardly ever leave a layer without a rank, or give one most of them.
    """

    def space(self) -> Space:
        return {f"priority.{name}": Interval(-LARGEST_PRIORITY, LARGEST_PRIORITY) for name in self.budget.costs}

    def ranks(self, point: Point) -> Ranks:
        return self.budget.divided({name: 2.0 ** point[f"priority.{name}"] for name in self.budget.costs})


class Prior(Allocation):
    """Sensitivities to a power, times a factor for each group of layers, as weights of a division."""

    def __init__(self, budget: Budget, groups: Mapping[str, Sequence[str]], sensitivities: Mapping[str, float]) -> None:
        super().__init__(budget)
        self.groups, self.sensitivities = groups, sensitivities

    def space(self) -> Space:
        residual = Interval(-LARGEST_RESIDUAL, LARGEST_RESIDUAL)
        return {"power": Interval(0.0, LARGEST_POWER)} | {f"residual.{group}": residual for group in self.groups}

    def ranks(self, point: Point) -> Ranks:
        weights = {
            name: self.sensitivities[name] ** point["power"] * 2 ** point[f"residual.{group}"]
            for group, names in self.groups.items()
            for name in names
        }
        return self.budget.divided(weights)


class Fixed(Allocation):
    """Ranks that were settled before the search."""

    def __init__(self, budget: Budget, ranks: Mapping[str, int]) -> None:
        super().__init__(budget)
        budget.refuse(ranks)
        self._ranks = dict(ranks)

    def space(self) -> Space:
        return {}

    def ranks(self, point: Point) -> Ranks:
        return dict(self._ranks)


class Drawn(Allocation):
    """A draw for each trial, uniform over all divisions of the budget; `draw` in the point is its seed."""

    def space(self) -> Space:
        return {}

    def ranks(self, point: Point) -> Ranks:
        own = random.Random(int(point["draw"]))
        return self.budget.divided({name: own.expovariate(1.0) for name in self.budget.costs})


@dataclass(frozen=True)
class Grouping:
    """The groups of a model's layers: kind of matrix x block of the depth, `blocks` of them."""

    blocks: int

    def of(self, names: Iterable[str], places: Mapping[str, tuple[str, str]]) -> dict[str, list[str]]:
        """Group -> layers, given each layer's place (depth, kind)."""
        names = list(names)
        depths = sorted({places[name][0] for name in names}, key=lambda depth: (len(depth), depth))
        block = {depth: at * min(self.blocks, len(depths)) // len(depths) for at, depth in enumerate(depths)}
        found: dict[str, list[str]] = {}
        for name in names:
            depth, kind = places[name]
            found.setdefault(f"{kind}.{block[depth]}", []).append(name)
        return found
