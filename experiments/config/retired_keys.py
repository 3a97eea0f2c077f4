"""Keys that were renamed: an error answers them with their new names, and runs written with them are still read."""

from collections.abc import Mapping, Sequence
from typing import Any

RETIRED_KEYS: Mapping[str, Mapping[str, str]] = {  # section of a file -> its earlier keys and what they are called now
    "training": {
        "rows": "batch_size",
        "clip": "max_grad_norm",
        "accumulation": "gradient_accumulation_steps",
        "checkpointing": "gradient_checkpointing",
        "warmup": "warmup_ratio",
        "schedule": "lr_schedule",
    },
    "protocol.tuning": {"multipliers": "learning_rate_multipliers"},
    "seconds": {"besides": "overhead"},  # of result.json
}


def rename_retired(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree of a file that may have been written with earlier keys, with the new ones."""
    return _renamed(tree, "")


def new_name(section: Sequence[str], key: str) -> str | None:
    """What a key of a section is called now; None where it never was one.

    A key that was given without its section may be that of any: where it is not one of a run's training, its new name
    comes with the section.
    """
    if section:
        return RETIRED_KEYS.get(".".join(section), {}).get(key)
    found = {place: keys[key] for place, keys in RETIRED_KEYS.items() if key in keys}
    return next((name if place == "training" else f"{place}.{name}" for place, name in found.items()), None)


def _renamed(tree: Mapping[str, Any], path: str) -> dict[str, Any]:
    names = RETIRED_KEYS.get(path, {})
    return {
        names.get(key, key): _renamed(value, f"{path}.{key}" if path else str(key))
        if isinstance(value, Mapping)
        else value
        for key, value in tree.items()
    }
