"""What runs, PEFT and loralib left on disk, read as updates ΔW: the one place where adapters are read."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from experiments.record.adapter_formats import (
    CONFIG,
    DELTA,
    HEAD,
    WEIGHTS,
    Adapter,
    RunStoreError,
    heads_beside_factors,
    loralib_adapter,
    peft_adapter,
)
from experiments.record.finished_runs import check_adapter

CHECKPOINT_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
STATE_DICTS = ("model_state_dict", "state_dict")  # where trainers put it in a checkpoint: loralib's examples, Lightning


def read_adapter(path: Path) -> Adapter:
    """The adapter at `path`: a finished run's folder, a PEFT adapter's (LoRA or AdaLoRA), or a loralib checkpoint.

    Raises: RunStoreError, whose text is for the user.
    """
    if not path.exists():
        raise RunStoreError(f"a run is a folder or a checkpoint file; {path} does not exist: check the path")
    if not path.is_dir():
        return _read_checkpoint(path)
    if (path / "config.yaml").is_file() and not (path / "result.json").is_file():
        raise RunStoreError(
            f"a run is read once it is finished; {path} has a config.yaml but no result.json: "
            "run it again to finish it (error.txt, if there, says what stopped it)"
        )
    if any((path / name).is_file() for name in (DELTA, WEIGHTS, HEAD, "result.json")):
        return read_folder(path)
    raise RunStoreError(
        f"a folder is read if it holds {WEIGHTS} or {DELTA}; {path} holds neither: "
        "give the folder of one run or of one PEFT adapter"
    )


def read_folder(folder: Path) -> Adapter:
    """What is in a folder, finished or not; nothing where a run adapted nothing.

    Where there is a `delta.safetensors`, that is ΔW, whatever factors lie beside it.
    """
    check_adapter(folder)
    heads = _read_safetensors(folder / HEAD) if (folder / HEAD).is_file() else {}
    if (folder / DELTA).is_file():
        beside = _read_safetensors(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else {}
        return Adapter(dict(_read_safetensors(folder / DELTA)), heads | heads_beside_factors(beside))
    if (folder / WEIGHTS).is_file():
        config = _read_adapter_config(folder / CONFIG)
        adapter = peft_adapter(_read_safetensors(folder / WEIGHTS), config, folder).under(config.get("body"))
        return replace(adapter, others=adapter.others | heads)
    return Adapter({}, heads)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return {key: _wide(tensor) for key, tensor in load_file(path).items()}
    except (SafetensorError, OSError) as error:
        raise RunStoreError(
            f"a safetensors file must be whole; {path} ({path.stat().st_size} bytes) cannot be read "
            f"({error}): copy it again, or run the run again"
        ) from error


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _read_adapter_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RunStoreError(
            f"an adapter's scale and ranks stand in {CONFIG}; {path} is missing: "
            "copy it from where the adapter was saved"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunStoreError(f"{CONFIG} is JSON; {path} is not ({error}): save it again") from error
    if not isinstance(config, dict) or config.get("peft_type") not in ("LORA", "ADALORA"):
        found = config.get("peft_type") if isinstance(config, dict) else config
        raise RunStoreError(
            f"peft_type must be LORA or ADALORA; in {path} it is {found!r}: save merged minus base weights "
            f"as {DELTA} (float32, one tensor a matrix) instead"
        )
    return config


def _read_checkpoint(path: Path) -> Adapter:
    if path.suffix not in CHECKPOINT_SUFFIXES:
        raise RunStoreError(
            f"a checkpoint file ends in {', '.join(CHECKPOINT_SUFFIXES)}; this is {path}: "
            "for a safetensors adapter give its folder"
        )
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError) as error:
        reason = str(error).partition("\n")[0]
        raise RunStoreError(
            f"a checkpoint must be a whole file of tensors and nothing else; {path} is not ({reason}): "
            "load it where you trust it and save its state_dict alone"
        ) from error
    loaded = loaded if isinstance(loaded, dict) else {}
    inside = next((loaded[key] for key in STATE_DICTS if isinstance(loaded.get(key), dict)), loaded)
    tensors = {str(key): value for key, value in inside.items() if isinstance(value, Tensor)}
    return loralib_adapter({key: _wide(t) for key, t in tensors.items() if t.is_floating_point()}, path)
