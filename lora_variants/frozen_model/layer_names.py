"""Short names of a model's matrices, and the place of each: its layer and what it is in there."""

from collections.abc import Sequence
from typing import NamedTuple

NO_LAYER = "–"
WHOLE = "ΔW"


class Place(NamedTuple):
    """Where a matrix stands: a row (the layer) and a column (what it is there) of a map of the model."""

    layer: str
    kind: str


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Every name in a layer without the words all such names share; all as they are where that confuses two.

    `encoder.layer.3.attention.self.query` becomes `3.query` beside `encoder.layer.0.attention.self.value`.
    Numbers and the last word stay, and so do names that are in no layer, as `lm_head`.
    """
    numbered = [name for name in names if _in_a_layer(name)]
    words = [set(name.split(".")[:-1]) for name in numbered]
    shared = {word for word in set.intersection(*words) if not word.isdecimal()} if words else set()
    shortened = {name: ".".join(_without(name.split("."), shared)) for name in numbered}
    shortened = {name: shortened.get(name, name) for name in names}
    return shortened if len(set(shortened.values())) == len(shortened) else {name: name for name in names}


def places(names: Sequence[str]) -> dict[str, Place]:
    """The place of every name: the layer is its first number; where no name has one, every name is a layer."""
    short = short_names(names)
    if not any(_in_a_layer(name) for name in names):
        return {name: Place(short[name], WHOLE) for name in names}
    return {name: _place(short[name]) for name in names}


def by_layer(name: str) -> list[tuple[bool, int, str]]:
    """A sort key that puts layer 2 before layer 10."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in name.split(".")]


def _in_a_layer(name: str) -> bool:
    return any(part.isdecimal() for part in name.split("."))


def _without(parts: list[str], shared: set[str]) -> list[str]:
    return [part for part in parts[:-1] if part not in shared] + parts[-1:]


def _place(short: str) -> Place:
    parts = short.split(".")
    first = next((index for index, part in enumerate(parts) if part.isdecimal()), None)
    if first is None:
        return Place(NO_LAYER, short)
    return Place(parts[first], ".".join(parts[:first] + parts[first + 1 :]) or WHOLE)
