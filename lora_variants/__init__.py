"""The methods: LoRA and its relatives behind one interface, all with a leading trial axis."""

from lora_variants.registry import VARIANTS, VariantEntry


class RankWarning(UserWarning):
    """A rank so high that an adapter has at least as many parameters as the matrix it adapts."""


__all__ = ["VARIANTS", "RankWarning", "VariantEntry"]
