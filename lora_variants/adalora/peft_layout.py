"""What AdaLoRA learned, in the layout of PEFT's own AdaLoRA: triplets, so that PEFT can go on training them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lora_variants.adalora.config import AdaLoRAConfig
from lora_variants.interface.layer import Triplets
from lora_variants.interface.peft_layouts import PeftAdapter, by_module, in_rows


def adalora_adapter(
    triplets: Mapping[str, Triplets],
    owners: Mapping[str, nn.Module],
    *,
    initial_ranks: Mapping[str, int],
    total_rank: int,
    schedule: Mapping[str, Any],
) -> PeftAdapter:
    """PEFT's AdaLoRA: one alpha for all modules, so what scales differ by goes into lora_E.

    The scale is lora_alpha / (init_r + 1e-5), init_r the largest rank at the start; `rank_pattern` says how much
    of it each module has left. `total_rank` is the sum of the ranks that pruning aims at.
    """
    by_path = by_module(triplets, owners)
    modules = {path: _whole_triplets(parts, d_out) for path, parts, d_out in by_path}
    modules = {path: update for path, update in modules.items() if len(update.Lambda)}
    init_r = max(sum(initial_ranks[name] for name in parts) for _, parts, _ in by_path)
    scale = next(iter(modules.values())).scale
    tensors = {f"{path}.lora_A": update.Q for path, update in modules.items()}
    tensors |= {f"{path}.lora_B": update.P for path, update in modules.items()}
    tensors |= {f"{path}.lora_E": update.Lambda[:, None] * (update.scale / scale) for path, update in modules.items()}
    left = {path: len(update.Lambda) for path, update in modules.items()}
    config = {
        "peft_type": "ADALORA",
        "init_r": init_r,
        "target_r": max(1, round(total_rank / len(modules))),
        "lora_alpha": scale * (init_r + 1e-5),
        "rank_pattern": {f"{path}.lora_E": [i < rank for i in range(init_r)] for path, rank in left.items()},
        **schedule,
    }
    return PeftAdapter(tuple(modules), tensors, config)


def adalora_schedule(config: AdaLoRAConfig, steps: int, *, last: int) -> dict[str, Any]:
    """A run's schedule in PEFT's words; the shortest it accepts where nothing is pruned between start and end.

    `last` is the step of the last pruning.
    """
    first = round(config.initial_fraction * steps)
    total, first, last = (steps, first, last) if first < last <= steps else (1, 0, 1)
    knobs = {"beta1": config.beta1, "beta2": config.beta2, "orth_reg_weight": config.orthogonality}
    return {"total_step": total, "tinit": first, "tfinal": total - last, "deltaT": config.prune_every, **knobs}


def _whole_triplets(parts: Mapping[str, Triplets], d_out: int) -> Triplets:
    """One set of triplets for a module."""
    first = next(iter(parts.values()))
    if len(parts) == 1 and len(first.P) == d_out:
        return first
    values = torch.cat([update.Lambda * update.scale for update in parts.values()])
    P = in_rows({name: update.P for name, update in parts.items()}, d_out)
    return Triplets(P, values, torch.cat([update.Q for update in parts.values()]), 1.0)
