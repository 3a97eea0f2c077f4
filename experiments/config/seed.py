"""The seed of a run: one number, or a number for each of the parts of training that draw from it."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, WrapValidator

from lora_variants.interface.config import Seed


class SeedParts(BaseModel):
    """A seed apart for each use; one number is all three."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    init: Seed = Field(0, description="initialisation of adapters and of the task's head")
    data: Seed = Field(0, description="order of the training data, and data that is drawn while training")
    dropout: Seed = Field(0, description="dropout masks of the adapters")

    def __add__(self, offset: int) -> "SeedParts":
        return SeedParts(init=self.init + offset, data=self.data + offset, dropout=self.dropout + offset)


_NUMBER = TypeAdapter(Seed, config=ConfigDict(strict=True))


def read_seed(given: object) -> int | SeedParts:
    """A seed as it stands in a file: a map whose three values are one number is that number.

    Raises: ValidationError.
    """
    if not isinstance(given, Mapping | SeedParts):
        return _NUMBER.validate_python(given)
    parts = SeedParts.model_validate(given)
    return parts.init if parts.init == parts.data == parts.dropout else parts


RunSeed = Annotated[Seed | SeedParts, WrapValidator(lambda given, _: read_seed(given))]


def seed_parts(seed: int | SeedParts) -> SeedParts:
    """The seed of each part."""
    return seed if isinstance(seed, SeedParts) else SeedParts(init=seed, data=seed, dropout=seed)


def by_part(given: Any) -> Any:
    """What stands for a seed in a tree as a map, so that one part of it can be set and the others stay."""
    return dict.fromkeys(SeedParts.model_fields, given) if type(given) is int else given


def describe_seed(seed: int | SeedParts) -> str:
    """'3', or '0-init3': the number that two parts have (init's where all differ), then each other one by name."""
    values = seed_parts(seed).model_dump()
    numbers = list(values.values())
    most = max(numbers, key=numbers.count)
    return "-".join([str(most), *(f"{part}{number}" for part, number in values.items() if number != most)])
