"""Which rank each layer gets, and when a rank is too high to be worth it."""

import warnings
from collections.abc import Mapping

from lora_variants.frozen_model.linear_map import matches, names_of


class RankWarning(UserWarning):
    """A rank so high that an adapter has at least as many parameters as the matrix it adapts."""


def ranks_by_layer(rank: int | Mapping[str, int], shapes: Mapping[str, tuple[int, int]]) -> dict[str, int]:
    """The rank of each layer; `shapes` maps layer name to (d_out, d_in).

    Raises: ValueError for a pattern that matches no layer and for a rank above min(d_out, d_in).
    """
    rules = {"*": rank} if isinstance(rank, int) else dict(rank)
    unmatched = [pattern for pattern in rules if not any(matches(pattern, name) for name in shapes)]
    if unmatched:
        raise ValueError(
            f"rank pattern {', '.join(map(repr, unmatched))} matches no targeted layer; "
            f"the targets are: {names_of(shapes)}"
        )
    ranks = {}
    for name, (d_out, d_in) in shapes.items():
        ranks[name] = next((r for pattern, r in reversed(rules.items()) if matches(pattern, name)), 0)
        if ranks[name] > min(d_out, d_in):
            raise ValueError(
                f"rank {ranks[name]} of {name} is above min(d_out, d_in) = {min(d_out, d_in)} of its "
                f"{d_out} x {d_in} matrix, the highest rank a ΔW can have there"
            )
    return ranks


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
