"""What was learned, on disk: factors in PEFT's LoRA format, dense updates as `delta.safetensors`."""

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from experiments.record.folder import as_json, write_atomically
from lora_variants.layer import Factors
from lora_variants.linear_map import LinearMap, is_conv1d, slice_rows, split_slice
from lora_variants.variant import Variant

PREFIX = "base_model.model."
WEIGHTS, CONFIG, DELTA, HEAD = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "delta.safetensors",
    "head.safetensors",
)


def save_update(variant: Variant, trial: int, folder: Path) -> list[Path]:
    """Write one trial's update and heads; returns the files.

    Factors go into PEFT's format, as plain LoRA of the same function: slices of a fused projection become
    one adapter of the whole of it, with zeros for the frozen rows. Updates without factors, and those of
    torch's multi-head attention, which PEFT lays out otherwise, are written dense in float32.
    """
    updates, heads = variant.deltas(trial), _heads(variant, trial)
    owners = {name: layer.base.owner for name, layer in variant.layers.items()}
    dense = any(isinstance(update, Tensor) for update in updates.values())
    if updates and not dense and not any(isinstance(o, nn.MultiheadAttention) for o in owners.values()):
        return _save_peft(variant.model, updates, owners, heads, folder)
    files = []
    if updates:
        tensors = {n: (u.product() if isinstance(u, Factors) else u).float() for n, u in updates.items()}
        files.append(_save(tensors, folder / DELTA))
    if heads:
        files.append(_save(heads, folder / HEAD))
    return files


def _heads(variant: Variant, trial: int) -> dict[str, Tensor]:
    return {
        f"{name}.{key}": tensor for name, head in variant.heads.items() for key, tensor in head.parts(trial).items()
    }


def _save_peft(
    model: nn.Module,
    updates: Mapping[str, Factors | Tensor],
    owners: Mapping[str, nn.Module],
    heads: Mapping[str, Tensor],
    folder: Path,
) -> list[Path]:
    merged = _whole_modules(updates, owners)
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in heads.items()}
    for name, update in merged.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = update.right
        tensors[f"{PREFIX}{name}.lora_B.weight"] = update.left
    by_length = sorted(merged, key=len, reverse=True)  # PEFT takes the first pattern that a name ends with
    ranks = {name: len(merged[name].right) for name in by_length}
    alphas = {name: merged[name].scale * ranks[name] for name in by_length}
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "r": ranks[by_length[0]],
        "lora_alpha": alphas[by_length[0]],
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "target_modules": sorted(merged),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in heads}) or None,
        "fan_in_fan_out": any(is_conv1d(owner) for owner in owners.values()),
        "bias": "none",
        "lora_dropout": 0.0,
        "use_rslora": False,
        "inference_mode": True,
    }
    files = [_save(tensors, folder / WEIGHTS), folder / CONFIG]
    write_atomically(folder / CONFIG, as_json(config))
    return files


def _whole_modules(updates: Mapping[str, Factors | Tensor], owners: Mapping[str, nn.Module]) -> dict[str, Factors]:
    """One pair of factors a module: slices of a fused projection stacked, each in the rows that it owns."""
    by_module: dict[str, list[tuple[str, Factors]]] = defaultdict(list)
    for name, update in updates.items():
        assert isinstance(update, Factors)
        by_module[split_slice(name)[0]].append((name, update))
    merged = {}
    for module, parts in by_module.items():
        d_out = LinearMap(owners[parts[0][0]]).d_out
        if len(parts) == 1 and len(parts[0][1].left) == d_out:
            merged[module] = parts[0][1]
            continue
        rank = sum(len(update.right) for _, update in parts)
        left, start = parts[0][1].left.new_zeros(d_out, rank), 0
        for name, update in parts:
            rows = slice_rows(name, d_out) or (0, d_out)
            left[rows[0] : rows[1], start : start + len(update.right)] = update.left * update.scale
            start += len(update.right)
        merged[module] = Factors(left, torch.cat([update.right for _, update in parts]), 1.0)
    return {module: update for module, update in merged.items() if len(update.right)}


def _save(tensors: Mapping[str, Tensor], path: Path) -> Path:
    partial = path.with_name(f"{path.name}.partial")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
    partial.replace(path)
    return path


@torch.no_grad()
def load_update(model: nn.Module, folder: Path) -> None:
    """Add what `save_update` wrote to a plain model's own weights; the model is then the tuned one."""
    if (folder / WEIGHTS).exists():
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder / WEIGHTS).items()}
        for module, rank in config["rank_pattern"].items():
            right, left = tensors.pop(f"{module}.lora_A.weight"), tensors.pop(f"{module}.lora_B.weight")
            scale = config["alpha_pattern"][module] / rank
            _add(model, module, (scale * left.double()) @ right.double())
        _put(model, tensors)
    if (folder / DELTA).exists():
        for name, update in load_file(folder / DELTA).items():
            _add(model, name, update)
    if (folder / HEAD).exists():
        _put(model, load_file(folder / HEAD))


def _add(model: nn.Module, name: str, update: Tensor) -> None:
    """Add an update to the linear map of this name, to a slice of it, or to a parameter."""
    from lora_variants.attach import select_maps

    parameters = dict(model.named_parameters())
    weight = parameters[name] if name in parameters else select_maps(model, [name])[name][1].base_weight()
    weight += update.to(weight)


def _put(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        parameters[name].copy_(tensor)
