"""What a run or an adapter left on disk, as updates ΔW by matrix name."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from analysis.matrix_names import by_layer
from analysis.updates import DELTA, RunStoreError, Update, dense_updates, loralib_updates, peft_updates

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
CHECKPOINT_SUFFIXES = (".bin", ".pt", ".pth")


def read_updates(path: Path) -> dict[str, Update]:
    """ΔW of every adapted matrix, by its name in the base model, in the order of the names' layers.

    `path` is a run's folder, a PEFT adapter's folder (LoRA or AdaLoRA), or a loralib checkpoint. A finished
    run that adapted nothing (a head alone) gives an empty dict. Where a run left `delta.safetensors`, that is
    ΔW. Saved heads are not updates of W0 and are left out. Raises RunStoreError, whose text is for the user.
    """
    if not path.exists():
        raise RunStoreError(f"a run is a folder or a checkpoint file; {path} does not exist: check the path")
    updates = _read_folder(path) if path.is_dir() else _read_checkpoint(path)
    return {name: updates[name] for name in sorted(updates, key=by_layer)}


def _read_folder(folder: Path) -> dict[str, Update]:
    if (folder / "config.yaml").is_file() and not (folder / "result.json").is_file():
        raise RunStoreError(
            f"a run is read once it is finished; {folder} has a config.yaml but no result.json: "
            "run it again to finish it (error.txt, if there, says what stopped it)"
        )
    if (folder / DELTA).is_file():
        return dense_updates(_read_safetensors(folder / DELTA))
    if (folder / ADAPTER_WEIGHTS).is_file():
        config = _read_adapter_config(folder / ADAPTER_CONFIG)
        return peft_updates(_read_safetensors(folder / ADAPTER_WEIGHTS), config, folder)
    if (folder / "result.json").is_file():
        return {}
    raise RunStoreError(
        f"a folder is read if it holds {ADAPTER_WEIGHTS} or {DELTA}; {folder} holds neither: "
        "give the folder of one run or of one PEFT adapter"
    )


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="numpy") as stored:
            dtypes = {key: stored.get_slice(key).get_dtype() for key in stored.keys()}  # noqa: SIM118
            narrow = [key for key, dtype in dtypes.items() if dtype.startswith(("BF16", "F8", "F4"))]
            tensors = {key: stored.get_tensor(key) for key in dtypes if key not in narrow}
        return tensors | (_read_narrow(path, narrow) if narrow else {})
    except (SafetensorError, OSError) as fault:
        raise RunStoreError(
            f"a safetensors file must be whole; {path} ({path.stat().st_size} bytes) cannot be read "
            f"({fault}): copy it again, or run the run again"
        ) from fault


def _read_narrow(path: Path, keys: list[str]) -> dict[str, np.ndarray]:
    """Tensors of the number types NumPy does not have, as float32."""
    with safe_open(path, framework="pt") as stored:
        return {key: stored.get_tensor(key).float().numpy() for key in keys}


def _read_adapter_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise RunStoreError(
            f"an adapter's scale and ranks stand in {ADAPTER_CONFIG}; {path} is missing: "
            "copy it from where the adapter was saved"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as fault:
        raise RunStoreError(f"{ADAPTER_CONFIG} is JSON; {path} is not ({fault}): save it again") from fault
    if not isinstance(config, dict) or config.get("peft_type") not in ("LORA", "ADALORA"):
        found = config.get("peft_type") if isinstance(config, dict) else config
        raise RunStoreError(
            f"peft_type must be LORA or ADALORA; in {path} it is {found!r}: save merged minus base weights "
            f"as {DELTA} (float32, one tensor a matrix) instead"
        )
    return config


def _read_checkpoint(path: Path) -> dict[str, Update]:
    if path.suffix not in CHECKPOINT_SUFFIXES:
        raise RunStoreError(
            f"a checkpoint file ends in {', '.join(CHECKPOINT_SUFFIXES)}; this is {path}: "
            "for a safetensors adapter give its folder"
        )
    import torch

    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, LookupError) as fault:
        reason = str(fault).partition("\n")[0]
        raise RunStoreError(
            f"a checkpoint must be a whole file of tensors and nothing else; {path} is not ({reason}): "
            "load it where you trust it and save its state_dict alone"
        ) from fault
    entries = loaded.items() if isinstance(loaded, dict) else ()
    factors = {str(key): value for key, value in entries if isinstance(value, torch.Tensor) and "lora_" in str(key)}
    return loralib_updates({key: value.float().numpy() for key, value in factors.items()}, path)
