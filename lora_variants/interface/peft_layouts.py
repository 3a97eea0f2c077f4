"""What was learned, in the layout of PEFT's LoRA, and what other layouts of PEFT are made with.

Slices of a fused projection become one adapter of the whole of it, with zeros for the frozen rows.
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lora_variants.frozen_model.linear_map import LinearMap, slice_rows, split_slice
from lora_variants.interface.layer import Factors, Triplets

T = TypeVar("T", Factors, Triplets)
V = TypeVar("V")
PATTERNS = ("rank_pattern", "alpha_pattern")  # of PEFT's configs: what differs by the path of a module


@dataclass(frozen=True)
class PeftAdapter:
    """One trial's update as PEFT reads it: tensors by name, the entries of its config that say what they mean.

    `modules` are the paths of the adapted modules; one whose update has rank 0 is left out.
    """

    modules: tuple[str, ...]
    tensors: dict[str, Tensor]
    config: dict[str, Any]

    def inside(self, body: str) -> "PeftAdapter":
        """The same for `body` alone, the part of the model that holds all adapted modules."""

        def inner(tree: Mapping[str, V]) -> dict[str, V]:
            return {name.removeprefix(f"{body}."): value for name, value in tree.items()}

        patterns = {key: inner(value) for key, value in self.config.items() if key in PATTERNS}
        return PeftAdapter(tuple(inner(dict.fromkeys(self.modules))), inner(self.tensors), self.config | patterns)


def lora_adapter(factors: Mapping[str, Factors], owners: Mapping[str, nn.Module]) -> PeftAdapter:
    """Plain LoRA with a rank and an alpha for every module; `owners` are the modules by the names of the updates."""
    modules = {path: _whole_factors(parts, d_out) for path, parts, d_out in by_module(factors, owners)}
    modules = {path: update for path, update in modules.items() if len(update.right)}
    tensors = {f"{path}.lora_A.weight": update.right for path, update in modules.items()}
    tensors |= {f"{path}.lora_B.weight": update.left for path, update in modules.items()}
    by_length = sorted(modules, key=len, reverse=True)  # PEFT takes the first pattern that a name ends with
    ranks = {path: len(modules[path].right) for path in by_length}
    alphas = {path: _whole(modules[path].scale * ranks[path]) for path in by_length}
    config = {
        "peft_type": "LORA",
        "r": ranks[by_length[0]],
        "lora_alpha": alphas[by_length[0]],
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "use_rslora": False,
    }
    return PeftAdapter(tuple(modules), tensors, config)


def _whole(alpha: float) -> float | int:
    """The integer that alpha is but for the rounding of its scale to float32; alpha where it is none."""
    nearest = round(alpha)
    return nearest if math.isclose(alpha, nearest, rel_tol=1e-7) else alpha


def by_module(updates: Mapping[str, T], owners: Mapping[str, nn.Module]) -> list[tuple[str, dict[str, T], int]]:
    """(path, its updates by name, its d_out) of every module; slices of a fused projection are in one."""
    found: dict[str, dict[str, T]] = defaultdict(dict)
    for name, update in updates.items():
        found[split_slice(name)[0]][name] = update
    return [(path, parts, LinearMap(owners[next(iter(parts))]).d_out) for path, parts in found.items()]


def _whole_factors(parts: Mapping[str, Factors], d_out: int) -> Factors:
    """One pair of factors for a module."""
    first = next(iter(parts.values()))
    if len(parts) == 1 and len(first.left) == d_out:
        return first
    left = in_rows({name: update.left * update.scale for name, update in parts.items()}, d_out)
    return Factors(left, torch.cat([update.right for update in parts.values()]), 1.0)


def in_rows(lefts: Mapping[str, Tensor], d_out: int) -> Tensor:
    """The left factors of slices side by side, each in the rows that it owns, zeros in the others."""
    widths = [left.shape[1] for left in lefts.values()]
    whole = next(iter(lefts.values())).new_zeros(d_out, sum(widths))
    for (name, left), columns in zip(lefts.items(), whole.split(widths, dim=1), strict=True):
        columns[slice(*(slice_rows(name, d_out) or (0, d_out)))] = left
    return whole
