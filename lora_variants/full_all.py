"""Full-all: every parameter of the model trains, biases, norms and embeddings too: the papers' "full fine-tuning".

A pack of one: other trials would need the frozen model. The model's own parameters are set aside and
copies train in their places, in float32 where W0 is narrower, so that W0 stays as it is and tied weights stay tied.
A model in 16 bits then computes in float32, inputs included: they are cast on their way in.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from lora_variants.frozen_model.linear_map import LinearMap, is_conv1d
from lora_variants.head import Head
from lora_variants.interface.config import Config
from lora_variants.interface.layer import Factors
from lora_variants.interface.parameter_groups import ParameterGroup
from lora_variants.interface.warm_start import Update, add_updates, refuse_heads


class FullAllConfig(Config):
    learning_rate_factor: ClassVar[float | None] = 0.4

    name: Literal["full_all"] = "full_all"


class FullAll(Head):
    config_class: ClassVar[type[Config]] = FullAllConfig
    trains_alone: ClassVar[bool] = True

    def layer_ranks(self, maps: Mapping[str, LinearMap]) -> dict[str, tuple[int, ...]]:
        if self.pack.trials != 1:
            raise ValueError(f"full_all trains the whole model: a pack of one, not of {self.pack.trials} trials")
        return {}

    def attached(self) -> None:
        heads = {id(module) for head in self.heads.values() for module in head.modules()}
        self._owned = [
            (path, module, key, original)
            for path, module in self.model.named_modules()
            if id(module) not in heads
            for key, original in module.named_parameters(recurse=False)
        ]
        self._copies = {id(p): nn.Parameter(_widened(p)) for _, _, _, p in self._owned}
        self._are_wider = any(self._copies[id(p)].dtype != p.dtype for _, _, _, p in self._owned)
        self.merged_dtype = torch.float32 if self._are_wider else None
        self._widening: RemovableHandle | None = None
        self._put(self._copies)

    def _put(self, copies: Mapping[int, nn.Parameter]) -> None:
        for _, module, key, original in self._owned:
            setattr(module, key, copies.get(id(original), original))
        if self._widening is not None:
            self._widening.remove()
            self._widening = None
        if copies and self._are_wider:
            self._widening = self.model.register_forward_pre_hook(_widen_inputs, with_kwargs=True)

    def detached(self) -> None:
        self._put({})

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        self._put({})
        try:
            yield
        finally:
            self._put(self._copies)

    def parameter_groups(
        self, rates: Float[Tensor, " trials"], weight_decay: Float[Tensor, " trials"]
    ) -> list[ParameterGroup]:
        copies = list(self._copies.values())
        matrices, vectors = [p for p in copies if p.ndim > 1], [p for p in copies if p.ndim <= 1]
        return [
            *super().parameter_groups(rates, weight_decay),
            ParameterGroup("other", tuple(matrices), rates, weight_decay, trial_axis=False),
            ParameterGroup("other", tuple(vectors), rates, torch.zeros_like(weight_decay), trial_axis=False),
        ]

    @torch.no_grad()
    def start_from(self, trial: int, updates: Mapping[str, Update], heads: Mapping[str, Tensor]) -> None:
        """Every ΔW is added to the parameter that trains in W0's place."""
        refuse_heads(heads, self.head_tensors(trial))
        add_updates(self.model, updates)
        super().start_from(trial, {}, heads)

    def trained_tensors(self, trial: int) -> dict[str, Tensor]:
        own = {f"{path}.{key}": self._copies[id(original)].detach() for path, _, key, original in self._once()}
        return super().trained_tensors(trial) | own

    def _once(self) -> list[tuple[str, nn.Module, str, nn.Parameter]]:
        """Where each parameter is; a tied one is listed where it comes first."""
        return list({id(owned[3]): owned for owned in reversed(self._owned)}.values())[::-1]

    @torch.no_grad()
    def deltas(self, trial: int) -> dict[str, Factors | Tensor]:
        """ΔW of every parameter; a linear layer's weight is (d_out, d_in) under the layer's name."""
        found: dict[str, Factors | Tensor] = {}
        for path, module, key, original in self._once():
            change = self._copies[id(original)] - original
            if key == "weight" and is_conv1d(module):
                found[path] = change.mT.contiguous()
            else:
                own = f"{path}.{key}".removeprefix(".")  # the model itself has no path
                found[path if key == "weight" and isinstance(module, nn.Linear) else own] = change
        return found


def _widened(parameter: Tensor) -> Tensor:
    """A copy in float32, or in the parameter's own type where that is wider: 16 bits would round steps away."""
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)


def _widen_inputs(
    _: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs of a forward with those in 16 bits in float32, as the parameters that they meet."""
    return tuple(_wide(given) for given in args), {name: _wide(given) for name, given in inputs.items()}


def _wide(given: Any) -> Any:
    is_narrow = isinstance(given, Tensor) and given.is_floating_point() and given.itemsize < 4
    return given.float() if is_narrow else given
