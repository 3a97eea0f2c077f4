"""The JSON files of a pretrained model: read whole, or refused with the file and what is wrong with it."""

import json
from pathlib import Path
from typing import Any

from experiments.models.model_config import ModelConfig, ModelError

MOST_BYTES = 1 << 28  # the largest known, tokenizers of 256,000 tokens, have an eighth of it


def read_json(config: ModelConfig, path: Path) -> Any:
    """What a file of the model says.

    Raises: ModelError for what cannot be read, is no JSON in UTF-8, is nested too deeply or larger than any such file.
    """
    what = f"model.name: {path.name} of {config.name!r}"
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise ModelError(f"{what} has {size:,} bytes, at most {MOST_BYTES:,} are read; download it again")
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ModelError(f"{what} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ModelError(f"{what} cannot be read: it is not UTF-8 text ({error.reason}); save it as UTF-8") from None
    if text.startswith("\ufeff"):
        raise ModelError(f"{what} cannot be read: it begins with a byte-order mark; save it as UTF-8 without one")
    try:
        return json.loads(text, parse_constant=_refuse_nan)
    except RecursionError:
        raise ModelError(f"{what} cannot be read: it is nested too deeply; download it again") from None
    except ValueError as error:
        raise ModelError(f"{what} cannot be read: it is no JSON ({error}); download it again") from None


def _refuse_nan(constant: str) -> float:
    """Infinity stands in sound configurations: no bound."""
    if constant == "NaN":
        raise ValueError("NaN is no number")
    return float(constant)


def read_map(config: ModelConfig, path: Path) -> dict[str, Any]:
    """The settings that a file holds. Raises: ModelError, also where it holds something else."""
    read = read_json(config, path)
    if not isinstance(read, dict):
        raise ModelError(f"model.name: {path.name} of {config.name!r} is not a map of settings; download it again")
    return read
