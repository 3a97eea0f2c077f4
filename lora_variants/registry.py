"""The lazy table of variants: every name with its paper; nothing heavy is imported until one is loaded."""

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_variants.interface.variant import Variant


@dataclass(frozen=True)
class VariantEntry:
    """Where a variant is and what it is.

    `learns_ranks`: training ends with ranks that the method has chosen layer by layer, within the given average.
    """

    module: str
    class_name: str
    summary: str
    paper: str = ""
    learns_ranks: bool = False

    def load(self) -> "type[Variant]":
        """The variant's class; this is what imports torch."""
        loaded: type[Variant] = getattr(import_module(self.module), self.class_name)
        return loaded


VARIANTS: dict[str, VariantEntry] = {
    "head": VariantEntry("lora_variants.head", "Head", "nothing adapted but the task's head: the floor"),
    "full": VariantEntry("lora_variants.full", "Full", "the targeted matrices train whole: the ceiling"),
    "full_all": VariantEntry("lora_variants.full_all", "FullAll", "every parameter trains: full fine-tuning"),
    "lora": VariantEntry("lora_variants.lora", "LoRA", "ΔW = s B A, s = alpha / r", "arXiv 2106.09685"),
    "rslora": VariantEntry("lora_variants.rslora", "RsLoRA", "LoRA with s = alpha / √r", "arXiv 2312.03732"),
    "adalora": VariantEntry(
        "lora_variants.adalora.adalora",
        "AdaLoRA",
        "ΔW = s P Λ Q, pruned to a global budget",
        "arXiv 2303.10512",
        learns_ranks=True,
    ),
    "lora_plus": VariantEntry(
        "lora_variants.lora_plus", "LoRAPlus", "LoRA with a higher learning rate for B", "arXiv 2402.12354"
    ),
}
