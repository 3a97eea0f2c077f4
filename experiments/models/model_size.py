"""How large a model its config.json describes: known before memory is taken for it."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from experiments.models.model_config import ModelConfig, ModelError

COUNTS = (
    "vocab_size", "hidden_size", "n_embd", "d_model", "dim", "embedding_size", "head_dim",
    "intermediate_size", "n_inner", "hidden_dim", "ffn_dim", "d_ff", "num_attention_heads", "n_head", "n_heads",
    "num_heads", "num_key_value_heads", "max_position_embeddings", "n_positions",
)  # fmt: skip
# The deepest model that is published has 1,000 layers (DeepNet, 2203.00555).
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers")
RANGES = dict.fromkeys(COUNTS, (1, 10**9)) | dict.fromkeys(LAYERS, (0, 1000)) | {"num_labels": (0, 10**6)}
MOST_PARAMETERS = 10**13  # the largest models that are published have a fifth of it
MOST_TENSORS = 10**5  # of parameters; these have fewer, and more take too long to count


def refuse_sizes(config: ModelConfig, settings: Mapping[str, Any], section: str = "") -> None:
    """Raises: ModelError for a size in config.json that no model has; one of another type is left to transformers."""
    for key, value in settings.items():
        if isinstance(value, dict):
            refuse_sizes(config, value, f"{section}{key}.")
        elif key in RANGES and type(value) is int:
            least, most = RANGES[key]
            if not least <= value <= most:
                shown = str(value) if abs(value) < 10**20 else f"{str(value)[:8]}... ({len(str(value))} digits)"
                raise ModelError(
                    f"model.name: config.json of {config.name!r} has {section}{key}={shown}, which is from {least} to "
                    f"{most} in a model; download it again, or name a whole model"
                )


def counted(config: ModelConfig, build: Callable[[], nn.Module]) -> nn.Module:
    """The model on the meta device, where it takes no memory.

    Raises: ModelError where it has more tensors or parameters than any model, and what `build` raises.
    """
    with _counting(config), torch.device("meta"):
        return build()


@contextmanager
def _counting(config: ModelConfig) -> Iterator[None]:
    tensors, parameters = 0, 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal tensors, parameters
        tensors, parameters = tensors + 1, parameters + (0 if parameter is None else parameter.numel())
        if tensors > MOST_TENSORS or parameters > MOST_PARAMETERS:
            raise ModelError(
                f"model.name: config.json of {config.name!r} describes a model of more than {MOST_PARAMETERS:,} "
                f"parameters or {MOST_TENSORS:,} tensors of them, as no model has; download it again"
            )

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def refuse_too_large(config: ModelConfig, model: nn.Module) -> None:
    """Raises: ModelError where the weights of a model on the meta device would not fit into this machine's memory."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    needed, there = parameters * getattr(torch, config.dtype).itemsize, _memory_bytes()
    if needed > there:
        raise ModelError(
            f"model.name: config.json of {config.name!r} describes {parameters:,} parameters, {needed / 2**30:,.0f} "
            f"GiB in model.dtype={config.dtype}, and this machine has {there / 2**30:,.0f} GiB; choose a smaller model "
            f"or a narrower dtype"
        )


def _memory_bytes() -> float:
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError):  # Windows
        return math.inf
