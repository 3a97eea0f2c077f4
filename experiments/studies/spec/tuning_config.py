"""How an arm's points are chosen: the grid of a tuning, halving inside a seed, and who shares a choice."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise, product
from typing import Annotated, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from experiments.config.schema import Rate, Section
from experiments.studies.spec.evaluation_config import Seed, distinct_seeds

CLOSEST = 1.01
MULTIPLIERS = [0.25, 0.5, 1.0, 2.0, 4.0]
TUNING_SEEDS = [100, 101]


def rounded(rate: float) -> float:
    """A learning rate to six digits, as the name of a trial has it: rates that differ less are one rate."""
    return float(f"{rate:.6g}")


def each_once(values: list[float]) -> list[float]:
    """Raises: ValueError for a value that is there twice."""
    twice = [f"{value:g}" for value, count in Counter(map(rounded, values)).items() if count > 1]
    if twice:
        raise ValueError(f"duplicate values (to six digits): {', '.join(twice)}; give each once")
    return values


def _apart(multipliers: list[float]) -> list[float]:
    for lower, higher in pairwise(sorted(multipliers)):
        if higher < lower * CLOSEST:
            raise ValueError(
                f"two rates of the grid are a factor of {CLOSEST:g} apart or more; got {lower:g} and {higher:g}"
            )
    return multipliers


Multipliers = Annotated[list[Rate], Field(min_length=2), AfterValidator(_apart)]
Knob = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2), AfterValidator(each_once)]


class GridConfig(Section):
    """The points that every arm is tuned over: each rate with each value of the other knobs."""

    learning_rate_multipliers: Multipliers = Field(
        MULTIPLIERS,
        description="learning rates that are tried, in units of the arm's own (training.learning_rate); a best one at "
        "an end of the grid extends it once, by two further points",
    )
    alpha_per_rank: Knob | None = Field(
        None, description="scalings that are tried, in LoRA's unit; an arm without such a knob gets more rates instead"
    )
    learning_rate_ratio: Knob | None = Field(
        None, description="λ of LoRA+ that are tried; an arm without that knob gets more rates instead"
    )

    @property
    def knobs(self) -> dict[str, list[float]]:
        """The values of each knob beside the rate, ascending."""
        values = {name: getattr(self, name) for name in type(self).model_fields if name != "learning_rate_multipliers"}
        return {name: sorted(found) for name, found in values.items() if found is not None}

    @property
    def size(self) -> int:
        """How many points every arm has."""
        return math.prod(map(len, (self.learning_rate_multipliers, *self.knobs.values())))


def combinations(knobs: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """Every combination of the values of knobs; one without any where there is no knob."""
    return [dict(zip(knobs, values, strict=True)) for values in product(*knobs.values())]


LEAST_KEPT = 0.6


class HalvedGridConfig(Section):
    """Halving inside a seed: its points train to a rung, and the best of them on validation train on."""

    keep: float = Field(
        0.6, gt=0, lt=1, description="part of the points that train on; below 0.6 low rates win, which lead half way"
    )
    after: float = Field(0.5, gt=0, lt=1, description="part of its steps after which a point is scored on validation")

    @field_validator("keep")
    @classmethod
    def _most(cls, keep: float) -> float:
        if keep < LEAST_KEPT:
            raise ValueError(
                f"{keep:g} is below {LEAST_KEPT:g}: half way through a falling schedule low rates lead, so that fewer "
                "points bend the choice to them; keep more"
            )
        return keep


class TuningConfig(Section):
    """How an arm's points are chosen, on the validation split: by each evaluation seed for itself, or by one for all.

    With a search, the seeds are those of the search and its races.
    """

    shared: bool = Field(
        False,
        description="choose one point for all evaluation seeds, on seeds of its own: the verdicts are then of the "
        "chosen points, not of the methods, and forget the noise of tuning",
    )
    grid: GridConfig = GridConfig()  # type: ignore[call-arg]
    halving: HalvedGridConfig | None = Field(None, description="null: every point of a seed is trained to its end")
    learning_rate_multipliers: Multipliers | None = Field(
        None, description="the grid's, where tuning is shared or there is a search"
    )
    seeds: list[Seed] | None = Field(
        None,
        min_length=1,
        description="seeds of the trials at each point, where tuning is shared or there is a search "
        "(default: 100 and 101)",
    )

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int] | None) -> list[int] | None:
        return seeds if seeds is None else distinct_seeds(seeds)

    @model_validator(mode="after")
    def _one_grid(self) -> Self:
        if self.learning_rate_multipliers is not None and self.grid.learning_rate_multipliers != MULTIPLIERS:
            raise ValueError("give learning_rate_multipliers in grid or beside it, not both")
        if self.halving is not None and math.ceil(self.halving.keep * self.points.size - 1e-9) == self.points.size:
            raise ValueError(
                f"halving.keep {self.halving.keep:g} keeps all {self.points.size} points of the grid, which saves "
                "nothing: leave halving out, or try more points"
            )
        return self

    @property
    def points(self) -> GridConfig:
        """The grid, wherever its rates are given."""
        given = self.learning_rate_multipliers
        return self.grid if given is None else self.grid.model_copy(update={"learning_rate_multipliers": given})

    @property
    def own_seeds(self) -> list[int]:
        """Those of a tuning that is shared, or of a search."""
        return TUNING_SEEDS if self.seeds is None else self.seeds
