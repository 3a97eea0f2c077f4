"""What was learned, on disk: factors in PEFT's formats, dense updates as `delta.safetensors`.

Every update with factors goes out as plain LoRA. AdaLoRA's triplets go out a second time in PEFT's own AdaLoRA
layout, in the sub-folder `adalora`, so that PEFT can go on training them as what they are.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from experiments.record.adapter_formats import CONFIG, DELTA, HEAD, PREFIX, WEIGHTS
from experiments.record.adapter_reading import read_folder
from experiments.record.folder import as_json, write_atomically
from lora_variants.adalora import AdaLoRA, AdaLoRAConfig, last_pruning
from lora_variants.layer import Factors, Triplets
from lora_variants.linear_map import LinearMap, is_conv1d, slice_rows, split_slice
from lora_variants.start import add_updates
from lora_variants.variant import Variant

ADALORA = "adalora"  # the sub-folder
T = TypeVar("T", Factors, Triplets)


def save_update(variant: Variant, trial: int, folder: Path) -> list[Path]:
    """Write one trial's update and heads; returns the files of the folder itself.

    Slices of a fused projection become one adapter of the whole of it, with zeros for the frozen rows.
    Updates without factors, those of rank 0 alone, and those of torch's multi-head attention, which PEFT lays out
    otherwise, are written dense in float32.
    """
    updates, heads = variant.deltas(trial), variant.head_tensors(trial)
    owners = {name: layer.base.owner for name, layer in variant.layers.items()}
    factors = {name: update for name, update in updates.items() if isinstance(update, Factors)}
    learned = any(len(update.right) for update in factors.values())
    if learned and not any(isinstance(owner, nn.MultiheadAttention) for owner in owners.values()):
        if isinstance(variant, AdaLoRA):
            _save_adalora(variant, trial, owners, heads, folder / ADALORA)
        return _save_lora(factors, owners, heads, folder)
    files = []
    if updates:
        tensors = {n: (u.product() if isinstance(u, Factors) else u).float() for n, u in updates.items()}
        files.append(_save(tensors, folder / DELTA))
    if heads:
        files.append(_save(heads, folder / HEAD))
    return files


def _save_lora(
    factors: Mapping[str, Factors], owners: Mapping[str, nn.Module], heads: Mapping[str, Tensor], folder: Path
) -> list[Path]:
    """Plain LoRA with a rank and an alpha for every module."""
    modules = {path: _whole_factors(parts, d_out) for path, parts, d_out in _by_module(factors, owners)}
    modules = {path: update for path, update in modules.items() if len(update.right)}
    tensors = {f"{path}.lora_A.weight": update.right for path, update in modules.items()}
    tensors |= {f"{path}.lora_B.weight": update.left for path, update in modules.items()}
    by_length = sorted(modules, key=len, reverse=True)  # PEFT takes the first pattern that a name ends with
    ranks = {path: len(modules[path].right) for path in by_length}
    alphas = {path: modules[path].scale * ranks[path] for path in by_length}
    config = {
        "peft_type": "LORA",
        "r": ranks[by_length[0]],
        "lora_alpha": alphas[by_length[0]],
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "use_rslora": False,
    }
    return _save_peft(tensors, config, modules, owners, heads, folder)


def _save_adalora(
    variant: AdaLoRA, trial: int, owners: Mapping[str, nn.Module], heads: Mapping[str, Tensor], folder: Path
) -> None:
    """PEFT's AdaLoRA: one alpha for all modules, so what scales differ by goes into lora_E.

    The scale is lora_alpha / (init_r + 1e-5), init_r the largest rank at the start; `rank_pattern` says how much
    of it each module has left.
    """
    triplets = {name: layer.triplets(trial) for name, layer in variant.layers.items()}
    modules = {path: _whole_triplets(parts, d_out) for path, parts, d_out in _by_module(triplets, owners)}
    modules = {path: update for path, update in modules.items() if len(update.Lambda)}
    at_start = {name: layer.initial_ranks[trial] for name, layer in variant.layers.items()}
    init_r = max(sum(at_start[name] for name in parts) for _, parts, _ in _by_module(triplets, owners))
    scale = next(iter(modules.values())).scale
    tensors = {f"{path}.lora_A": update.Q for path, update in modules.items()}
    tensors |= {f"{path}.lora_B": update.P for path, update in modules.items()}
    tensors |= {f"{path}.lora_E": update.Lambda[:, None] * (update.scale / scale) for path, update in modules.items()}
    left = {path: len(update.Lambda) for path, update in modules.items()}
    target = sum(layer.ranks[trial] for layer in variant.layers.values())
    config = {
        "peft_type": "ADALORA",
        "init_r": init_r,
        "target_r": max(1, round(target / len(modules))),
        "lora_alpha": scale * (init_r + 1e-5),
        "rank_pattern": {f"{path}.lora_E": [i < rank for i in range(init_r)] for path, rank in left.items()},
        **_schedule(variant.configs[trial], variant.pack.total_steps[trial]),
    }
    folder.mkdir(exist_ok=True)
    _save_peft(tensors, config, modules, owners, heads, folder)


def _schedule(config: AdaLoRAConfig, steps: int) -> dict[str, Any]:
    """The run's schedule in PEFT's words; the shortest it accepts where nothing is pruned between start and end."""
    first, last = round(config.initial_fraction * steps), last_pruning(steps, config)
    total, first, last = (steps, first, last) if first < last <= steps else (1, 0, 1)
    knobs = {"beta1": config.beta1, "beta2": config.beta2, "orth_reg_weight": config.orthogonality}
    return {"total_step": total, "tinit": first, "tfinal": total - last, "deltaT": config.prune_every, **knobs}


def _save_peft(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    modules: Iterable[str],
    owners: Mapping[str, nn.Module],
    heads: Mapping[str, Tensor],
    folder: Path,
) -> list[Path]:
    shared = {
        "task_type": None,
        "base_model_name_or_path": None,
        "target_modules": sorted(modules),
        "modules_to_save": sorted({name.rpartition(".")[0] for name in heads}) or None,
        "fan_in_fan_out": any(is_conv1d(owner) for owner in owners.values()),
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    named = {f"{PREFIX}{name}": tensor for name, tensor in {**heads, **tensors}.items()}
    files = [_save(named, folder / WEIGHTS), folder / CONFIG]
    write_atomically(folder / CONFIG, as_json({**config, **shared}))
    return files


def _by_module(updates: Mapping[str, T], owners: Mapping[str, nn.Module]) -> list[tuple[str, dict[str, T], int]]:
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
    left = _in_rows({name: update.left * update.scale for name, update in parts.items()}, d_out)
    return Factors(left, torch.cat([update.right for update in parts.values()]), 1.0)


def _whole_triplets(parts: Mapping[str, Triplets], d_out: int) -> Triplets:
    """One set of triplets for a module."""
    first = next(iter(parts.values()))
    if len(parts) == 1 and len(first.P) == d_out:
        return first
    values = torch.cat([update.Lambda * update.scale for update in parts.values()])
    P = _in_rows({name: update.P for name, update in parts.items()}, d_out)
    return Triplets(P, values, torch.cat([update.Q for update in parts.values()]), 1.0)


def _in_rows(lefts: Mapping[str, Tensor], d_out: int) -> Tensor:
    """The left factors of slices side by side, each in the rows that it owns, zeros in the others."""
    widths = [left.shape[1] for left in lefts.values()]
    whole = next(iter(lefts.values())).new_zeros(d_out, sum(widths))
    for (name, left), columns in zip(lefts.items(), whole.split(widths, dim=1), strict=True):
        columns[slice(*(slice_rows(name, d_out) or (0, d_out)))] = left
    return whole


def _save(tensors: Mapping[str, Tensor], path: Path) -> Path:
    partial = path.with_name(f"{path.name}.partial")
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, partial)
    partial.replace(path)
    return path


@torch.no_grad()
def load_update(model: nn.Module, folder: Path) -> None:
    """Add what `save_update` wrote to a plain model's own weights; the model is then the tuned one."""
    adapter = read_folder(folder)
    add_updates(model, adapter.updates)
    parameters = dict(model.named_parameters())
    for name, tensor in adapter.others.items():
        parameters[name].copy_(tensor)
