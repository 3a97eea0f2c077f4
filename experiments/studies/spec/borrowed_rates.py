"""Arms that are not tuned, and train seed by seed at what another arm chose: a null has no best rate of its own.

Tuned on validation, false labels would find the rate that does the least harm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from experiments.config.shown import shown
from experiments.studies.spec.arm import Arm, describe
from experiments.studies.spec.comparisons import is_reference

RATE_OF = "rate_of"


def with_rates(arms: Sequence[Arm], errors: list[str]) -> list[Arm]:
    """The arms, each that has the key `rate_of` with the config hash of the one that its keys select."""
    tuned = [arm for arm in arms if RATE_OF not in arm.keys]
    return [replace(arm, rate_of=_selected(arm, tuned, errors)) if RATE_OF in arm.keys else arm for arm in arms]


def _selected(arm: Arm, tuned: Sequence[Arm], errors: list[str]) -> str | None:
    wanted = arm.keys[RATE_OF]
    if not isinstance(wanted, Mapping) or not wanted:
        errors.append(
            f"{arm.label}: {RATE_OF}: keys of the arm whose rates it takes, like {{variant: full}}; got {shown(wanted)}"
        )
        return None
    found = [other for other in tuned if is_reference(other, wanted)]
    if len(found) != 1:
        several = f"selects {len(found)} arms ({', '.join(other.label for other in found[:3])}): name one, by label"
        none = f"selects no arm that is tuned; they are {', '.join(other.label for other in tuned[:10])}"
        errors.append(f"{arm.label}: {RATE_OF} {describe(dict(wanted))} {several if found else none}")
        return None
    return found[0].config_hash
