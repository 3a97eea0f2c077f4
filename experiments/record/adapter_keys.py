"""How PEFT's and loralib's tensors spell which matrix and which part of its update they are."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from experiments.record.adapter_formats import AS_DELTA, RunStoreError
from lora_variants.frozen_model.linear_map import split_slice

WRAPPERS = re.compile(r"(?:(?:module|_orig_mod|_fsdp_wrapped_module)\.)*(?:base_model\.model\.)?")
SAVED_MODULE = re.compile(r"\.modules_to_save\.(?P<adapter>[^.]+)(?=\.)")
PART = re.compile(r"(?P<matrix>.+)\.(?P<rest>(?:lora_|ranknum\b).*)")
PARTS = ("lora_A", "lora_B", "lora_E", "lora_embedding_A", "lora_embedding_B", "ranknum")
OTHER_METHODS = {"lora_magnitude_vector": "DoRA", "lora_diag": "KaSA", "lora_A.bias": "a bias", "lora_B.bias": "a bias"}


@dataclass
class Parts:
    """The parts of every update, {matrix: {"lora_A": ..., "lora_B": ...}}, and every other tensor by its name."""

    matrices: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    others: dict[str, Tensor] = field(default_factory=dict)


def parts_by_matrix(tensors: Mapping[str, Tensor], source: Path) -> Parts:
    """Every tensor under its plain name, without what wrappers and adapters' names put around it.

    Raises: RunStoreError for a part of an update that is not known, for several adapters, and for a part twice.
    """
    found = Parts()
    adapters: set[str] = set()
    spelled: dict[str, str] = {}
    for key, tensor in tensors.items():
        name = key[len(WRAPPERS.match(key)[0]) :]  # type: ignore[index]  # it matches the empty string
        if match := PART.fullmatch(name):
            part, adapter = _part(key, match["rest"], source)
            if part in PARTS[:2] and tensor.ndim != 2:
                raise RunStoreError(
                    f"only matrices have a spectrum; {key} in {source} has shape {tuple(tensor.shape)}: "
                    "leave convolutions and stacked experts out of the adapter"
                )
            found.matrices.setdefault(match["matrix"], {})[part] = tensor
            name = f"{match['matrix']}.{part}"
        else:
            saved = SAVED_MODULE.search(name)
            adapter, name = ([saved["adapter"]] if saved else []), SAVED_MODULE.sub("", name)
            found.others[name] = tensor
        adapters.update(adapter)
        if spelled.setdefault(name, key) != key:
            raise RunStoreError(f"{name} stands twice in {source}, as {spelled[name]} and as {key}: keep one of them")
    refuse_twice(found.matrices, source)
    if len(adapters) > 1:
        names = ", ".join(sorted(adapters))
        raise RunStoreError(f"one adapter can be read; {source} holds {len(adapters)}, {names}: save one of them alone")
    return found


def _part(key: str, rest: str, source: Path) -> tuple[str, list[str]]:
    """('lora_A', ['default']) of 'lora_A.default.weight'."""
    part, *adapter = rest.split(".")
    leaf = adapter.pop() if adapter and adapter[-1] in ("weight", "bias") else "weight"
    if part in PARTS and leaf == "weight" and len(adapter) <= 1:
        return part, adapter
    method = OTHER_METHODS.get(part) or OTHER_METHODS.get(f"{part}.{leaf}")
    why = f"it was made with {method}" if method else "that is no part of LoRA or AdaLoRA that is known here"
    raise RunStoreError(f"{key} in {source}: {why}: {AS_DELTA}")


def refuse_twice(names: Iterable[str], source: Path) -> None:
    """Raises: RunStoreError where two names stand for one matrix: 'x' and 'x.weight', or 'x' and rows of it."""
    seen: dict[str, list[str]] = {}
    for name in names:
        path, rows = split_slice(name.removesuffix(".weight"))
        before = seen.setdefault(path, [])
        if before and (not rows or before[0] == path or before[0] == f"{path}.weight"):
            raise RunStoreError(f"{path} stands twice in {source}, as {before[0]} and as {name}: keep one of them")
        before.append(name)
