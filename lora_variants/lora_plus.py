"""LoRA+: LoRA whose B learns λ times faster than its A (Hayou et al. 2024, arXiv 2402.12354, section 4).

The ratio is a transform of parameter groups that every adapter has (`learning_rate_ratio`); this entry
is LoRA with it on.

Departures from the paper:
- The authors' code gives every 1-D parameter and an embedding's factors rates of their own; here
  1-D parameters and heads stay at the base rate, so that only B differs from LoRA.

Weight decay is decoupled, here as in the authors' code: a step shrinks a matrix by its own rate times the decay, so
that B decays λ times faster than A.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from lora_variants.interface.config import Config
from lora_variants.lora import LoRA, LoRAConfig


class LoRAPlusConfig(LoRAConfig):
    learning_rate_factor: ClassVar[float | None] = 0.25  # of A and of heads; B learns at 16 times this
    tuned_knobs: ClassVar[Mapping[str, tuple[str, float]]] = {
        **LoRAConfig.tuned_knobs,
        "learning_rate_ratio": ("learning_rate_ratio", 1.0),
    }

    name: Literal["lora_plus"] = Field("lora_plus", description="which variant")  # type: ignore[assignment]
    learning_rate_ratio: float = Field(
        16.0,
        gt=0,
        description="λ: learning rate of B divided by that of A; the authors advise about 2^4. Weight decay is rate "
        "times decay, so B decays λ times faster too",
    )

    def as_lora(self) -> LoRAConfig | None:
        return self.with_lora_scale()


class LoRAPlus(LoRA):
    config_class: ClassVar[type[Config]] = LoRAPlusConfig
