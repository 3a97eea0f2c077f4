"""Files of tensors, read whole or refused by name: safetensors, and torch's own with nothing but tensors in them."""

import pickle
import stat
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from experiments.models.lfs_pointer import WAY_OUT, is_lfs_pointer
from experiments.record.adapter_formats import RunStoreError

CHECKPOINT_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
# where trainers put it in a checkpoint: loralib's examples, Lightning, timm and fairseq, DeepSpeed
STATE_DICTS = ("model_state_dict", "state_dict", "model", "module")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
# what torch.load raises for bytes that are no checkpoint; RecursionError and UnicodeDecodeError are among them
UNREADABLE = (
    pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError,
    ArithmeticError, AssertionError, ImportError, MemoryError,
)  # fmt: skip


def kind_of(path: Path) -> int | None:
    """The kind of what is at `path`, links followed: stat.S_IFREG, S_IFDIR, ...; None where nothing is.

    Raises: RunStoreError where that cannot be found out, and for a link to nothing.
    """
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise RunStoreError(f"{path} is a link to nothing: copy the file that it stands for") from None
        return None
    except OSError as error:
        shown = f"{str(path)[:80]}..." if len(str(path)) > 200 else path
        raise RunStoreError(f"{shown} cannot be looked at ({error.strerror}): check the path") from None


def has_file(path: Path) -> bool:
    """Whether there is a file that can be read to its end.

    Raises: RunStoreError for anything else of that name (a pipe would never end), and for a pointer of Git LFS.
    """
    kind = kind_of(path)
    if kind is None:
        return False
    if kind != stat.S_IFREG:
        raise RunStoreError(f"{path} must be a file; it is {KINDS.get(kind, 'none')}: move it away, or give another")
    try:
        if is_lfs_pointer(path):
            raise RunStoreError(f"{path} {WAY_OUT}")
    except OSError as error:
        raise RunStoreError(f"{path} cannot be read ({error.strerror}): change who may read it") from None
    return True


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file, in float32 or float64. Raises: RunStoreError for what is no plain number."""
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_checkpoint(path)
    return {key: _plain(key, tensor, path) for key, tensor in tensors.items()}


def _plain(key: str, tensor: Tensor, path: Path) -> Tensor:
    special = {
        "sparse": tensor.layout is not torch.strided,
        "quantised": tensor.is_quantized,
        "nested": tensor.is_nested,
        "without values (on the meta device)": tensor.is_meta,
        str(tensor.dtype).removeprefix("torch."): tensor.dtype not in FLOATS,
    }
    found = next((word for word, is_so in special.items() if is_so), None)
    if found is not None:
        raise RunStoreError(
            f"an adapter is made of dense tensors in float16, bfloat16, float32 or float64; {key} in {path} is "
            f"{found}: save it in float32 (dequantised, where it was quantised), or leave it out"
        )
    return tensor.detach() if tensor.dtype == torch.float64 else tensor.detach().float()


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, LookupError, MemoryError) as error:
        raise RunStoreError(
            f"a safetensors file must be whole; {path} ({path.stat().st_size} bytes) cannot be read "
            f"({_first_line(error)}): copy it again, or run the run again"
        ) from error


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what matters of a strange file is an error of ours
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise RunStoreError(
            f"a checkpoint must be a whole file of tensors and nothing else; {path} is not ({_first_line(error)}): "
            "load it where you trust it and save its state_dict alone"
        ) from error
    found = _state_dict(loaded if isinstance(loaded, dict) else {}, path)
    if strange := [key for key, value in found.items() if not isinstance(value, Tensor) or not isinstance(key, str)]:
        raise RunStoreError(
            f"a state_dict holds tensors by their names; {path} has {strange[0]!r:.80} beside them: "
            "save its state_dict alone"
        )
    return dict(found)


def _state_dict(loaded: Mapping[Any, Any], path: Path) -> Mapping[Any, Any]:
    """The state_dict of a checkpoint, which may lie under a name that trainers give it."""
    inside = [key for key in STATE_DICTS if isinstance(loaded.get(key), dict)]
    if not inside:
        return loaded
    beside = [*inside[1:], *(key for key, value in loaded.items() if isinstance(value, Tensor))]
    if beside:
        raise RunStoreError(
            f"a checkpoint has its tensors in one state_dict; {path} has {beside[0]!r:.80} beside {inside[0]!r}: "
            "save the one that is meant alone"
        )
    found: Mapping[Any, Any] = loaded[inside[0]]
    return found


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0][:200] or type(error).__name__
