"""What an adapter on disk is: the names of its files, what is read from them, and the error where they cannot be."""

from dataclasses import dataclass, field, replace

from torch import Tensor

from lora_variants.interface.warm_start import Update

PREFIX = "base_model.model."
WEIGHTS, PICKLED_WEIGHTS, CONFIG, DELTA, HEAD = (
    "adapter_model.safetensors",
    "adapter_model.bin",  # PEFT before it had safetensors
    "adapter_config.json",
    "delta.safetensors",
    "head.safetensors",
)
AS_DELTA = f"save merged minus base weights as {DELTA} (float32, one tensor a matrix) in that folder"


class RunStoreError(ValueError):
    """What is on disk cannot be read as updates; the message gives the rule, the value and the way out."""


@dataclass(frozen=True)
class Adapter:
    """What a run or an adapter left on disk, by names in the base model.

    `updates` are ΔW, scale included. Where the file holds no alpha, `divisors` has what alpha is divided by, of each
    update, and alpha is taken as the divisor. `others` are all other tensors: heads, and whatever else was saved.
    """

    updates: dict[str, Update]
    others: dict[str, Tensor]
    divisors: dict[str, float] = field(default_factory=dict)

    @property
    def scale_known(self) -> bool:
        return not self.divisors

    def under(self, body: str | None) -> "Adapter":
        """The adapter with the names that its layers have in a model that holds its base under the name `body`."""
        return self if body is None else replace(self, updates={f"{body}.{n}": u for n, u in self.updates.items()})

    def with_alpha(self, alpha: float) -> "Adapter":
        """The adapter with the scale alpha / divisor, where the file holds none."""
        scaled = {
            name: update if isinstance(update, Tensor) else update._replace(scale=alpha / self.divisors[name])
            for name, update in self.updates.items()
        }
        return replace(self, updates=scaled, divisors={})
