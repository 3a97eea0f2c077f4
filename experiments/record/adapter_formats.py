"""How PEFT's and loralib's tensors spell an update ΔW of a matrix, and how they are read."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from lora_variants.interface.layer import Factors, Triplets
from lora_variants.interface.warm_start import Update

PREFIX = "base_model.model."
WEIGHTS, CONFIG, DELTA, HEAD = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "delta.safetensors",
    "head.safetensors",
)

FACTOR_KEY = re.compile(r"(?P<matrix>.+)\.(?P<part>lora_(?:embedding_)?[ABE])(?:\.weight)?")
# PEFT's initialisations that move W0 itself, so that B A is not W - W0
INITIALISATIONS_THAT_MOVE_W0 = ("pissa", "corda", "olora", "loftq", "lora_ga")


class RunStoreError(ValueError):
    """What is on disk cannot be read as updates; the message gives the rule, the value and the way out."""


@dataclass(frozen=True)
class Adapter:
    """What a run or an adapter left on disk, by names in the base model.

    `updates` are ΔW, scale included; where the file holds no scale it is 1 and `scale_known` is false. `others`
    are all other tensors: heads, and whatever else was saved with them.
    """

    updates: dict[str, Update]
    others: dict[str, Tensor]
    scale_known: bool = True

    def under(self, body: str | None) -> "Adapter":
        """The adapter with the names that its layers have in a model that holds its base under the name `body`."""
        return self if body is None else replace(self, updates={f"{body}.{n}": u for n, u in self.updates.items()})

    def with_alpha(self, alpha: float) -> "Adapter":
        """The adapter with LoRA's scale, alpha / r, where the file holds none."""
        scaled = {
            name: update._replace(scale=alpha / len(update.right)) if isinstance(update, Factors) else update
            for name, update in self.updates.items()
        }
        return replace(self, updates=scaled, scale_known=True)


def peft_adapter(tensors: Mapping[str, Tensor], config: dict[str, Any], folder: Path) -> Adapter:
    """A PEFT adapter, LoRA or AdaLoRA, from its tensors and its `adapter_config.json`."""
    initialisation = str(config.get("init_lora_weights")).lower()
    moved = initialisation.startswith(INITIALISATIONS_THAT_MOVE_W0)
    if config.get("use_dora") or any("lora_magnitude_vector" in key for key in tensors) or moved:
        how = f"init_lora_weights {initialisation!r}" if moved else "DoRA"
        raise RunStoreError(
            f"the factors of an adapter are its ΔW only if W0 stays as it was and nothing rescales W0 + B A; "
            f"{folder} was made with {how}: save merged minus base weights as {DELTA} in that folder"
        )
    matrices, others = _parts_by_matrix(tensors, folder)
    if not matrices:
        raise RunStoreError(
            f"an adapter holds at least one lora_A and lora_B; the one in {folder} has the keys "
            f"{sorted(tensors)[:3]}: give another folder"
        )
    update = _adalora_update if config["peft_type"] == "ADALORA" else _lora_update
    return Adapter({name: update(name, parts, config, folder) for name, parts in matrices.items()}, others)


def _lora_update(name: str, parts: dict[str, Tensor], config: dict[str, Any], source: Path) -> Factors:
    """ΔW = B A · alpha / r, or / sqrt(r) with rsLoRA, of PEFT's `LoraLayer.get_delta_weight`."""
    A, B = _pair(name, parts, source)
    rank = _by_pattern(config.get("rank_pattern"), name, config.get("r"))
    alpha = _by_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha"))
    if rank != A.shape[0] or not isinstance(alpha, int | float):
        raise RunStoreError(
            f"adapter_config.json must give the rank and lora_alpha of every matrix; in {source} it gives "
            f"rank {rank!r} and lora_alpha {alpha!r} for {name}, whose lora_A has {A.shape[0]} rows: "
            "save the adapter again"
        )
    divisor = math.sqrt(A.shape[0]) if config.get("use_rslora") else A.shape[0]
    return Factors(left=B, right=A, scale=alpha / divisor if A.shape[0] else 0.0)


def _adalora_update(name: str, parts: dict[str, Tensor], config: dict[str, Any], source: Path) -> Triplets:
    """ΔW = B (E ∘ A) · alpha / (init_r + 1e-5), of PEFT's AdaLoRA `SVDLinear.get_delta_weight`.

    The divisor stays the initial rank however many directions were pruned.
    """
    A, B = _pair(name, parts, source)
    E = parts.get("lora_E")
    initial_rank, alpha = config.get("init_r"), config.get("lora_alpha")
    numbers = (int, float)
    if E is None or E.numel() != A.shape[0] or not isinstance(initial_rank, numbers) or not isinstance(alpha, numbers):
        raise RunStoreError(
            f"AdaLoRA needs a lora_E with one value a row of lora_A, init_r and lora_alpha; in {source}, "
            f"{name} has {A.shape[0]} rows, lora_E {None if E is None else tuple(E.shape)}, "
            f"init_r {initial_rank!r}, lora_alpha {alpha!r}: save the adapter again"
        )
    scale = (alpha if alpha > 0 else initial_rank) / (initial_rank + 1e-5)
    return Triplets(P=B, Lambda=E.flatten(), Q=A, scale=scale)


def loralib_adapter(tensors: Mapping[str, Tensor], source: Path) -> Adapter:
    """A loralib state dict, the scale taken as 1: loralib keeps alpha in code."""
    matrices, others = _parts_by_matrix(tensors, source)
    if not matrices:
        raise RunStoreError(
            f"a loralib checkpoint has keys that end in .lora_A and .lora_B; {source} has none: "
            "save it with loralib.lora_state_dict(model)"
        )
    pairs = {name: _pair(name, parts, source) for name, parts in matrices.items()}
    return Adapter({name: Factors(B, A, 1.0) for name, (A, B) in pairs.items()}, others, scale_known=False)


def heads_beside_factors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an adapter that are not of an update."""
    return {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items() if "lora_" not in key}


def _parts_by_matrix(
    tensors: Mapping[str, Tensor], source: Path
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """{matrix name: {"lora_A": ..., "lora_B": ..., "lora_E": ...}}, and every other tensor by its name."""
    matrices: dict[str, dict[str, Tensor]] = {}
    others: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key.removeprefix(PREFIX)
        if match := FACTOR_KEY.fullmatch(name):
            if tensor.ndim != 2:
                raise RunStoreError(
                    f"only matrices have a spectrum; {key} in {source} has shape {tuple(tensor.shape)}: "
                    "leave convolutions and stacked experts out of the adapter"
                )
            matrices.setdefault(match["matrix"], {})[match["part"]] = tensor
        else:
            others[name] = tensor
    return matrices, others


def _pair(name: str, parts: dict[str, Tensor], source: Path) -> tuple[Tensor, Tensor]:
    """(A, B) with A (r, d_in) and B (d_out, r); an embedding's ΔW = (B A)ᵀ changes their places."""
    if "lora_embedding_A" in parts and "lora_embedding_B" in parts:
        A, B = parts["lora_embedding_B"].mT, parts["lora_embedding_A"].mT
    elif "lora_A" in parts and "lora_B" in parts:
        A, B = parts["lora_A"], parts["lora_B"]
    else:
        raise RunStoreError(
            f"ΔW = B A needs both factors; in {source}, {name} has only {', '.join(sorted(parts))}: "
            "save the adapter again"
        )
    if A.shape[0] != B.shape[1]:
        raise RunStoreError(
            f"lora_A has as many rows as lora_B has columns; in {source}, {name} has lora_A {tuple(A.shape)} and "
            f"lora_B {tuple(B.shape)}: save it again, with one Linear a matrix where it was loralib's MergedLinear"
        )
    return A, B


def _by_pattern(patterns: Any, name: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of a module's path: PEFT's `get_pattern_key`."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default
