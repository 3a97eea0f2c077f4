"""Head: nothing of the model is adapted; only the task's head trains. The floor of every comparison.

On a task without a head it is the untouched base.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

from lora_variants.frozen_model.linear_map import LinearMap
from lora_variants.interface.config import Config
from lora_variants.interface.layer import AdaptedLayer
from lora_variants.interface.variant import Variant


class HeadConfig(Config):
    learning_rate_factor: ClassVar[float | None] = None  # the only thing that trains has a rate of its own

    name: Literal["head"] = "head"


class Head(Variant):
    config_class: ClassVar[type[Config]] = HeadConfig

    def layer_ranks(self, maps: Mapping[str, LinearMap]) -> dict[str, tuple[int, ...]]:
        return {}

    def adapt(self, name: str, base: LinearMap, ranks: Sequence[int]) -> AdaptedLayer:
        raise NotImplementedError(f"{type(self).__name__} adapts no layer; asked for {name}")
