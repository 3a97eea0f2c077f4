"""The groups that a variant's trained parameters come in: what an optimizer needs to know of them."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from lora_variants.interface.layer import Role


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a role, with a learning rate and a weight decay for every trial.

    `trial_axis=False` only in a pack of one: the parameters have the shapes of the model itself.
    """

    role: Role
    parameters: tuple[nn.Parameter, ...]
    rates: Float[Tensor, " trials"]
    weight_decay: Float[Tensor, " trials"]
    trial_axis: bool = True

    def by_trial(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Value and gradient of each parameter, (trials, ...) both; the gradient is None where unused."""
        for parameter in self.parameters:
            value, gradient = parameter.detach(), parameter.grad
            if self.trial_axis:
                yield value, gradient
            else:
                yield value[None], None if gradient is None else gradient[None]

    def for_torch(self) -> dict[str, Any]:
        """The group as a torch optimizer takes it. Raises: ValueError where trials differ in rate or weight decay."""
        for what, values in (("learning rate", self.rates), ("weight decay", self.weight_decay)):
            if len(values.unique()) > 1:
                raise ValueError(
                    f"a torch optimizer has one {what} for all trials of a pack; those of group {self.role!r} have "
                    f"{', '.join(f'{value:g}' for value in values.tolist())}: train each of them as a pack of one"
                )
        rate, decay = float(self.rates[0]), float(self.weight_decay[0])
        return {"params": list(self.parameters), "lr": rate, "weight_decay": decay, "role": self.role}
