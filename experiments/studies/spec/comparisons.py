"""Which arm is compared with which: pairs of an arm and a reference that was named before."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.config.errors import nearest
from experiments.studies.spec.arm import Arm, describe
from lora_variants.interface.config import Config

_ABSENT = object()


def comparisons(arms: Sequence[Arm], reference: Mapping[str, Any]) -> list[tuple[Arm, Arm]]:
    """(arm, reference arm) of one family, in the order of the arms.

    An arm that `reference` does not select is compared with every one that it selects and that agrees with it on all
    keys that both have, apart from those that `reference` names; with a reference by label in any case. What trained
    on false labels is no method, and is compared with nothing that trained on true ones.
    """
    chosen = [arm for arm in arms if is_reference(arm, reference)]
    others = [arm for arm in arms if not is_reference(arm, reference)]
    return [
        (arm, to)
        for arm in others
        for to in chosen
        if _labels(arm) == _labels(to) and ("label" in reference or _agree(arm, to, apart=reference))
    ]


def train_alike(arm: Arm, other: Arm, points: Sequence[Mapping[str, float]], *, at_own_rates: bool) -> bool:
    """Whether two arms come to one configuration at every point of the grid's other knobs, as rsLoRA and LoRA may.

    `at_own_rates`: they train at multiples of their own rates, else at one for both.
    """
    ours, theirs = (
        each.config.model_dump(exclude={"variant": True, "training": {"learning_rate"}}) for each in (arm, other)
    )
    if arm.search or other.search or (ours, arm.seed_offset) != (theirs, other.seed_offset):
        return False
    if at_own_rates and arm.centre != other.centre:
        return False
    return all(_trained(arm, point) is not None and _trained(arm, point) == _trained(other, point) for point in points)


def _trained(arm: Arm, point: Mapping[str, float]) -> Config | None:
    """The LoRA that trains the same as the arm's variant at a point; None where there is none."""
    return arm.config.variant.model_copy(update=arm.at(point)).as_lora()


def is_reference(arm: Arm, reference: Mapping[str, Any]) -> bool:
    """Whether the arm has every key of the reference, with its value."""
    return all(_value(arm, key) == value for key, value in reference.items())


def reference_errors(arms: Sequence[Arm], reference: Mapping[str, Any]) -> list[str]:
    """What is wrong with a reference: a key that no arm has, or no arm that has all of them."""
    known = ["label", *dict.fromkeys(key for arm in arms for key in arm.keys)]
    strange = [key for key in reference if all(_value(arm, key) is _ABSENT for arm in arms)]
    if strange:
        return [
            f"protocol.reference.{key}: no arm has this key{nearest(key, known)}; known: {', '.join(known)}"
            for key in strange
        ]
    if not any(is_reference(arm, reference) for arm in arms):
        labels = ", ".join(arm.label for arm in arms[:40]) + (f", ... ({len(arms)} in all)" if len(arms) > 40 else "")
        return [f"protocol.reference: no arm has {describe(reference)}; the arms are: {labels}"]
    return []


def comparison_warnings(arms: Sequence[Arm], reference: Mapping[str, Any]) -> list[str]:
    """What a user of the verdicts should know: arms that get none."""
    others = [arm for arm in arms if not is_reference(arm, reference)]
    if not others:
        return [f"nothing is compared: every arm has {describe(reference)}"]
    compared = {arm.config_hash for arm, _ in comparisons(arms, reference)}
    all_false = all(_labels(arm) is not True for arm in arms)  # else these are the nulls of others
    return [
        f"{arm.label} is compared with nothing: no reference ({describe(reference)}) agrees with it on its other keys"
        for arm in others
        if arm.config_hash not in compared and (_labels(arm) is True or all_false)
    ]


def _labels(arm: Arm) -> object:
    return arm.config.training.labels


def _value(arm: Arm, key: str) -> Any:
    if key == "label":
        return arm.label
    if key == "seed_offset":
        return arm.seed_offset
    return arm.keys.get(key, arm.keys.get(key.rpartition(".")[2], _ABSENT))


def _agree(arm: Arm, other: Arm, *, apart: Mapping[str, Any]) -> bool:
    ignored = {*apart, *(key.rpartition(".")[2] for key in apart)}
    return all(other.keys[key] == value for key, value in arm.keys.items() if key in other.keys and key not in ignored)
