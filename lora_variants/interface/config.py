"""The knobs that every variant shares, with one meaning of rank, alpha and scaling in all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MOST = 10**9  # of any count: more than is of use to anybody, and little enough to compute with
HIGHEST_SEED = 2**63 - 1  # what tables and databases hold
LONGEST_PATTERN = 1000  # characters

Rank = Annotated[int, Field(ge=0, le=MOST)]
Seed = Annotated[int, Field(ge=0, le=HIGHEST_SEED)]
Pattern = Annotated[str, Field(min_length=1, max_length=LONGEST_PATTERN)]


@dataclass(frozen=True)
class Shared:
    """Marks a knob that means the same in every variant: where another variant is chosen, its stated value stays."""

    alternative: str = ""  # another knob for the same quantity; where that one is stated, this one does not stay


class Config(BaseModel):
    """The knobs of a variant: strict types, frozen, unknown keys refused."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    # The variant's learning rate divided by LoRA's, for configurations that do not name it; None: they must name it.
    # Each variant's was measured on `bytes` (configs/bytes.yaml) at rank 16: the best of five rates a factor of 2 apart
    # by the mean on validation over seeds 100, 101 and 102, which no shipped study evaluates. LoRA's best is 5e-3.
    learning_rate_factor: ClassVar[float | None] = None

    # What scales the variant besides its learning rate, and so is worth tuning with it: name in a study's grid -> the
    # variant's own knob for it, and how much of that knob is one unit of the grid's.
    tuned_knobs: ClassVar[Mapping[str, tuple[str, float]]] = {}

    name: str = Field(description="which variant")

    @classmethod
    def shared_knobs(cls) -> dict[str, Shared]:
        """The knobs that are marked as shared with other variants."""
        return {
            knob: mark
            for knob, of_knob in cls.model_fields.items()
            for mark in of_knob.metadata
            if type(mark) is Shared
        }

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The value that each knob has where nobody states one."""
        return {knob: field.default for knob, field in cls.model_fields.items() if not field.is_required()}

    @classmethod
    def at(cls, point: Mapping[str, float]) -> dict[str, Any]:
        """The knobs that a point of a study's grid sets, for `model_copy`; what does not scale the variant is left out.

        Another knob for the same quantity is None, whatever was stated.
        """
        shared = cls.shared_knobs()
        knobs: dict[str, Any] = {}
        for name, (knob, unit) in cls.tuned_knobs.items():
            if name in point:
                if knob in shared and shared[knob].alternative:
                    knobs[shared[knob].alternative] = None
                knobs[knob] = point[name] * unit
        return knobs

    def as_lora(self) -> "Config | None":
        """The `lora` that trains exactly the same, bit for bit, at one learning rate; None where there is none.

        Where two configurations have equal ones, they train the same. A file may have another rate for either.
        """
        return None


class AdapterConfig(Config):
    """The knobs of every variant that learns ΔW as low-rank factors."""

    DEFAULT_ALPHA: ClassVar[dict[str, float]] = {"alpha_per_rank": 2.0}
    tuned_knobs: ClassVar[Mapping[str, tuple[str, float]]] = {"alpha_per_rank": ("alpha_per_rank", 1.0)}

    rank: Annotated[Rank | dict[Pattern, Rank], Shared()] = Field(
        16,
        description="rank of each ΔW: a number, or a map from layer pattern to number in which the last "
        "matching pattern wins; 0, or no pattern that matches, means not adapted",
    )
    pad_rank_to: int = Field(
        0,
        ge=0,
        le=MOST,
        description="factors are padded with zeros to this rank at least, in every targeted layer: changes no "
        "parameter and lets trials of different ranks share a pack",
    )
    alpha: Annotated[float | None, Shared(alternative="alpha_per_rank")] = Field(
        None, gt=0, description="numerator of the scaling, the same for every layer"
    )
    alpha_per_rank: Annotated[float | None, Shared(alternative="alpha")] = Field(
        None, gt=0, description="alpha of a layer divided by its rank; give this or alpha"
    )
    dropout: Annotated[float, Shared()] = Field(
        0.0, ge=0, lt=1, description="probability of dropping an input of the adapter"
    )
    learning_rate_ratio: float = Field(
        1.0,
        gt=0,
        description="λ of LoRA+: learning rate of B divided by that of A (heads and 1-D stay at A's); weight decay is "
        "rate times decay, so B decays λ times faster too",
    )

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        return super().defaults() | cls.DEFAULT_ALPHA

    @model_validator(mode="before")
    @classmethod
    def _default_alpha(cls, given: object) -> object:
        if isinstance(given, dict) and given.get("alpha") is None and given.get("alpha_per_rank") is None:
            return given | cls.DEFAULT_ALPHA
        return given

    @model_validator(mode="after")
    def _one_alpha(self) -> "AdapterConfig":
        if self.alpha is not None and self.alpha_per_rank is not None:
            raise ValueError(
                f"give alpha or alpha_per_rank, not both (got {self.alpha:g} and {self.alpha_per_rank:g}); null is none"
            )
        return self

    @field_validator("rank")
    @classmethod
    def _some_pattern(cls, rank: int | dict[str, int]) -> int | dict[str, int]:
        if rank == {}:
            raise ValueError("an empty map of ranks adapts nothing; give a number or {pattern: number}")
        return rank

    def alpha_at(self, rank: int) -> float:
        """alpha of a layer of this rank."""
        if self.alpha is not None:
            return self.alpha
        assert self.alpha_per_rank is not None  # held by _default_alpha
        return self.alpha_per_rank * rank

    def scale_at(self, rank: int) -> float:
        """s of a layer of this rank; 0 for rank 0, where alpha / r has no value."""
        return self.alpha_at(rank) / rank if rank else 0.0
