"""What the parts of an adapter mean: ΔW of every matrix, as those who wrote them compute it."""

import math
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from experiments.record.adapter_formats import AS_DELTA, Adapter, RunStoreError
from experiments.record.adapter_keys import parts_by_matrix
from experiments.record.peft_config import PeftConfig, is_number, shown
from lora_variants.interface.layer import Factors, Triplets
from lora_variants.interface.warm_start import Update

ADALORA_EPSILON = 1e-5  # that AdaLoRA's authors, and PEFT after them, add to the divisor


def peft_adapter(tensors: Mapping[str, Tensor], config: PeftConfig) -> Adapter:
    """A PEFT adapter, LoRA or AdaLoRA, from its tensors and its `adapter_config.json`."""
    config.refuse_other_methods()
    folder = config.path.parent
    found = parts_by_matrix(tensors, folder)
    if not found.matrices:
        raise RunStoreError(
            f"an adapter holds at least one lora_A and lora_B; the one in {folder} has the keys "
            f"{sorted(tensors)[:3]}: give another folder"
        )
    update = _adalora_update if config.is_adalora else _lora_update
    return Adapter({name: update(name, parts, config) for name, parts in found.matrices.items()}, found.others)


def _lora_update(name: str, parts: Mapping[str, Tensor], config: PeftConfig) -> Factors:
    """ΔW = B A · alpha / r, or / sqrt(r) with rsLoRA, of PEFT's `LoraLayer.get_delta_weight`."""
    A, B = _pair(name, parts, config.path.parent)
    rank, alpha = config.rank(name), config.alpha(name)
    if not is_number(rank) or rank != len(A) or not is_number(alpha):
        raise RunStoreError(
            f"adapter_config.json must give the rank and lora_alpha of every matrix; in {config.path.parent} it gives "
            f"rank {shown(rank)} and lora_alpha {shown(alpha)} for {name}, whose lora_A has {len(A)} rows: "
            "save the adapter again"
        )
    divisor = math.sqrt(len(A)) if config.use_rslora else len(A)
    return Factors(left=B, right=A, scale=alpha / divisor if len(A) else 0.0)


def _adalora_update(name: str, parts: Mapping[str, Tensor], config: PeftConfig) -> Triplets:
    """ΔW = B (E ∘ A) · alpha / (init_r + 1e-5), of PEFT's AdaLoRA `SVDLinear.get_delta_weight`.

    The divisor stays the initial rank however many directions were pruned.
    """
    A, B = _pair(name, parts, config.path.parent, beside=("lora_E", "ranknum"))
    E, init_r, alpha = parts.get("lora_E"), config.entries.get("init_r"), config.entries.get("lora_alpha")
    if E is None or E.numel() != len(A) or not is_number(alpha) or not is_number(init_r) or init_r < max(1, len(A)):
        raise RunStoreError(
            f"AdaLoRA needs a lora_E with one value a row of lora_A, an init_r of at least as many, and lora_alpha; in "
            f"{config.path.parent}, {name} has {len(A)} rows, lora_E {None if E is None else tuple(E.shape)}, "
            f"init_r {shown(init_r)}, lora_alpha {shown(alpha)}: save the adapter again"
        )
    scale = (alpha if alpha > 0 else init_r) / (init_r + ADALORA_EPSILON)
    return Triplets(P=B, Lambda=E.flatten(), Q=A, scale=scale)


def loralib_adapter(tensors: Mapping[str, Tensor], source: Path) -> Adapter:
    """A state dict of loralib, or of the AdaLoRA authors' loralib: alpha is in their code, the divisor in the file."""
    found = parts_by_matrix(tensors, source)
    if not found.matrices:
        raise RunStoreError(
            f"a loralib checkpoint has keys that end in .lora_A and .lora_B; {source} has none: "
            "save it with loralib.lora_state_dict(model)"
        )
    updates: dict[str, Update] = {}
    divisors: dict[str, float] = {}
    for name, parts in found.matrices.items():
        updates[name], divisors[name] = _loralib_update(name, parts, source)
    return Adapter(updates, found.others, divisors)


def _loralib_update(name: str, parts: Mapping[str, Tensor], source: Path) -> tuple[Update, float]:
    """ΔW = B A · alpha / r, or AdaLoRA's B (E ∘ A) · alpha / (ranknum + 1e-5); here with alpha as the divisor."""
    A, B = _pair(name, parts, source, beside=("lora_E", "ranknum"))
    E, ranknum = parts.get("lora_E"), parts.get("ranknum")
    if E is None and ranknum is None and len(A):
        return Factors(B, A, 1.0), len(A)
    divisor = ranknum.item() if ranknum is not None and ranknum.numel() == 1 else math.nan
    if E is None or E.numel() != len(A) or not divisor >= max(1, len(A)) or not is_number(divisor):
        there = {part: tuple(tensor.shape) for part, tensor in parts.items()}
        raise RunStoreError(
            f"an update has a lora_A of at least one row and lora_B, and of AdaLoRA also a lora_E with one value a row "
            f"and a ranknum of at least as many, which divides alpha; in {source}, {name} has {there}: save "
            "all of these of every matrix"
        )
    return Triplets(P=B, Lambda=E.flatten(), Q=A, scale=1.0), divisor + ADALORA_EPSILON


def _pair(
    name: str, parts: Mapping[str, Tensor], source: Path, *, beside: tuple[str, ...] = ()
) -> tuple[Tensor, Tensor]:
    """(A, B) with A (r, d_in) and B (d_out, r); an embedding's ΔW = (B A)ᵀ changes their places."""
    used: tuple[str, str]
    if "lora_embedding_A" in parts and "lora_embedding_B" in parts:
        used = ("lora_embedding_A", "lora_embedding_B")
        A, B = parts["lora_embedding_B"].mT, parts["lora_embedding_A"].mT
    elif "lora_A" in parts and "lora_B" in parts:
        used = ("lora_A", "lora_B")
        A, B = parts["lora_A"], parts["lora_B"]
    else:
        raise RunStoreError(
            f"ΔW = B A needs both factors; in {source}, {name} has only {', '.join(sorted(parts))}: "
            "save the adapter again"
        )
    if more := sorted(set(parts) - {*used, *beside}):
        raise RunStoreError(
            f"ΔW = B A of LoRA has two factors; in {source}, {name} has {', '.join(more)} too, which changes it: "
            f"{AS_DELTA}"
        )
    if A.shape[0] != B.shape[1]:
        raise RunStoreError(
            f"lora_A has as many rows as lora_B has columns; in {source}, {name} has lora_A {tuple(A.shape)} and "
            f"lora_B {tuple(B.shape)}: save it again, with one Linear a matrix where it was loralib's MergedLinear"
        )
    if not A.shape[1] or not B.shape[0]:
        raise RunStoreError(
            f"a factor is as wide as its matrix; in {source}, {name} has lora_A {tuple(A.shape)} and lora_B "
            f"{tuple(B.shape)}: gather sharded weights (ZeRO-3, FSDP) before saving them"
        )
    return A, B
