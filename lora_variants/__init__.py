"""The methods: LoRA and its relatives behind one interface, all with a leading trial axis."""

from lora_variants.registry import VARIANTS, VariantEntry

__all__ = ["VARIANTS", "VariantEntry"]
