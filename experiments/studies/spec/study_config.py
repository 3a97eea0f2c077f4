"""The file of a study: which configurations are compared, and by which protocol."""

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from experiments.config.schema import Rate, Section
from experiments.config.shown import shown
from experiments.studies.spec.search_config import SearchConfig
from lora_variants.interface.config import Seed as RunSeed

MOST_ARMS = 2_000
MOST_TRIALS = 100_000
Seed = Annotated[RunSeed, Field(le=2**53)]  # the queue keeps it as a float
CLOSEST = 1.01


def rounded(rate: float) -> float:
    """A learning rate to six digits, as the name of a trial has it: rates that differ less are one rate."""
    return float(f"{rate:.6g}")


def _each_once(values: Sequence[float]) -> None:
    twice = [f"{value:g}" for value, count in Counter(map(rounded, values)).items() if count > 1]
    if twice:
        raise ValueError(f"duplicate values (to six digits): {', '.join(twice)}; give each once")


def _distinct_seeds(seeds: list[int]) -> list[int]:
    twice = [str(seed) for seed, count in Counter(seeds).items() if count > 1]
    if twice:
        raise ValueError(f"duplicate values: {shown(', '.join(twice))}; give each once")
    return seeds


class TuningConfig(Section):
    """Stage 1, on the validation split: every arm gets the same trials."""

    learning_rate_multipliers: list[Rate] = Field(
        [0.25, 0.5, 1, 2, 4],
        min_length=2,
        description="learning rates that are tried, in units of the arm's own (training.learning_rate); a best one at "
        "an end of the grid extends it once, by two further points",
    )
    seeds: list[Seed] = Field([100, 101], min_length=1, description="seeds of the trials at each rate")

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        return _distinct_seeds(seeds)

    @field_validator("learning_rate_multipliers")
    @classmethod
    def _apart(cls, multipliers: list[float]) -> list[float]:
        for lower, higher in pairwise(sorted(multipliers)):
            if higher < lower * CLOSEST:
                raise ValueError(
                    f"two rates of the grid are a factor of {CLOSEST:g} apart or more; got {lower:g} and {higher:g}"
                )
        return multipliers


class EvaluationConfig(Section):
    """Stage 2, on the test split: every arm at the rate that stage 1 chose."""

    seeds: list[Seed] = Field(
        list(range(8)), min_length=1, description="fresh seeds; arms are paired by them, and a verdict needs five"
    )

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        return _distinct_seeds(seeds)


class ProtocolConfig(Section):
    """How arms are tuned, evaluated and compared; settled before the first evaluation."""

    tuning: TuningConfig = TuningConfig()  # type: ignore[call-arg]
    evaluation: EvaluationConfig = EvaluationConfig()  # type: ignore[call-arg]
    fixed_learning_rates: list[Rate] = Field(
        [], description="rates at which every arm is evaluated too, untuned; each is compared in a family of its own"
    )
    reference: dict[str, Any] = Field(
        {"variant": "lora"},
        min_length=1,
        description="the arms that the others are compared with, by keys of arms or by {label: ...}; another arm is "
        "compared with those that agree with it on all other keys that both have, or with the one of that label",
    )
    margin: float = Field(gt=0, description="differences within ± this are equivalent; in units of the score")
    alpha: float = Field(0.05, gt=0, lt=1, description="family-wise error rate of the verdicts")

    @field_validator("fixed_learning_rates")
    @classmethod
    def _distinct(cls, rates: list[float]) -> list[float]:
        _each_once(rates)
        return rates

    @model_validator(mode="after")
    def _fresh_seeds(self) -> Self:
        shared = sorted({*self.tuning.seeds} & {*self.evaluation.seeds})
        if shared:
            raise ValueError(
                f"evaluation needs fresh seeds: {', '.join(map(str, shared[:10]))} of evaluation.seeds would be a "
                "rate's own tuning seed; take others for tuning.seeds"
            )
        return self


class StudyConfig(Section):
    """Everything that a study depends on, apart from the run configuration that its arms vary."""

    name: str = Field(pattern=r"^\w[\w.-]*$", max_length=200, description="folder below the runs folder, and W&B group")
    config: str = Field(min_length=1, description="the run configuration that the arms vary, relative to this file")
    set: dict[str, Any] = Field(
        {}, description="knobs of that configuration for all arms: key -> value, by path or unique last name"
    )
    arms: list[dict[str, Any]] = Field(
        min_length=1,
        description="maps from key (variant, rank, any knob) to a value or a list of values; lists multiply out, so "
        "a knob that is itself a list needs a list of lists; `label` names a single arm",
    )
    search: SearchConfig | None = Field(
        None, description="stage 1 as a search of ranks under a budget: every arm names an `allocation`"
    )
    protocol: ProtocolConfig

    @model_validator(mode="after")
    def _one_stage_1(self) -> Self:
        if self.search is not None and self.protocol.fixed_learning_rates:
            raise ValueError("protocol.fixed_learning_rates: an arm that is searched has no fixed rate; leave it out")
        return self
