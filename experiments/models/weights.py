"""Base weights on disk: a fingerprint of their content, and a cache that trusts nothing it did not verify."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as parse
from safetensors.torch import save_file
from torch import Tensor, nn

from experiments.shipped_files import read_shipped
from experiments.user_cache import NotHereError, cache_folder, is_read_only

Report = Callable[[str, int, int], None]


def silent(what: str, done: int, total: int) -> None:
    """A report that nobody reads."""


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """sha256 of names, types, shapes and values: equal exactly where the weights are equal bit for bit."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def load_shipped(model: nn.Module, name: str) -> None:
    """Load the weights that come with the package. Raises: ShippedFileError where they are not what was shipped."""
    model.load_state_dict(parse(read_shipped(f"{name}.safetensors")))


def cached(model: nn.Module, *, key: str, build: Callable[[], None], report: Report) -> None:
    """Load the model's weights from the cache, or build them and store them there.

    `key` must change with everything that the weights depend on. A file that is torn or whose content
    is not what was written is built again. Raises: NotHereError where nothing may be built now.
    """
    path = cache_folder() / f"{key}.safetensors"
    problem = load_verified(model, path)
    if problem is None:
        return
    if is_read_only():
        raise NotHereError(f"the base model is pretrained when a run starts: {path.name} is not in the cache")
    if path.exists():
        report(f"cached base model {path.name} is unusable ({problem}): building it again", 0, 0)
    build()
    try:
        store(model, path)
    except (OSError, SafetensorError) as error:
        report(f"the base model could not be cached, the next run builds it again: {error}", 0, 0)


def load_verified(model: nn.Module, path: Path) -> str | None:
    """Load weights whose fingerprint is the one written with them; otherwise say why not and load nothing."""
    if not path.exists():
        return "not there"
    try:
        with safe_open(path, framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            expected = (file.metadata() or {}).get("fingerprint")
    except (SafetensorError, OSError) as error:
        return str(error)
    if fingerprint(stored) != expected:
        return "its content does not match its fingerprint"
    if {n: t.shape for n, t in stored.items()} != {n: t.shape for n, t in model.state_dict().items()}:
        return "its tensors are those of another model"
    model.load_state_dict(stored)
    return None


def store(model: nn.Module, path: Path) -> None:
    """Write the weights and their fingerprint, whole or not at all."""
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, metadata={"fingerprint": fingerprint(tensors)})
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # a disk that is full keeps no half
