"""Full: the targeted matrices themselves train, W of their own for each trial. The ceiling of adapters.

What adapters approximate with factors, and nothing else, trains here: biases, norms and embeddings
stay frozen (`full_all` trains them too). W starts as a copy of W0 and ΔW = W - W0: a ΔW as parameter
would have weight decay pull towards W0, and would lose small updates in bfloat16.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lora_variants.frozen_model.linear_map import LinearMap
from lora_variants.interface.config import Config
from lora_variants.interface.layer import AdaptedLayer, Trained
from lora_variants.interface.pack import Pack
from lora_variants.interface.variant import Variant
from lora_variants.interface.warm_start import Update, as_dense


class FullConfig(Config):
    learning_rate_factor: ClassVar[float | None] = 0.4

    name: Literal["full"] = "full"


class FullLayer(AdaptedLayer):
    """W (trials, d_out, d_in)."""

    trained: ClassVar[dict[str, Trained]] = {"W": Trained("other")}

    def __init__(self, name: str, base: LinearMap, ranks: Sequence[int], pack: Pack) -> None:
        super().__init__(name, base, ranks, pack)
        self.W = nn.Parameter(self.new_tensor(base.d_out, base.d_in))
        self.W.detach().copy_(base.base_weight().expand_as(self.W))

    def adapted(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        y = torch.bmm(self.pack.by_trial(x).to(self.W.dtype), self.W.mT)
        bias = self.base.base_bias()
        y = y if bias is None else y + bias
        return y.reshape(*x.shape[:-1], -1).to(x.dtype)

    @torch.no_grad()
    def delta(self, trial: int) -> Float[Tensor, "d_out d_in"]:
        return self.W[trial] - self.base.base_weight()

    @torch.no_grad()
    def start_from(self, trial: int, update: Update) -> None:
        self.W[trial] = self.base.base_weight() + as_dense(update).to(self.W)

    def merged_weight(self, trial: int) -> Float[Tensor, "d_out d_in"]:
        return self.W.detach()[trial]

    def ranks_alive(self) -> list[int]:
        return list(self.ranks)


class Full(Variant):
    config_class: ClassVar[type[Config]] = FullConfig

    def layer_ranks(self, maps: Mapping[str, LinearMap]) -> dict[str, tuple[int, ...]]:
        """The highest rank that a ΔW can have."""
        return {name: (min(lm.d_out, lm.d_in),) * self.pack.trials for name, lm in maps.items()}

    def adapt(self, name: str, base: LinearMap, ranks: Sequence[int]) -> FullLayer:
        return FullLayer(name, base, ranks, self.pack)
