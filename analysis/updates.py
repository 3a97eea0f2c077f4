"""An update ΔW of one matrix, and how PEFT's and loralib's tensors spell it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float

from analysis.singular_values import singular_values, singular_values_of_factors

DELTA = "delta.safetensors"

FACTOR_KEY = re.compile(r"(?P<matrix>.+)\.(?P<part>lora_(?:embedding_)?[ABE])(?:\.weight)?")
# PEFT's initialisations that move W0 itself, so that B A is not W - W0
INITIALISATIONS_THAT_MOVE_W0 = ("pissa", "corda", "olora", "loftq", "lora_ga")


class RunStoreError(ValueError):
    """What is on disk cannot be read as updates; the message gives the rule, the value and the way out."""


@dataclass(frozen=True)
class Factors:
    """ΔW = left @ right, scale included; `scale_known` is false where the file holds none and 1 was taken."""

    left: Float[np.ndarray, "d_out r"]
    right: Float[np.ndarray, "r d_in"]
    scale_known: bool

    @property
    def shape(self) -> tuple[int, int]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        return int(self.left.shape[1])

    def singular_values(self) -> Float[np.ndarray, " k"]:
        return singular_values_of_factors(self.left, self.right)


@dataclass(frozen=True)
class Dense:
    """ΔW itself: an update that has no factors (full fine-tuning, DoRA)."""

    delta: Float[np.ndarray, "d_out d_in"]
    scale_known: ClassVar[bool] = True
    rank: ClassVar[None] = None

    @property
    def shape(self) -> tuple[int, int]:
        return self.delta.shape[0], self.delta.shape[1]

    def singular_values(self) -> Float[np.ndarray, " k"]:
        return singular_values(self.delta)


Update = Factors | Dense


def dense_updates(tensors: Mapping[str, np.ndarray]) -> dict[str, Update]:
    """Every matrix among the tensors as it is; biases, norms and stacks have no spectrum and are left out."""
    return {key.removesuffix(".weight"): Dense(delta) for key, delta in tensors.items() if delta.ndim == 2}


def peft_updates(tensors: Mapping[str, np.ndarray], config: dict[str, Any], folder: Path) -> dict[str, Update]:
    """ΔW of every matrix of a PEFT adapter, from its tensors and its `adapter_config.json`."""
    initialisation = str(config.get("init_lora_weights")).lower()
    moved = initialisation.startswith(INITIALISATIONS_THAT_MOVE_W0)
    if config.get("use_dora") or any("lora_magnitude_vector" in key for key in tensors) or moved:
        how = f"init_lora_weights {initialisation!r}" if moved else "DoRA"
        raise RunStoreError(
            f"the factors of an adapter are its ΔW only if W0 stays as it was and nothing rescales W0 + B A; "
            f"{folder} was made with {how}: save merged minus base weights as {DELTA} in that folder"
        )
    matrices = _parts_by_matrix(tensors, folder)
    if not matrices:
        raise RunStoreError(
            f"an adapter holds at least one lora_A and lora_B; the one in {folder} has the keys "
            f"{sorted(tensors)[:3]}: give another folder"
        )
    update = _adalora_update if config["peft_type"] == "ADALORA" else _lora_update
    return {name: update(name, parts, config, folder) for name, parts in matrices.items()}


def _lora_update(name: str, parts: dict[str, np.ndarray], config: dict[str, Any], source: Path) -> Factors:
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
    scale = alpha / divisor if A.shape[0] else 0.0
    return Factors(left=B, right=A.astype(np.float64) * scale, scale_known=True)


def _adalora_update(name: str, parts: dict[str, np.ndarray], config: dict[str, Any], source: Path) -> Factors:
    """ΔW = B (E ∘ A) · alpha / (init_r + 1e-5), of PEFT's AdaLoRA `SVDLinear.get_delta_weight`.

    The divisor stays the initial rank however many directions were pruned.
    """
    A, B = _pair(name, parts, source)
    E = parts.get("lora_E")
    initial_rank, alpha = config.get("init_r"), config.get("lora_alpha")
    numbers = (int, float)
    if E is None or E.size != A.shape[0] or not isinstance(initial_rank, numbers) or not isinstance(alpha, numbers):
        raise RunStoreError(
            f"AdaLoRA needs a lora_E with one value a row of lora_A, init_r and lora_alpha; in {source}, "
            f"{name} has {A.shape[0]} rows, lora_E {None if E is None else E.shape}, "
            f"init_r {initial_rank!r}, lora_alpha {alpha!r}: save the adapter again"
        )
    scale = (alpha if alpha > 0 else initial_rank) / (initial_rank + 1e-5)
    return Factors(left=B, right=A.astype(np.float64) * E.reshape(-1, 1) * scale, scale_known=True)


def loralib_updates(tensors: Mapping[str, np.ndarray], source: Path) -> dict[str, Update]:
    """ΔW = B A of every matrix in a loralib state dict, the scale taken as 1: loralib keeps alpha in code."""
    matrices = _parts_by_matrix(tensors, source)
    if not matrices:
        raise RunStoreError(
            f"a loralib checkpoint has keys that end in .lora_A and .lora_B; {source} has none: "
            "save it with loralib.lora_state_dict(model)"
        )
    pairs = {name: _pair(name, parts, source) for name, parts in matrices.items()}
    return {name: Factors(left=B, right=A, scale_known=False) for name, (A, B) in pairs.items()}


def _parts_by_matrix(tensors: Mapping[str, np.ndarray], source: Path) -> dict[str, dict[str, np.ndarray]]:
    """{matrix name: {"lora_A": ..., "lora_B": ..., "lora_E": ...}}; every other key is of a saved head."""
    matrices: dict[str, dict[str, np.ndarray]] = {}
    for key, tensor in tensors.items():
        if match := FACTOR_KEY.fullmatch(key):
            if tensor.ndim != 2:
                raise RunStoreError(
                    f"only matrices have a spectrum; {key} in {source} has shape {tensor.shape}: "
                    "leave convolutions and stacked experts out of the adapter"
                )
            name = match["matrix"].removeprefix("base_model.model.")
            matrices.setdefault(name, {})[match["part"]] = tensor
    return matrices


def _pair(name: str, parts: dict[str, np.ndarray], source: Path) -> tuple[np.ndarray, np.ndarray]:
    """(A, B) with A (r, d_in) and B (d_out, r); an embedding's ΔW = (B A)ᵀ changes their places."""
    if "lora_embedding_A" in parts and "lora_embedding_B" in parts:
        A, B = parts["lora_embedding_B"].T, parts["lora_embedding_A"].T
    elif "lora_A" in parts and "lora_B" in parts:
        A, B = parts["lora_A"], parts["lora_B"]
    else:
        raise RunStoreError(
            f"ΔW = B A needs both factors; in {source}, {name} has only {', '.join(sorted(parts))}: "
            "save the adapter again"
        )
    if A.shape[0] != B.shape[1]:
        raise RunStoreError(
            f"lora_A has as many rows as lora_B has columns; in {source}, {name} has lora_A {A.shape} and "
            f"lora_B {B.shape}: save it again, with one Linear a matrix where it was loralib's MergedLinear"
        )
    return A, B


def _by_pattern(patterns: Any, name: str, default: Any) -> Any:
    """The value of the first pattern that matches the end of a module's path: PEFT's `get_pattern_key`."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default
