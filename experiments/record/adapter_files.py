"""What was learned, on disk: factors in PEFT's formats, dense updates as `delta.safetensors`.

Every update with factors goes out as plain LoRA. Where the variant has a PEFT layout of its own, it goes out a second
time in that layout, in a sub-folder, so that PEFT can go on training it as what it is.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.record.adapter_formats import CONFIG, DELTA, HEAD, PREFIX, WEIGHTS
from experiments.record.adapter_reading import read_folder
from experiments.record.atomic_files import as_json, save_atomically, write_atomically
from lora_variants.frozen_model.linear_map import is_conv1d
from lora_variants.interface.layer import Factors
from lora_variants.interface.peft_layouts import PeftAdapter
from lora_variants.interface.variant import Variant
from lora_variants.interface.warm_start import add_updates


def save_update(variant: Variant, trial: int, folder: Path) -> list[Path]:
    """Write one trial's update and heads; returns the files of the folder itself.

    Updates that PEFT has no layout for are written dense in float32.
    """
    heads = variant.head_tensors(trial)
    if adapters := variant.peft_adapters(trial):
        transposed = any(is_conv1d(layer.base.owner) for layer in variant.layers.values())
        files = {
            layout: _save_adapter(adapter, heads, folder / layout, transposed=transposed)
            for layout, adapter in adapters.items()
        }
        return files[""]
    dense = []
    if updates := variant.deltas(trial):
        tensors = {n: (u.product() if isinstance(u, Factors) else u).float() for n, u in updates.items()}
        dense.append(_save(tensors, folder / DELTA))
    if heads:
        dense.append(_save(heads, folder / HEAD))
    return dense


def _save_adapter(adapter: PeftAdapter, heads: Mapping[str, Tensor], folder: Path, *, transposed: bool) -> list[Path]:
    """Write a folder that PEFT loads; `transposed` says that the modules store W0 as (d_in, d_out)."""
    folder.mkdir(exist_ok=True)
    shared = {
        "task_type": None,
        "base_model_name_or_path": None,
        "target_modules": sorted(adapter.modules),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in heads}) or None,
        "fan_in_fan_out": transposed,
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    named = {f"{PREFIX}{name}": tensor for name, tensor in {**heads, **adapter.tensors}.items()}
    files = [_save(named, folder / WEIGHTS), folder / CONFIG]
    write_atomically(folder / CONFIG, as_json({**adapter.config, **shared}))
    return files


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
