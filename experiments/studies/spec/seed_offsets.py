"""Seed offsets of arms: the same configuration trained with other seeds, as null studies need it."""

from collections import defaultdict
from collections.abc import Sequence, Set
from itertools import combinations

from experiments.studies.spec.arm import Arm
from lora_variants.interface.config import HIGHEST_SEED


def seed_offset_errors(arms: Sequence[Arm], seeds: Set[int]) -> list[str]:
    """Arms of one configuration whose runs would be the same ones at these seeds of the study; seeds too high."""
    errors = []
    for arm in arms:
        if seeds and max(seeds) + arm.seed_offset > HIGHEST_SEED:
            errors.append(
                f"{arm.label}: seed_offset {arm.seed_offset} with seed {max(seeds)} of the protocol is beyond the "
                f"highest seed, {HIGHEST_SEED}; take a smaller one"
            )
    for alike in _of_one_configuration(arms):
        for first, second in combinations(alike, 2):
            if both := _met(first.seed_offset, second.seed_offset, seeds):
                errors.append(
                    f"arms: {first.label!r} and {second.label!r} are one configuration, and both would train with seed "
                    f"{', '.join(map(str, sorted(both)[:10]))}: the same runs; take seed_offsets that are further apart"
                )
    return errors


def sharing_draws(arms: Sequence[Arm], seeds: Set[int]) -> str | None:
    """Two arms whose offsets differ by less than the study's seeds do, if there are any."""
    of_offset = {arm.seed_offset: arm for arm in arms}
    for first, second in combinations(sorted(of_offset), 2):
        if _met(first, second, seeds):
            return f"{of_offset[first].label} and {of_offset[second].label}"
    return None


def _met(first: int, second: int, seeds: Set[int]) -> set[int]:
    """The seeds that both offsets lead to."""
    return {seed + first for seed in seeds} & {seed + second for seed in seeds}


def _of_one_configuration(arms: Sequence[Arm]) -> list[list[Arm]]:
    """Groups of arms that differ in their seed offset alone."""
    if not any(arm.seed_offset for arm in arms):
        return []
    found: dict[str, list[Arm]] = defaultdict(list)
    for arm in arms:
        found[repr((arm.config, arm.search))].append(arm)
    return list(found.values())
