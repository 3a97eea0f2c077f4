"""The files of a pretrained model: from a name to a folder that holds them, checked before anything is built."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.models.json_files import read_map
from experiments.models.lfs_pointer import WAY_OUT, is_lfs_pointer
from experiments.models.model_config import ModelConfig, ModelError
from experiments.user_cache import NotHereError, is_read_only

SETTINGS = ("config.json", "*token*", "vocab*", "merges.txt", "*.model")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*.safetensors")
READ_TOO = ("chat_template*",)  # with the tokenizer, where it is there
FILES = (".json", ".txt", ".model", ".safetensors", ".bin", ".jinja")  # what is a file by its name
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
    _refuse_irregular(config, folder, [*_patterns(config, weights=weights), *READ_TOO])
    try:
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"model.name: the folder {config.name!r} has no config.json; name the folder of a whole model"
            )
        if weights:
            weight_files(config, folder)
    except ModelError:
        if is_read_only() and config.folder is None:
            raise NotHereError(_unknown(config)) from None
        raise
    return folder


def _unknown(config: ModelConfig) -> str:
    return (
        f"model.name: {config.name!r} is no folder here and not whole in the cache; as a model of the Hub it is "
        f"unknown until a run downloads it"
    )


def _patterns(config: ModelConfig, *, weights: bool) -> list[str]:
    """The names of the files that the model is made from."""
    weights_too = [*WEIGHTS, *(PICKLED_WEIGHTS if config.pickled else ())] if weights else []
    return [*SETTINGS, *weights_too, *(["*.py"] if config.remote_code else ())]


def _refuse_irregular(config: ModelConfig, folder: Path, patterns: Sequence[str]) -> None:
    """Raises: ModelError for what cannot be read as a file by its kind, and for a pointer of Git LFS."""
    name = "the folder"
    try:
        for path in sorted(folder.iterdir()):
            name = path.name
            if not any(path.match(pattern) for pattern in patterns):
                continue
            if path.is_dir():
                problem = "is a folder, not a file" if path.suffix in FILES else None
            elif not path.is_file():
                problem = "is no file but a pipe, a device or a link that leads nowhere"
            else:
                problem = WAY_OUT if is_lfs_pointer(path) else None
            if problem is not None:
                raise ModelError(f"model.name: {name} of {config.name!r} {problem}")
    except OSError as error:
        raise ModelError(f"model.name: {name} of {config.name!r} cannot be read: {error.strerror}") from None


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
    return read_map(config, folder / "config.json")


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
    what, weight_map = f"model.name: {index.name} of {config.name!r}", read_map(config, index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{what} has no weight_map from tensors to files; download it again")
    if outside := [part for part in weight_map.values() if not isinstance(part, str) or Path(part).name != part]:
        raise ModelError(f"{what} names {str(outside[0])[:80]!r}, which is no file of the folder itself")
    parts = sorted(set(weight_map.values()))
    missing = [part for part in parts if not (folder / part).is_file()]
    if missing:
        raise ModelError(
            f"model.name: {config.name!r} lacks {len(missing)} of the {len(parts)} files that {index.name} names: "
            f"{', '.join(missing[:3])}; download it again"
        )
    return [folder / part for part in parts]


def _downloaded(config: ModelConfig, *, weights: bool) -> Path:
    """The cache's folder of a model on the Hub, with the wanted files in it."""
    import huggingface_hub
    from huggingface_hub import errors

    patterns = _patterns(config, weights=weights)
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
