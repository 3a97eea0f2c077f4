"""What was learned, on disk: factors in PEFT's formats, dense updates as `delta.safetensors`.

Every update with factors goes out as plain LoRA. Where the variant has a PEFT layout of its own, it goes out a second
time in that layout, in a sub-folder, so that PEFT can go on training it as what it is. Beside each lies a README.md
with the lines that give the same logits.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.models.model_card import ModelCard
from experiments.models.pooled import MeanPooled
from experiments.record.adapter_formats import CONFIG, DELTA, HEAD, PREFIX, WEIGHTS
from experiments.record.adapter_reading import read_folder
from experiments.record.adapter_readme import README, Stored, readme
from experiments.record.atomic_files import as_json, save_atomically, write_atomically
from lora_variants.frozen_model.linear_map import is_conv1d, split_slice
from lora_variants.interface.layer import Factors
from lora_variants.interface.peft_layouts import PeftAdapter
from lora_variants.interface.variant import Variant
from lora_variants.interface.warm_start import add_updates


def save_update(variant: Variant, trial: int, folder: Path, card: ModelCard, *, base_sha256: str) -> list[Path]:
    """Write one trial's update and heads, learned on the base of the card; returns the files of the folder itself.

    Updates that PEFT has no layout for are written dense in float32. The README.md is not among what is returned: it
    holds nothing that was learned.
    """
    model, heads = variant.model, variant.head_tensors(trial)
    body = model.body_name if isinstance(model, MeanPooled) else None
    if adapters := variant.peft_adapters(trial):
        transposed = any(is_conv1d(layer.base.owner) for layer in variant.layers.values())
        base = _Base(card, base_sha256, body, transposed)
        files = {layout: _save_adapter(adapter, heads, folder / layout, base) for layout, adapter in adapters.items()}
        for layout, written in files.items():
            if card.name or not layout:  # of a base of ours the whole run directory is read
                _write_readme(folder / layout, card, Stored.of(written, body))
        return files[""]
    dense, updates = [], variant.deltas(trial)
    if updates:
        tensors = {n: (u.product() if isinstance(u, Factors) else u).float() for n, u in updates.items()}
        dense.append(_save(tensors, folder / DELTA))
    if heads:
        dense.append(_save(heads, folder / HEAD))
    _write_readme(folder, card, Stored.of(dense, body, _orientations(variant, updates)))
    return dense


def _write_readme(folder: Path, card: ModelCard, stored: Stored) -> None:
    write_atomically(folder / README, readme(card, stored))


def _orientations(variant: Variant, updates: Mapping[str, Any]) -> frozenset[str]:
    """How the model stores the matrices that dense updates are of: as they are, transposed, or with others in one."""
    parameters = {name for name, _ in variant.model.named_parameters()}
    found = set()
    for name in updates.keys() - parameters:
        owner = variant.layers[name].base.owner if name in variant.layers else variant.model.get_submodule(name)
        fused = split_slice(name)[1] or isinstance(owner, nn.MultiheadAttention)
        found.add("fused" if fused else "transposed" if is_conv1d(owner) else "plain")
    return frozenset(found)


@dataclass(frozen=True)
class _Base:
    """The base of an adapter; `transposed` says that its modules store W0 as (d_in, d_out)."""

    card: ModelCard
    sha256: str
    body: str | None
    transposed: bool

    def as_config(self) -> dict[str, Any]:
        """PEFT's own keys, then those that it does not know and ignores."""
        return {
            "task_type": self.card.task_type,
            "base_model_name_or_path": self.card.name,
            "revision": self.card.revision,
            "base_sha256": self.sha256,
            "pooling": self.card.pooling,
            "body": self.body,
            "labels": [*self.card.labels] or None,
            "fan_in_fan_out": self.transposed,
        }


def _save_adapter(adapter: PeftAdapter, heads: Mapping[str, Tensor], folder: Path, base: _Base) -> list[Path]:
    """Write a folder that PEFT loads into the base; where that is the body alone, its head is a file of its own."""
    folder.mkdir(exist_ok=True)
    beside = {} if base.body is None else heads
    inside = {} if beside else heads
    adapter = adapter if base.body is None else adapter.inside(base.body)
    shared = {
        "target_modules": sorted(adapter.modules),
        "modules_to_save": _saved_modules(inside, base.card) or None,
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    named = {f"{PREFIX}{name}": tensor for name, tensor in {**inside, **adapter.tensors}.items()}
    files = [_save(named, folder / WEIGHTS), folder / CONFIG]
    write_atomically(folder / CONFIG, as_json({**adapter.config, **base.as_config(), **shared}))
    return [*files, _save(beside, folder / HEAD)] if beside else files


def _saved_modules(heads: Mapping[str, Tensor], card: ModelCard) -> list[str]:
    """The modules that PEFT replaces whole; of a classifier those beside the body, which PEFT itself names."""
    return sorted({name.partition(".")[0] if card.task_type else name.rpartition(".")[0] for name in heads})


def _save(tensors: Mapping[str, Tensor], path: Path) -> Path:
    save_atomically(tensors, path)
    return path


@torch.no_grad()
def load_update(model: nn.Module, folder: Path) -> None:
    """Add what `save_update` wrote to a plain model's own weights; the model is then the tuned one."""
    adapter = read_folder(folder)
    add_updates(model, adapter.updates)
    parameters = dict(model.named_parameters())
    for name, tensor in adapter.others.items():
        parameters[name].copy_(tensor)
