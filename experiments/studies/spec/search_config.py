"""The search of a study: what its arms are allowed to spend on ranks, and how the best of each is looked for."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import Field, field_validator, model_validator

from experiments.config.errors import nearest
from experiments.config.schema import Section
from experiments.config.shown import shown
from lora_variants import VARIANTS
from lora_variants.interface.config import HIGHEST_SEED, MOST, Seed

Sampler = Literal["tpe", "cmaes", "gp", "random"]
RANK_LEARNERS = tuple(name for name, entry in VARIANTS.items() if entry.learns_ranks)
ALLOCATIONS = ("grouped", "priority", "prior", "uniform", "attention", "mlp", "gradient", *RANK_LEARNERS, "random")
ARM_KEYS = ("allocation", "sampler", "search_seed")
Ends = Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=2, max_length=2)]


class BudgetConfig(Section):
    """What every trained trial keeps to."""

    total_rank: int | None = Field(
        None, ge=1, le=MOST, description="sum of the ranks of all layers; give this or parameters"
    )
    parameters: int | None = Field(
        None, ge=1, le=10**12, description="numbers in A and B of all layers, at d_out + d_in a rank"
    )

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        if (self.total_rank is None) == (self.parameters is None):
            raise ValueError("give total_rank or parameters, one of them")
        return self

    @property
    def description(self) -> str:
        """'96 ranks', '18,432 parameters'."""
        return f"{self.parameters:,} parameters" if self.total_rank is None else f"{self.total_rank:,} ranks"


class SpaceConfig(Section):
    """The knobs that every arm searches in addition to its allocation: [lowest, highest], on a logarithmic scale."""

    learning_rate: Ends | None = Field([0.25, 4.0], description="in units of the arm's own learning rate; null: fixed")
    alpha_per_rank: Ends | None = Field([0.5, 8.0], description="the scaling; null: that of the run configuration")
    learning_rate_ratio: Ends | None = Field([1.0, 16.0], description="λ of LoRA+; null: that of the configuration")

    @field_validator("learning_rate", "alpha_per_rank", "learning_rate_ratio")
    @classmethod
    def _apart(cls, ends: list[float] | None) -> list[float] | None:
        if ends is not None and ends[0] >= ends[1]:
            raise ValueError(
                f"[lowest, highest] with lowest < highest; got {ends}: a single value is nothing to search, "
                "so give null here and the value in `set`"
            )
        return ends


class HalvingConfig(Section):
    """Successive halving: trials of a search that fall behind those of earlier batches are pruned."""

    rungs: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        [0.25, 0.5], min_length=1, description="parts of its steps after which a trial is scored on validation"
    )
    keep: float = Field(
        0.5, gt=0, lt=1, description="a trial goes on if its score is among this best part of all that the earlier "
        "batches of its arm have reached there"
    )  # fmt: skip


class SearchConfig(Section):
    """Stage 1 of a study whose arms are allocations of a budget: each gets the same trials of the same sampler."""

    budget: BudgetConfig
    trials: int = Field(
        48, ge=2, le=10_000, description="trained trials of each arm's search, with the first tuning seed"
    )
    batch: int = Field(
        8, ge=1, le=10_000, description="trials that are proposed at once; the next batch knows their scores"
    )
    sampler: Sampler = Field("tpe", description="what proposes points, unless an arm says otherwise")
    repeats: int = Field(
        1,
        ge=1,
        le=10_000,
        description="whole searches of each arm, each with a block of its own of the seeds of tuning and evaluation: "
        "the verdicts are then of the methods; with one they are of the allocations that it found",
    )
    seed: Seed = Field(0, description="seed of the proposals, unless an arm says otherwise (search_seed)")
    space: SpaceConfig = SpaceConfig()  # type: ignore[call-arg]
    highest_rank: int = Field(
        32, ge=1, le=MOST, description="no layer gets more; all trials are padded to it, so that they share packs"
    )
    blocks: int = Field(
        2, ge=1, le=10_000, description="parts of the model's depth that make groups of layers, by kind of matrix"
    )
    halving: HalvingConfig | None = Field(
        None,
        description="null disables early stopping; random-rank trials are never pruned, since importances are "
        "computed on them",
    )
    contenders: int = Field(
        8,
        ge=1,
        le=10_000,
        description="best points of a search that run with each further tuning seed; the worse half leaves after "
        "every one, and the seed of the search does not count",
    )
    sensitivity: Literal["gradient", "adalora"] = Field(
        "gradient",
        description="of `prior`: the norm of each layer's gradient at W0, or the ranks that AdaLoRA ends with",
    )
    gradient_batches: int = Field(
        16, ge=1, le=MOST, description="batches of the first tuning seed whose gradient at W0 gives sensitivities"
    )


def rank_learner(search: Mapping[str, Any]) -> str | None:
    """The variant whose final ranks an arm of this search needs; None for most arms."""
    allocation = search.get("allocation")
    name = search["sensitivity"] if allocation == "prior" else allocation
    return name if name in RANK_LEARNERS else None


def has_random_ranks(search: Mapping[str, Any]) -> bool:
    """Whether nothing was learned for the ranks of the trials of an arm: they say something of the whole space."""
    allocation, sampler = search["allocation"], search["sampler"]
    return allocation == "random" or (sampler == "random" and allocation in ("grouped", "priority"))


def search_errors(given: Mapping[str, Any], *, searched: bool) -> list[str]:
    """What is wrong with an arm's keys of the search."""
    if not searched:
        return [f"{key}: belongs to a search, and this study has no section `search`" for key in given]
    if "allocation" not in given:
        return [f"allocation: missing; one of {', '.join(ALLOCATIONS)}"]
    errors = []
    for key, known in (("allocation", ALLOCATIONS), ("sampler", get_args(Sampler))):
        if key in given and given[key] not in known:
            errors.append(
                f"{key}: {shown(given[key])} is not known{nearest(given[key], known)}; one of {', '.join(known)}"
            )
    seed = given.get("search_seed", 0)
    if type(seed) is not int or not 0 <= seed <= HIGHEST_SEED:
        errors.append(f"search_seed: a whole number from 0 to {HIGHEST_SEED}, got {shown(seed)}")
    return errors
