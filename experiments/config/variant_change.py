"""Another variant than the file's: which of the file's knobs carry over to it, which are dropped, and how to say so."""

import json
from collections.abc import Mapping
from typing import Any

from experiments.config.errors import name_of
from lora_variants import VARIANTS
from lora_variants.interface.config import Config


def choose_variant(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """Make the tree's variant the named one, without the knobs of another.

    Returns: the section that was replaced, for `carry_over`; empty where the variant had that name already.
    """
    section = tree.get("variant")
    if name_of(section) == name:
        return {}
    tree["variant"] = {"name": name}
    return dict(section) if isinstance(section, Mapping) else {}


def carry_over(tree: Mapping[str, Any], replaced: Mapping[str, Any]) -> list[str]:
    """Give the tree's variant the shared knobs that a replaced section states, except those that the tree states too.

    To be called when every override is in the tree. A default of the replaced variant never carries over, not even one
    that is written out, as in the configuration of a finished run.
    Returns: a line that says what carried over and one that says what was dropped, where there is something to say.
    """
    section, name = tree.get("variant"), name_of(tree.get("variant"))
    if not isinstance(section, dict) or name not in VARIANTS:
        return []  # which is an error that is reported elsewhere
    config = VARIANTS[name].load().config_class
    shared = config.shared_knobs()
    left = {knob: value for knob, value in replaced.items() if knob not in section and value is not None}
    free = {
        knob: value for knob, value in left.items() if knob in shared and section.get(shared[knob].alternative) is None
    }
    defaults = _defaults_of_another(free, replaced, config)
    carried = {knob: value for knob, value in free.items() if knob not in defaults}
    dropped = {knob: value for knob, value in left.items() if knob not in shared or knob in defaults}
    section |= carried
    change = f"{name} in place of the file's {name_of(replaced) or 'variant'}"
    notes = [f"{change}: {_words(carried)} carried over{_instead(config, carried)}"] if carried else []
    return notes + ([f"{change}: {_words(dropped)} dropped"] if dropped else [])


def _defaults_of_another(knobs: Mapping[str, Any], replaced: Mapping[str, Any], config: type[Config]) -> dict[str, Any]:
    """The knobs that have the replaced variant's default where the new variant's is another one."""
    name = name_of(replaced)
    if name not in VARIANTS:
        return {}
    theirs, ours = VARIANTS[name].load().config_class.defaults(), config.defaults()
    return {knob: value for knob, value in knobs.items() if value == theirs.get(knob) != ours.get(knob)}


def _instead(config: type[Config], carried: Mapping[str, Any]) -> str:
    """The variant's own defaults that the knobs which carried over stand in for."""
    own, shared = config.defaults(), config.shared_knobs()
    affected = dict.fromkeys(each for knob in carried for each in (knob, shared[knob].alternative))
    other = {knob: own[knob] for knob in affected if own.get(knob) is not None and own[knob] != carried.get(knob)}
    return f" (default{'s' * (len(other) > 1)}: {_words(other)})" if other else ""


def _words(knobs: Mapping[str, Any]) -> str:
    """'knob=value, knob=value', as --set takes them."""
    said = {knob: value if isinstance(value, str) else json.dumps(value, default=str) for knob, value in knobs.items()}
    return ", ".join(f"{knob}={value}" for knob, value in said.items())
