"""The files of a pretrained model: from a name to a folder that holds them, checked before anything is built."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from experiments.models.model_config import ModelConfig, ModelError
from experiments.user_cache import NotHereError, is_read_only

SETTINGS = ("config.json", "*token*", "vocab*", "merges.txt", "*.model")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin")


def model_folder(config: ModelConfig, *, weights: bool) -> Path:
    """The folder of the model's files, weights among them where they are asked for.

    A folder is used as it is and nothing asks the network. A name is looked up on the Hub, and its files lie in the
    cache afterwards; without network they are taken from there.
    Raises: ModelError for a name, a revision or files that are not to be had; NotHereError for a name that would have
    to be downloaded where nothing may be.
    """
    folder = config.folder or _downloaded(config, weights=weights)
    refuse_adapters(config, folder)
    try:
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"model.name: the folder {config.name!r} has no config.json; name the folder of a whole model"
            )
        files = weight_files(config, folder) if weights else []
    except ModelError:
        if is_read_only() and config.folder is None:
            raise NotHereError(_unknown(config)) from None
        raise
    for path in files:
        _refuse_torn(config, path)
    return folder


def _unknown(config: ModelConfig) -> str:
    return (
        f"model.name: {config.name!r} is no folder here and not whole in the cache; as a model of the Hub it is "
        f"unknown until a run downloads it"
    )


def refuse_adapters(config: ModelConfig, folder: Path) -> None:
    """Raises: ModelError for the folder of an adapter, which names a base model of its own."""
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"model.name: {config.name!r} is an adapter; name the model it was trained on and start from it with "
            f"start.path={config.name}"
        )


def commit_of(config: ModelConfig, folder: Path) -> str | None:
    """The commit that a name on the Hub was resolved to; a folder has none."""
    return None if config.folder else folder.name


def raw_settings(config: ModelConfig, folder: Path) -> dict[str, Any]:
    """What config.json says."""
    try:
        read = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"model.name: config.json of {config.name!r} cannot be read: {error}") from None
    if not isinstance(read, dict):
        raise ModelError(f"model.name: config.json of {config.name!r} is not a map of settings")
    return read


def weight_files(config: ModelConfig, folder: Path) -> list[Path]:
    """The files that hold the weights, every part of them there; safetensors wherever there are any.

    Raises: ModelError where there are none, where parts are missing, or where only pickled ones are there.
    """
    found = _listed(config, folder, "model.safetensors")
    if found:
        return found
    pickled = _listed(config, folder, "pytorch_model.bin")
    if pickled and not config.pickled:
        raise ModelError(
            f"model.name: {config.name!r} has its weights in {pickled[0].name} only, not in safetensors; "
            f"model.pickled=true reads it (tensors only, no code runs)"
        )
    if not pickled:
        raise ModelError(
            f"model.name: {config.name!r} has no weights in model.safetensors; choose a model that has, or "
            f"model.weights=random for its architecture alone"
        )
    return pickled


def _listed(config: ModelConfig, folder: Path, name: str) -> list[Path]:
    """One file, or the parts that its index names; none where neither is there."""
    if (folder / name).is_file():
        return [folder / name]
    index = folder / f"{name}.index.json"
    if not index.is_file():
        return []
    try:
        parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"model.name: {index.name} of {config.name!r} cannot be read: {error}") from None
    missing = [part for part in parts if not (folder / part).is_file()]
    if missing:
        raise ModelError(
            f"model.name: {config.name!r} lacks {len(missing)} of the {len(parts)} files that {index.name} names: "
            f"{', '.join(missing[:3])}; download it again"
        )
    return [folder / part for part in parts]


def _refuse_torn(config: ModelConfig, path: Path) -> None:
    """Raises: ModelError for a safetensors file that is not as long as its header says."""
    if path.suffix != ".safetensors":
        return
    try:
        with safe_open(path, framework="pt"):
            pass
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"model.name: {path.name} of {config.name!r} is torn or no safetensors file ({error}); download it again"
        ) from None


def _downloaded(config: ModelConfig, *, weights: bool) -> Path:
    """The cache's folder of a model on the Hub, with the wanted files in it."""
    import huggingface_hub
    from huggingface_hub import errors

    patterns = [*SETTINGS, *(WEIGHTS if weights else ()), *(["*.py"] if config.remote_code else ())]
    patterns += PICKLED_WEIGHTS if weights and config.pickled else ()
    client_errors: tuple[type[Exception], ...] = (OSError, *errors.HfHubHTTPError.__bases__)  # of its HTTP client too
    at = f"{config.name!r}" + (f" at revision {config.revision!r}" if config.revision else "")
    try:
        only_here: dict[str, Any] = {"local_files_only": True} if is_read_only() else {}
        return Path(
            huggingface_hub.snapshot_download(
                config.name, revision=config.revision, allow_patterns=patterns, **only_here
            )
        )
    except errors.GatedRepoError:
        problem = (
            f"{at} is gated: accept its terms at https://huggingface.co/{config.name} and log in with 'hf auth login'"
        )
    except errors.RepositoryNotFoundError:
        problem = (
            f"{at} is neither a folder here nor a public model on the Hub; check the name, or log in with "
            f"'hf auth login' if it is private"
        )
    except errors.RevisionNotFoundError:
        problem = f"{config.name!r} has no revision {config.revision!r} on the Hub; name a branch, a tag or a commit"
    except errors.HFValidationError:
        problem = f"{at} is neither a folder here nor a possible name on the Hub, which is 'model' or 'owner/model'"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        if is_read_only():
            raise NotHereError(_unknown(config)) from None
        problem = (
            f"{at} is not a folder, not whole in the cache, and the Hub cannot be reached; get a network "
            f"(and unset HF_HUB_OFFLINE), or name a folder that holds the model"
        )
    except client_errors as error:
        problem = f"{at} could not be read from the Hub: {str(error).partition(chr(10))[0] or type(error).__name__}"
    raise ModelError(f"model.name: {problem}")
