"""What verdicts are made of: test scores of so many seeds, looked at once or as they come in."""

from collections import Counter
from itertools import pairwise
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from analysis.stats.paired_scores import FEWEST_PAIRS
from experiments.config.schema import Section
from experiments.config.shown import shown
from lora_variants.interface.config import Seed as RunSeed

Seed = Annotated[RunSeed, Field(le=2**53)]  # the queue keeps it as a float
LOOKS = [5, 8, 12, 20]
FIXED_SEEDS = list(range(8))
MOST_SEEDS = 10_000


def distinct_seeds(seeds: list[int]) -> list[int]:
    """Raises: ValueError for a seed that is there twice."""
    twice = [str(seed) for seed, count in Counter(seeds).items() if count > 1]
    if twice:
        raise ValueError(f"duplicate values: {shown(', '.join(twice))}; give each once")
    return seeds


class EvaluationConfig(Section):
    """What the verdicts are made of: test scores at the points that tuning chose."""

    seeds: list[Seed] = Field(
        list(range(LOOKS[-1])),
        min_length=1,
        description="each is a replication of the whole comparison, unless tuning is shared; arms are paired by them, "
        "and a verdict needs five; default: as many as the last look wants, from 0 on",
    )
    looks: list[Annotated[int, Field(ge=1, le=MOST_SEEDS)]] = Field(
        LOOKS,
        min_length=1,
        description="numbers of seeds after which the verdicts are looked at: an arm goes on to the next while a "
        "comparison of it has no word; default: 5, 8, 12, 20 or, where seeds are given, once after all of them",
    )

    @model_validator(mode="before")
    @classmethod
    def _one_by_the_other(cls, given: Any) -> Any:
        if isinstance(given, dict) and isinstance(given.get("seeds"), list) and "looks" not in given:
            return given | {"looks": [max(1, len(given["seeds"]))]}
        looks = given.get("looks") if isinstance(given, dict) else None
        if isinstance(looks, list) and "seeds" not in given and all(type(look) is int for look in looks):
            return given | {"seeds": list(range(min(max(looks, default=0), MOST_SEEDS)))}
        return given

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        return distinct_seeds(seeds)

    @model_validator(mode="after")
    def _looks_fit(self) -> Self:
        if any(later <= earlier for earlier, later in pairwise(self.looks)):
            raise ValueError(f"looks: each is after more seeds than the one before; got {self.looks}")
        if self.looks[-1] != len(self.seeds):
            raise ValueError(
                f"looks: the last is after all {len(self.seeds)} seeds; got {self.looks[-1]}: give as many seeds, or "
                "one of the two alone, as in --set 'protocol.evaluation={seeds: [...]}'"
            )
        if len(self.looks) > 1 and self.looks[0] < FEWEST_PAIRS:
            raise ValueError(f"looks: a word needs {FEWEST_PAIRS} seeds; got {self.looks[0]}")
        return self

    def at_look(self, seeds: int) -> Self:
        """The same with the first so many seeds."""
        first = self.seeds[:seeds]
        return self.model_copy(update={"seeds": first, "looks": [look for look in self.looks if look <= seeds]})
