"""rsLoRA: LoRA with s = alpha / √r, which keeps activations and gradients of one size at any rank.

Kalajdzievski 2023, arXiv 2312.03732, theorem 3.2.
"""

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from lora_variants.interface.config import Config
from lora_variants.lora import LoRA, LoRAConfig


class RsLoRAConfig(LoRAConfig):
    """alpha is fixed by default: alpha proportional to the rank would undo the stabilised scaling."""

    learning_rate_factor: ClassVar[float | None] = 1.0
    DEFAULT_ALPHA: ClassVar[dict[str, float]] = {"alpha": 8.0}  # s = 2 at r = 16, LoRA's default scale
    # v of a grid is the scale of LoRA at v, at r = 16: s = 4 v / √16. At other ranks alpha is what stays.
    tuned_knobs: ClassVar[Mapping[str, tuple[str, float]]] = {"alpha_per_rank": ("alpha", 4.0)}

    name: Literal["rslora"] = Field("rslora", description="which variant")  # type: ignore[assignment]

    def scale_at(self, rank: int) -> float:
        return self.alpha_at(rank) / math.sqrt(rank) if rank else 0.0

    def as_lora(self) -> LoRAConfig | None:
        return self.with_lora_scale()


class RsLoRA(LoRA):
    config_class: ClassVar[type[Config]] = RsLoRAConfig
