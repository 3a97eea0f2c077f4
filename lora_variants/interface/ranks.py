"""Which rank each layer gets, and when a rank is too high to be worth it."""

import warnings
from collections.abc import Mapping

from lora_variants.frozen_model.linear_map import matches, names_of

LEAST_PADDING_ALLOWED = 128  # however small the matrices: one number serves large and small models


class RankWarning(UserWarning):
    """A rank so high that an adapter has at least as many parameters as the matrix it adapts."""


def ranks_by_layer(rank: int | Mapping[str, int], shapes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """The rank of each layer; `shapes` maps layer name to (d_out, d_in).

    Raises: ValueError for a pattern that matches no layer and for a rank above min(d_out, d_in).
    """
    rules = {"*": rank} if isinstance(rank, int) else dict(rank)
    ranks, unmatched = dict.fromkeys(shapes, 0), []
    for pattern, of_pattern in rules.items():  # the last one that matches a layer wins
        named = [name for name in shapes if matches(pattern, name)]
        ranks |= dict.fromkeys(named, of_pattern)
        unmatched += [] if named else [pattern]
    if unmatched:
        raise ValueError(
            f"rank pattern {names_of(map(repr, unmatched))} matches no targeted layer; "
            f"the targets are: {names_of(shapes)}"
        )
    for name, (d_out, d_in) in shapes.items():
        if ranks[name] > min(d_out, d_in):
            raise ValueError(
                f"rank {ranks[name]} of {name} is above min(d_out, d_in) = {min(d_out, d_in)} of its "
                f"{d_out} x {d_in} matrix, the highest rank a ΔW can have there"
            )
    return ranks


def refuse_useless_padding(padded_to: int, shapes: Mapping[str, tuple[int, int]]) -> None:
    """Raise ValueError where every factor would be padded to more than any ΔW of the targets can need."""
    highest = max((min(shape) for shape in shapes.values()), default=0)
    if padded_to > max(highest, LEAST_PADDING_ALLOWED):
        raise ValueError(
            f"pad_rank_to {padded_to:,} (in a search: search.highest_rank) pads to more than {highest:,}, the highest "
            f"rank of any ΔW here; set at most {max(highest, LEAST_PADDING_ALLOWED):,}"
        )


def warn_of_high_ranks(ranks: Mapping[str, int], shapes: Mapping[str, tuple[int, int]]) -> None:
    """One warning for all layers whose adapter is no smaller than the matrix: r >= d_out d_in / (d_out + d_in)."""
    high = [name for name, (d_out, d_in) in shapes.items() if ranks[name] * (d_out + d_in) >= d_out * d_in]
    if high:
        adapters = sum(ranks[name] * sum(shapes[name]) for name in high)
        matrices = sum(shapes[name][0] * shapes[name][1] for name in high)
        warnings.warn(
            f"rank {max(ranks[name] for name in high)} is at or above break-even in {len(high)} of "
            f"{len(ranks)} layers ({names_of(high, most=3)}): their adapters have {adapters:,} parameters, "
            f"the matrices themselves {matrices:,}",
            RankWarning,
            stacklevel=2,
        )
