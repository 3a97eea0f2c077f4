"""An arm: a configuration that a study compares, without learning rate and seed."""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from experiments.config.schema import RunConfig
from experiments.studies.spec.tuning_config import rounded


@dataclass(frozen=True)
class Arm:
    """One configuration to compare; `config` has the centre of its learning rates and seed 0."""

    label: str
    config_hash: str  # 12 hex digits of all but learning rate, seed and study
    keys: Mapping[str, Any] = field(compare=False)  # what the study's file gives it, with its variant and rank
    config: RunConfig = field(compare=False)
    search: Mapping[str, Any] = field(default_factory=dict, compare=False)  # of `ARM_KEYS`, where there is a search
    source: "Arm | None" = field(default=None, compare=False)  # whose runs its ranks are taken from
    notes: tuple[str, ...] = field(default=(), compare=False)  # on the knobs of the run configuration's variant
    rate_of: str | None = field(default=None, compare=False)  # config hash of the arm by whose choice it trains
    seed_offset: int = field(default=0, compare=False)  # its trials train with the protocol's seed plus this one

    @property
    def centre(self) -> float:
        """The learning rate of multiplier 1."""
        return rounded(self.config.learning_rate)

    def at(self, values: Mapping[str, float]) -> dict[str, Any]:
        """The knobs of its variant that these values of a grid's knobs set, beside the rate."""
        return type(self.config.variant).at(values)


def labelled(arms: Sequence[Arm]) -> list[Arm]:
    """Arms with a label each: the given one, or variant and rank with the other keys only where they tell apart."""
    short = {arm.config_hash: _short(arm) for arm in arms if not arm.label}
    alike: dict[str, list[Arm]] = defaultdict(list)
    for arm in arms:
        if not arm.label:
            alike[short[arm.config_hash]].append(arm)
    labels = {arm.config_hash: arm.label for arm in arms}
    for label, group in alike.items():
        named = ("rank", "allocation" if group[0].search else "variant", "training.labels", "rate_of")
        rest = [{k: _describe_value(v) for k, v in arm.keys.items() if k not in named} for arm in group]
        telling = [k for k in dict.fromkeys(itertools.chain(*rest)) if len({keys.get(k) for keys in rest}) > 1]
        for arm, keys in zip(group, rest, strict=True):
            labels[arm.config_hash] = " ".join([label, *(f"{key}={keys[key]}" for key in telling if key in keys)])
    return [replace(arm, label=labels[arm.config_hash]) for arm in arms]


def _short(arm: Arm) -> str:
    if arm.search:
        return str(arm.search["allocation"])
    rank = f" r={_describe_value(arm.keys['rank'])}" if "rank" in arm.keys else ""
    labels = arm.config.training.labels  # false ones always tell: what learned from them is no method
    return arm.keys["variant"] + rank + ("" if labels is True else f" on {labels} labels")


def describe(keys: Mapping[str, Any]) -> str:
    """'key=value key=value', lists and maps without quotes."""
    return " ".join(f"{key}={_describe_value(value)}" for key, value in keys.items())


def _describe_value(value: object) -> str:
    if isinstance(value, list):
        return "+".join(map(_describe_value, value))
    if isinstance(value, dict):
        return ",".join(f"{key}:{_describe_value(of_key)}" for key, of_key in value.items())
    if isinstance(value, str) and not value.isprintable():
        return repr(value)[1:-1]
    return f"{value:g}" if isinstance(value, float) else str(value)
