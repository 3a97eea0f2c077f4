"""Adapters as PEFT and loralib leave them, with something changed: a key, a number, a tensor, some bytes."""

import io
import json
import random
from collections.abc import Callable
from typing import Any

import torch
from fuzzed_trees import MATRICES, Files
from fuzzed_values import any_value, mutated
from safetensors.torch import save
from torch import Tensor

Tensors = dict[Any, Any]

CONFIG: dict[str, Any] = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": list(MATRICES), "bias": "none", "use_rslora": False,
    "rank_pattern": {"matrices.1": 4}, "alpha_pattern": {"matrices.0": 4.0}, "init_lora_weights": True,
    "use_dora": False,
    "fan_in_fan_out": False, "modules_to_save": None, "layers_to_transform": None, "lora_bias": False,
    "task_type": None,
    "base_model_name_or_path": "x", "inference_mode": True, "lora_dropout": 0.0, "revision": None,
    "layer_replication": None,
}  # fmt: skip
OF_ADALORA = {
    "peft_type": "ADALORA",
    "init_r": 4,
    "target_r": 2,
    "rank_pattern": {},
    "alpha_pattern": {},
    "tinit": 0,
    "beta1": 0.85,
}
OTHERS = (
    [],
    3,
    None,
    {},
    {"state_dict": {}},
    {1: 2},
    {"model_state_dict": {"x": [1]}},
    {"matrices.0.lora_A": "x"},
    "x",
)


def fuzzed_adapter(rng: random.Random) -> tuple[Files, str, bool]:
    """Its files, where it is, and whether it holds no scale."""
    return (*_loralib(rng), True) if rng.random() < 0.4 else (*_peft(rng), False)


def _peft(rng: random.Random) -> tuple[Files, str]:
    """A folder with a configuration and safetensors."""
    adalora = rng.random() < 0.3
    name = "base_model.model.{}.lora_{}" if adalora else "base_model.model.{}.lora_{}.weight"
    tensors, config = _factors(rng, name, adalora=adalora), CONFIG | (OF_ADALORA if adalora else {})
    how = rng.random()
    if 0.3 < how < 0.6:
        config = mutated(rng, config)
    elif 0.6 < how < 0.85:
        tensors = _changed(rng, tensors)
    dense = {str(key): tensor.to_dense().contiguous().clone() for key, tensor in tensors.items()}
    text, content = json.dumps(config).encode(), save(dense)
    if 0.85 < how < 0.91:
        text = damaged(rng, text)
    elif 0.91 < how < 0.97:
        content = damaged(rng, content)
    files: Files = {"a/adapter_config.json": text, "a/adapter_model.safetensors": content}
    if how > 0.97:
        files[rng.choice(list(files))] = None
    return files, "a"


def _loralib(rng: random.Random) -> tuple[Files, str]:
    """A file of torch.save."""
    tensors: Any = _factors(rng, "{}.lora_{}", adalora=False)
    how = rng.random()
    if 0.4 < how < 0.75:
        tensors = _changed(rng, tensors)
    elif 0.75 < how < 0.85:
        tensors = rng.choice(
            (*OTHERS, {"state_dict": tensors}, [tensors], {**tensors, 5: 3}, {**tensors, "a": any_value(rng)})
        )
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    name = (
        rng.choice(("a.bin", "a.pt", "a.pth", "a.ckpt")) if how < 0.95 else rng.choice(("a", "a.txt", "a.safetensors"))
    )
    return {name: damaged(rng, buffer.getvalue()) if 0.85 < how < 0.95 else buffer.getvalue()}, name


def _factors(rng: random.Random, name: str, *, adalora: bool) -> Tensors:
    generator = torch.Generator().manual_seed(rng.randrange(2**32))
    tensors: Tensors = {}
    for layer, (d_out, d_in) in MATRICES.items():
        shapes = {"A": (4, d_in), "B": (d_out, 4)} | ({"E": (4, 1)} if adalora else {})
        tensors |= {name.format(layer, part): torch.randn(shape, generator=generator) for part, shape in shapes.items()}
    return tensors


def _changed(rng: random.Random, tensors: Tensors) -> Tensors:
    """One tensor that is not as it should be, or not where."""
    key, how = rng.choice(list(tensors)), rng.random()
    if how < 0.7:
        return tensors | {key: _another(rng, tensors[key])}
    if how < 0.8:
        return {name: tensor for name, tensor in tensors.items() if name != key}
    names = (
        f"{key}.x", key.upper(), f"x.{key}", key.replace("matrices.0", "matrices.9"), "", "lora_A", "head.weight",
        key.replace("lora_A", "lora_magnitude_vector"), key.replace(".weight", ".default.weight"),
        f"base_model.model.{key}",
        key.replace("lora_A", "lora_embedding_A"), key.replace("matrices", "module.matrices"), key.replace("lora_",
        "loha_"),
    )  # fmt: skip
    kept = {name: tensor for name, tensor in tensors.items() if name != key or how > 0.9}
    return kept | {rng.choice(names): tensors[key].clone()}


def _another(rng: random.Random, tensor: Tensor) -> Tensor:
    changes: tuple[Callable[[], Tensor], ...] = (
        lambda: tensor.half(), lambda: tensor.bfloat16(), lambda: tensor.double(), lambda: tensor.int(),
        lambda: tensor.to(torch.int8), lambda: tensor > 0, lambda: tensor.to(torch.float8_e4m3fn), lambda: tensor.mT,
        lambda: torch.complex(tensor, tensor), lambda: tensor[:3], lambda: tensor[:, :1], lambda: tensor[:0],
        lambda: tensor[:, :0], lambda: tensor.flatten(), lambda: tensor[None], lambda: torch.tensor(1.0),
        lambda: torch.zeros(0), lambda: tensor * float("nan"), lambda: tensor * float("inf"), lambda: tensor * 1e38,
        lambda: tensor * 1e-40, lambda: tensor * 0, lambda: tensor.to_sparse(), lambda: torch.cat([tensor, tensor]),
        lambda: tensor[:, :, None, None], lambda: tensor.index_fill(0, torch.tensor([0]), float("nan")),
        lambda: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8).dequantize(), lambda: tensor.expand(2,
        *tensor.shape),
        lambda: tensor.clone().requires_grad_(),
    )  # fmt: skip
    return rng.choice(changes)()


def damaged(rng: random.Random, content: bytes) -> bytes:
    """The file after an accident."""
    place = rng.randrange(len(content))
    before, behind = content[:place], content[place:]
    return rng.choice(
        (
            b"", before, content[:8], before + rng.randbytes(4) + behind[4:], content + b"x" * 100, rng.randbytes(100),
            b"\xff" * 8 + content[8:], b"version https://git-lfs.github.com/spec/v1\n", b"null", b"[]", b"{}",
            before + rng.randbytes(1) + behind[1:], b"\x00" * len(content), b"\xef\xbb\xbf" + content, b"[" * 100_000,
            b'{"a": ' * 5000, content.replace(b"matrices", b"matrice\xff"),
        )
    )  # fmt: skip
