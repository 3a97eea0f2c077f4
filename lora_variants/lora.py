"""LoRA: h = W0 x + s B (A x), s = alpha / r (Hu et al. 2021, arXiv 2106.09685, eq. 3).

Departures from the paper:
- A is drawn as in the authors' code, U(-1/√d_in, 1/√d_in) (`init: kaiming`); the paper says Gaussian
  (`init: gaussian`) without its width, so ours has the same variance, 1 / (3 d_in): the choice changes
  the law, never the scale, and the scale does not depend on the rank.
- Dropout acts on the adapter's input, as in the authors' code; the paper does not say where.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from lora_variants.frozen_model.linear_map import LinearMap
from lora_variants.interface.config import AdapterConfig, Config
from lora_variants.interface.factored_layer import FactoredLayer
from lora_variants.interface.layer import Factors, Trained, padded_rank
from lora_variants.interface.ranks import ranks_by_layer, refuse_useless_padding, warn_of_high_ranks
from lora_variants.interface.variant import Variant
from lora_variants.interface.warm_start import Update, as_factors, rank_of


class LoRAConfig(AdapterConfig):
    """The knobs of LoRA and of what differs from it in a number only."""

    learning_rate_factor: ClassVar[float | None] = 1.0

    name: Literal["lora"] = "lora"
    init: Literal["kaiming", "gaussian"] = Field("kaiming", description="law of A at the start; B is zero")

    def as_lora(self) -> "LoRAConfig | None":
        return self.with_lora_scale() if type(self) is LoRAConfig else None  # a relative says so itself

    def with_lora_scale(self) -> "LoRAConfig | None":
        """The `lora` with all knobs of this one and exactly the same scales; None where no alpha gives them.

        alpha is given as `alpha_per_rank` where every adapted layer has one rank.
        """
        ranks = {self.rank} if isinstance(self.rank, int) else set(self.rank.values())
        ranks -= {0}
        alphas = [{"alpha": self.alpha, "alpha_per_rank": self.alpha_per_rank}]
        if len(ranks) == 1:
            alphas.insert(0, {"alpha": None, "alpha_per_rank": self.scale_at(*ranks)})
        own = LoRAConfig(**self.model_dump(exclude={"name"}))
        found = (own.model_copy(update=alpha) for alpha in alphas)
        return next((lora for lora in found if all(lora.scale_at(r) == self.scale_at(r) for r in ranks)), None)


class LoRALayer(FactoredLayer):
    """A (trials, r, d_in), B (trials, d_out, r), scale (trials,); rows beyond a trial's rank stay zero."""

    trained: ClassVar[dict[str, Trained]] = {"A": Trained("A", rank_axis=0), "B": Trained("B", rank_axis=1)}

    def create_factors(self, configs: Sequence[LoRAConfig]) -> None:
        d_in, d_out = self.base.d_in, self.base.d_out
        padded = padded_rank(self.ranks, configs)
        self.A = nn.Parameter(self.new_tensor(padded, d_in))
        self.B = nn.Parameter(self.new_tensor(padded, d_out).mT)  # in memory as its gradient comes
        for trial, config in enumerate(configs):
            self.draw("A", trial, law=config.init, deviation=(3 * d_in) ** -0.5)

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        own: dict[str, Any] = self._parameters  # past nn.Module's slow look-up
        scale: Any = self._buffers["scale"]
        return own["B"], scale.view(-1, 1, 1), own["A"]

    def delta(self, trial: int) -> Factors:
        rank = self.ranks[trial]
        return Factors(self.B.detach()[trial, :, :rank], self.A.detach()[trial, :rank], float(self.scale[trial]))

    @torch.no_grad()
    def start_from(self, trial: int, update: Update) -> None:
        """The first rows of A and columns of B become the update's; the others keep their fresh A, with B = 0."""
        parts, found = self.parts(trial), as_factors(update)
        k = len(found.right)
        parts["A"][:k] = found.right.to(self.A)
        parts["B"].zero_()[:, :k] = self.rescaled(found.left, found.scale, trial)

    def ranks_alive(self) -> list[int]:
        return list(self.ranks)


class LoRA(Variant):
    """Low-rank adaptation; what its relatives change is the scaling, the groups, or the layer."""

    config_class: ClassVar[type[Config]] = LoRAConfig
    layer_class: ClassVar[type[FactoredLayer]] = LoRALayer

    def scaling(self, trial: int, rank: int) -> float:
        """s of a layer of this rank."""
        scale: float = self.configs[trial].scale_at(rank)
        return scale

    def layer_ranks(self, maps: Mapping[str, LinearMap]) -> dict[str, tuple[int, ...]]:
        shapes = {name: (lm.d_out, lm.d_in) for name, lm in maps.items()}
        refuse_useless_padding(max(config.pad_rank_to for config in self.configs), shapes)
        by_trial = [ranks_by_layer(config.rank, shapes) for config in self.configs]
        ranks = {name: tuple(of_trial[name] for of_trial in by_trial) for name in shapes}
        trained = {
            name: max(
                self.trained_rank(config, rank, lm) for config, rank in zip(self.configs, ranks[name], strict=True)
            )
            for name, lm in maps.items()
        }
        warn_of_high_ranks(trained, shapes)
        return ranks

    def trained_rank(self, config: Any, rank: int, base: LinearMap) -> int:
        """The rank of a layer's factors while they train, where its own is `rank`."""
        return rank

    def refuse_start(self, trial: int, updates: Mapping[str, Update]) -> None:
        room = {name: self.layers[name].unpadded(trial) for name in updates}
        needed = {name: rank for name, update in updates.items() if (rank := rank_of(update)) > room[name]}
        if needed:
            first = next(iter(needed))
            raise ValueError(
                f"an update of rank {needed[first]} does not fit into rank {room[first]} of {first}"
                f"{f' (and {len(needed) - 1} more like it)' if len(needed) > 1 else ''}; "
                f"set {self.with_ranks(trial, needed)}"
            )

    def with_ranks(self, trial: int, needed: Mapping[str, int]) -> str:
        """The knob that gives these layers these ranks and leaves the others as they are."""
        rank = self.configs[trial].rank
        whole = ({"*": rank} if isinstance(rank, int) else dict(rank)) | dict(needed)
        rules = ", ".join(f'"{pattern}": {r}' for pattern, r in whole.items())
        return f"rank={{{rules}}}"

    def adapt(self, name: str, base: LinearMap, ranks: Sequence[int]) -> FactoredLayer:
        scales = [self.scaling(trial, rank) for trial, rank in enumerate(ranks)]
        return self.layer_class(name, base, ranks, self.pack, scales=scales, configs=self.configs)
