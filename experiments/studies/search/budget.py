"""What ranks may cost together, and how shares of it become a rank for every layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

Unit = Literal["total_rank", "parameters"]
Shapes = Mapping[str, tuple[int, int]]
Ranks = dict[str, int]


@dataclass(frozen=True)
class Budget:
    """An amount to be spent on ranks of layers: `costs` is that of one rank, `limits` the highest rank of each."""

    unit: Unit
    amount: int
    costs: Mapping[str, int]
    limits: Mapping[str, int]

    @classmethod
    def of(cls, unit: Unit, amount: int, shapes: Shapes, *, highest_rank: int) -> Self:
        """For layers of these shapes (d_out, d_in); no layer gets more than `highest_rank`, nor than it can hold.

        Raises: ValueError for an amount that is not enough for a single rank, or that no ranks can use up.
        """
        costs = {name: sum(shape) if unit == "parameters" else 1 for name, shape in shapes.items()}
        limits = {name: min(highest_rank, *shape) for name, shape in shapes.items()}
        least, most = min(costs.values()), sum(costs[name] * limits[name] for name in shapes)
        if not least <= amount <= most:
            raise ValueError(
                f"a budget of {amount:,} ({unit}) is impossible: one rank in one of the {len(shapes)} layers takes "
                f"{least:,}, and all of them at their highest (at most {highest_rank}) take {most:,}"
            )
        return cls(unit, amount, costs, limits)

    def spent(self, ranks: Mapping[str, int]) -> int:
        return sum(self.costs[name] * rank for name, rank in ranks.items())

    def excess(self, ranks: Mapping[str, int]) -> int:
        """By how much ranks go beyond the amount; 0 or less where they do not."""
        return self.spent(ranks) - self.amount

    def refuse(self, ranks: Mapping[str, int]) -> None:
        """Raises: ValueError for ranks that go beyond the amount or beyond what a layer may have."""
        if self.excess(ranks) > 0:
            raise ValueError(
                f"ranks that take {self.spent(ranks):,} ({self.unit}) exceed the budget of {self.amount:,}"
            )
        for name, rank in ranks.items():
            if not 0 <= rank <= self.limits[name]:
                raise ValueError(f"rank {rank} of {name} is not in 0 ... {self.limits[name]}")

    def divided(self, weights: Mapping[str, float]) -> Ranks:
        """Ranks in proportion to the weights that use the amount up: no further rank would fit.

        A layer of weight 0 gets none, whatever is left; one at its limit leaves its share to the others. What
        rounding down leaves goes to the largest remainders, equal ones in the order of the layers.
        """
        targets = self._proportional({name: weight for name, weight in weights.items() if weight > 0})
        ranks = {name: min(self.limits[name], int(targets.get(name, 0.0) + 1e-9)) for name in self.costs}
        left = self.amount - self.spent(ranks)
        while left > 0:
            fitting = [name for name in targets if ranks[name] < self.limits[name] and self.costs[name] <= left]
            if not fitting:
                break
            chosen = max(fitting, key=lambda name: targets[name] - ranks[name])
            ranks[chosen] += 1
            left -= self.costs[chosen]
        return ranks

    def chosen(self, values: Mapping[str, list[float]]) -> Ranks:
        """The ranks of the directions with the highest value per cost, taken one by one while they fit.

        `values` are those of each layer's directions, highest first; equal ones go in the order of the layers.
        """
        order = sorted(
            ((value / self.costs[name], place, -at, name) for at, (name, found) in enumerate(values.items())
             for place, value in ((-i, v) for i, v in enumerate(found))),
            reverse=True,
        )  # fmt: skip
        ranks, left = dict.fromkeys(self.costs, 0), self.amount
        for value, _, _, name in order:
            if value > 0 and ranks[name] < self.limits[name] and self.costs[name] <= left:
                ranks[name] += 1
                left -= self.costs[name]
        return ranks

    def _proportional(self, weights: Mapping[str, float]) -> dict[str, float]:
        """Ranks as real numbers: shares of the amount, where a layer that would exceed its limit stays at it."""
        free, left = dict(weights), float(self.amount)
        targets: dict[str, float] = {}
        while free:
            total = sum(weight * self.costs[name] for name, weight in free.items())
            shares = {name: left * (weight / total) for name, weight in free.items()}  # tiny weights overflow otherwise
            full = [name for name, share in shares.items() if share >= self.limits[name]]
            if not full:
                return targets | shares
            for name in full:
                targets[name] = float(self.limits[name])
                left -= self.costs[name] * self.limits[name]
                del free[name]
        return targets
