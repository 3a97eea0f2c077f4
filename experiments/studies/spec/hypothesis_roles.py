"""Which arm of a study is what to the low-rank test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.studies.spec.arm import Arm, describe
from experiments.studies.spec.comparisons import is_reference
from experiments.studies.spec.hypothesis_config import HypothesisConfig

DENSE = ("full", "full_all")  # variants whose ΔW is no product of factors


@dataclass(frozen=True)
class Roles:
    """The arms of a study, by what they are to the test."""

    full: Arm
    capacity: tuple[Arm, ...]
    floor: Arm | None  # None: W0 itself
    nulls: tuple[Arm, ...]

    def named(self) -> dict[str, str | list[str]]:
        """Each by label and config hash, as it is settled before the test split is read."""
        return {
            "full": _name(self.full),
            "capacity": [_name(arm) for arm in self.capacity],
            "floor": "base" if self.floor is None else _name(self.floor),
            "false_labels": [_name(arm) for arm in self.nulls],
        }


def roles_of(config: HypothesisConfig, arms: Sequence[Arm], errors: list[str]) -> Roles | None:
    """The arms that the section names; None, and errors, where they are missing or several."""
    before = len(errors)
    full = _one("full", config.full, arms, errors)
    floor = None if config.floor == "base" else _one("floor", config.floor, arms, errors)
    capacity = _selected(config.capacity, arms)
    labels = {arm.config.training.labels for arm in (full, floor, *capacity) if arm is not None}
    if len(labels) > 1:
        found = ", ".join(sorted(str(each).lower() for each in labels))
        errors.append(f"hypothesis: full, capacity and floor train on the same labels; here they are {found}")
    nulls = [] if config.false_labels is None else [arm for arm in arms if is_reference(arm, config.false_labels)]
    if not capacity:
        errors.append(f"hypothesis.capacity: no arm has {describe(config.capacity)}; add adapters of several ranks")
    ranks = [arm.keys.get("rank") for arm in capacity]
    if any(not isinstance(rank, int) for rank in ranks) or len(set(ranks)) < len(ranks):
        errors.append(
            f"hypothesis.capacity: one adapter a rank, each with a number for all layers; {describe(config.capacity)} "
            f"has {', '.join(arm.label for arm in capacity)}"
        )
    if config.false_labels is not None and (not nulls or any(arm.config.training.labels is True for arm in nulls)):
        found = ", ".join(arm.label for arm in nulls) or "no arm"
        errors.append(
            f"hypothesis.false_labels: arms with false training.labels; {describe(config.false_labels)} selects {found}"
        )
    for role, arms_of_it in (("full", [full]), ("false_labels", nulls)):
        errors += [
            f"hypothesis.{role}: {arm.label} learns no dense ΔW, which is what is cut and compared; take variant: full"
            for arm in arms_of_it
            if arm is not None and arm.config.variant.name not in DENSE
        ]
    if floor is not None and floor in (full, *capacity):
        errors.append(f"hypothesis.floor: {floor.label} is tested itself; take the arm that trains the head alone")
    if len(errors) > before or full is None:
        return None
    return Roles(full, tuple(sorted(capacity, key=lambda arm: int(arm.keys["rank"]))), floor, tuple(nulls))


def _name(arm: Arm) -> str:
    return f"{arm.label} ({arm.config_hash})"


def _selected(keys: Mapping[str, Any], arms: Sequence[Arm]) -> list[Arm]:
    """The arms that have the keys; those on false labels only where the keys say so, or where there are no others."""
    found = [arm for arm in arms if is_reference(arm, keys)]
    if keys.keys() & {"label", "training.labels"}:
        return found
    true = [arm for arm in arms if arm.config.training.labels is True]
    return [arm for arm in found if arm in true] if true else [arm for arm in found if arm.rate_of is None]


def _one(name: str, keys: Mapping[str, Any], arms: Sequence[Arm], errors: list[str]) -> Arm | None:
    found = _selected(keys, arms)
    if len(found) == 1:
        return found[0]
    which = (
        f"selects {', '.join(arm.label for arm in found)}: name one" if found else "selects no arm: add it to `arms`"
    )
    errors.append(f"hypothesis.{name}: {describe(dict(keys))} {which}")
    return None
