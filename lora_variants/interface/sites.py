"""The places in a model where an adapted layer stands in for the model's own module."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lora_variants.frozen_model.attention import Attention
from lora_variants.frozen_model.linear_map import LinearMap, attention_maps
from lora_variants.interface.layer import AdaptedLayer, HeadLayer


class SlicedProjection(nn.Module):
    """A fused projection in parts: the rows of some parts are adapted, the others are frozen."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        return torch.cat([part(x) for part in self.parts], dim=-1)


@dataclass
class Site:
    """One module of the model with what takes its place; a shared one has several (parent, attribute)."""

    places: list[tuple[nn.Module, str]]
    original: nn.Module
    adapted: nn.Module
    layers: dict[str, AdaptedLayer | HeadLayer] = field(default_factory=dict)

    def put(self, module: nn.Module) -> None:
        for parent, attribute in self.places:
            setattr(parent, attribute, module)

    def merged(self, trial: int, dtype: torch.dtype | None = None) -> nn.Module:
        """A copy of the original whose weights are W0 + ΔW of one trial (a head's: its own), in `dtype` if given."""
        plain = copy.deepcopy(self.original).to(dtype)
        inside = {id(module): path for path, module in self.original.named_modules()}
        with torch.no_grad():
            for layer in self.layers.values():
                there = layer.base.of(plain.get_submodule(inside[id(layer.base.owner)]))
                there.base_weight().copy_(layer.merged_weight(trial))
                bias = layer.merged_bias(trial)
                if bias is not None:
                    there.base_bias().copy_(bias)  # type: ignore[union-attr]
        return plain


def site_module(original: nn.Module, layers: Mapping[str, AdaptedLayer | HeadLayer]) -> nn.Module:
    """What stands in for a module when these of its linear maps are adapted."""
    if isinstance(original, nn.MultiheadAttention):
        maps: dict[str, nn.Module] = dict(attention_maps(original))
        return Attention(original, maps | {name.rpartition(".")[2]: layer for name, layer in layers.items()})
    (first, *others) = layers.values()
    if not others and first.base.whole:
        return first
    return SlicedProjection(list(_all_rows(original, layers)))


def _all_rows(original: nn.Module, layers: Mapping[str, AdaptedLayer | HeadLayer]) -> list[nn.Module]:
    """The adapted slices in the order of their rows, with frozen maps for the rows between them."""
    parts: list[nn.Module] = []
    reached, total = 0, LinearMap(original).d_out
    for layer in sorted(layers.values(), key=lambda layer: layer.base.rows):
        start, stop = layer.base.rows
        if start > reached:
            parts.append(LinearMap(original, rows=(reached, start), whole=False))
        parts.append(layer)
        reached = stop
    if reached < total:
        parts.append(LinearMap(original, rows=(reached, total), whole=False))
    return parts
