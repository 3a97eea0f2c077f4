"""The shared interface: what a variant is to the training loop and to whoever reads what was learned."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lora_variants.frozen_model.linear_map import LinearMap
from lora_variants.interface.config import Config
from lora_variants.interface.layer import AdaptedLayer, Factors, HeadLayer, Role
from lora_variants.interface.pack import Pack
from lora_variants.interface.parameter_groups import ParameterGroup
from lora_variants.interface.peft_layouts import PeftAdapter, lora_adapter
from lora_variants.interface.sites import Site
from lora_variants.interface.warm_start import Update, by_layer, refuse_heads


class Variant(ABC):
    """A method attached to a model, for all trials of a pack. The loop asks it; it never asks for its name."""

    config_class: ClassVar[type[Config]]
    trains_alone: ClassVar[bool] = False  # whether a pack of one is all that it trains in
    merged_dtype: torch.dtype | None = None  # of merged layers; None: that of the model's own

    def __init__(self, model: nn.Module, pack: Pack, configs: Sequence[Any]) -> None:
        self.model, self.pack, self.configs = model, pack, tuple(configs)
        self.layers: dict[str, AdaptedLayer] = {}
        self.heads: dict[str, HeadLayer] = {}
        self.sites: list[Site] = []
        self.head_rates: tuple[float, ...] | None = None  # of each trial, where heads have a rate of their own
        self.is_detached = False
        self.attributes_before: list[tuple[Any, str, Any]] = []

    @abstractmethod
    def layer_ranks(self, maps: Mapping[str, LinearMap]) -> dict[str, tuple[int, ...]]:
        """The rank of each layer for each trial; layers that are 0 for all are left alone."""

    @abstractmethod
    def adapt(self, name: str, base: LinearMap, ranks: Sequence[int]) -> AdaptedLayer:
        """The layer that takes the place of `base`."""

    def attached(self) -> None:
        """Called once, when all layers are in place."""

    def detached(self) -> None:
        """Called once, when the model's own layers are back."""

    @torch.no_grad()
    def start_from(self, trial: int, updates: Mapping[str, Update], heads: Mapping[str, Tensor]) -> None:
        """Set a trial's ΔW to these, by layer, and its heads ('head.weight'); what is not named starts afresh.

        After `attach` and before the groups exist. Raises: ValueError for what this variant, its layers, their
        ranks or its heads have no place for; nothing is changed then.
        """
        chosen = by_layer(updates, self.layers)
        self.refuse_start(trial, chosen)
        there = self.head_tensors(trial)
        refuse_heads(heads, there)
        for name, update in chosen.items():
            self.layers[name].start_from(trial, update)
        for key, value in heads.items():
            there[key].copy_(value)

    def refuse_start(self, trial: int, updates: Mapping[str, Update]) -> None:
        """Raise ValueError where an update, already of its layer's shape, does not fit into the layer."""

    def prepare(self, batches: Iterable[Mapping[str, Tensor]]) -> None:
        """For initialisations from data, before the groups exist: the batches that training will start with."""

    def parameter_groups(
        self, rates: Float[Tensor, " trials"], weight_decay: Float[Tensor, " trials"]
    ) -> list[ParameterGroup]:
        """Each trained parameter in exactly one group; rates and decay are one number a trial.

        Heads learn at `head_rates` where there are any, at `rates` otherwise.
        """
        ratio = torch.tensor([getattr(c, "learning_rate_ratio", 1.0) for c in self.configs], dtype=rates.dtype)
        own = {"head": rates if self.head_rates is None else torch.tensor(self.head_rates, dtype=rates.dtype)}
        by_role: dict[tuple[Role, bool], list[nn.Parameter]] = {}
        for layer in (*self.layers.values(), *self.heads.values()):
            for key, trained in layer.trained.items():
                parameter = getattr(layer, key)
                if parameter is None:  # a head without a bias
                    continue
                is_matrix = parameter.ndim > 2  # (trials, rows, columns)
                by_role.setdefault((trained.role, is_matrix), []).append(parameter)
        return [
            ParameterGroup(
                role=role,
                parameters=tuple(parameters),
                rates=rates * ratio if role == "B" and is_matrix else own.get(role, rates),
                weight_decay=weight_decay if is_matrix else torch.zeros_like(weight_decay),
            )
            for (role, is_matrix), parameters in by_role.items()
        ]

    def torch_groups(self, learning_rate: float, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """`parameter_groups` as a torch optimizer takes them: params, lr, weight_decay, and the role besides.

        Raises: ValueError where the trials of a pack need different rates, which a torch optimizer does not have.
        """
        of_all = torch.full((self.pack.trials,), learning_rate, dtype=torch.float64)
        groups = self.parameter_groups(of_all, torch.full_like(of_all, weight_decay))
        return [group.for_torch() for group in groups if group.parameters]

    def penalty(self) -> Float[Tensor, " trials"]:
        """What is added to the task loss of each trial while it trains; never part of an evaluation.

        Zeros that need no gradient where the method has no penalty.
        """
        return self._zeros.clone()

    @cached_property
    def _zeros(self) -> Float[Tensor, " trials"]:
        weight = next(self.model.parameters())  # asked once: the search through all modules takes a while
        return weight.new_zeros(self.pack.trials, dtype=torch.promote_types(weight.dtype, torch.float32))

    @contextmanager
    def optimizer_step(self) -> Iterator[None]:
        """Wraps the optimizer's step of a loop of one's own: the hooks before and after it, and the count between."""
        self.before_step()
        yield
        self.pack.steps = [done + runs for done, runs in zip(self.pack.steps, self.pack.running, strict=True)]
        self.after_step()

    def before_step(self) -> None:
        """After backward and clipping, before the optimizer moves the weights of the trials that are `pack.moving`."""

    def after_step(self) -> None:
        """After the optimizer moved the weights, gradients still there; `pack.steps` counts this step."""

    def merge(self, trial: int = 0) -> nn.Module:
        """The model as a plain one: W0 + ΔW of one trial in copies of its layers, no adapter in it.

        W0 itself is not written to. Until `unmerge`, training and other trials are out of reach.
        """
        for site in self.sites:
            site.put(site.merged(trial, self.merged_dtype))
        self.model.is_adapted = False  # type: ignore[assignment]
        return self.model

    def unmerge(self) -> nn.Module:
        """The adapted model again; its base is what it was, bit for bit."""
        for site in self.sites:
            site.put(site.adapted)
        self.model.is_adapted = True  # type: ignore[assignment]
        return self.model

    def detach(self) -> nn.Module:
        """The model as it was before `attach`, with its own modules; what was learned stays here."""
        if self.is_detached:
            return self.model
        self.is_detached = True
        for site in self.sites:
            site.put(site.original)
        self.detached()
        for holder, attribute, value in self.attributes_before:
            setattr(holder, attribute, value)
        return self.model

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Adapters are off inside: the model computes with W0 alone (heads stay as trained)."""
        if self.is_detached or not getattr(self.model, "is_adapted", False):
            raise RuntimeError("adapters are switched off on an adapted model; this one is merged or detached")
        with self.switched_off():
            yield

    @contextmanager
    def switched_off(self) -> Iterator[None]:
        """What `disabled` does to this variant."""
        with self.pack.disabled():
            yield

    def evaluation_modes(self) -> dict[str, AbstractContextManager[None]]:
        """The ways in which a trained adapter is evaluated: name -> context in which it holds; '' gives the score."""
        return {"": nullcontext()}

    def deltas(self, trial: int) -> dict[str, Factors | Tensor]:
        """ΔW of every adapted layer for one trial, scale included."""
        return {name: layer.delta(trial) for name, layer in self.layers.items()}

    def peft_adapters(self, trial: int) -> dict[str, PeftAdapter]:
        """What PEFT loads of one trial, by layout: '' is plain LoRA, any other a layout of this variant's own.

        Empty where PEFT has no layout: for ΔW without factors, for rank 0 alone, and for torch's multi-head attention.
        """
        owners = {name: layer.base.owner for name, layer in self.layers.items()}
        factors = {name: update for name, update in self.deltas(trial).items() if isinstance(update, Factors)}
        learned = any(len(update.right) for update in factors.values())
        if not learned or any(isinstance(owner, nn.MultiheadAttention) for owner in owners.values()):
            return {}
        return {"": lora_adapter(factors, owners)}

    def head_tensors(self, trial: int) -> dict[str, Tensor]:
        """The heads of one trial under the names they have in the model, 'head.weight', as views."""
        return {f"{name}.{key}": part for name, head in self.heads.items() for key, part in head.parts(trial).items()}

    def ranks_alive(self) -> dict[str, list[int]]:
        """The rank each layer uses now, for each trial."""
        return {name: layer.ranks_alive() for name, layer in self.layers.items()}

    def scales(self) -> dict[str, list[float]]:
        """The effective scale of each layer's factors, for each trial; empty where there are no factors."""
        return {name: scales for name, layer in self.layers.items() if (scales := layer.scales())}

    def rank_padded_to(self) -> dict[str, int]:
        """The length of the rank axis of each layer's factors; empty where there are no factors."""
        return {name: padded for name, layer in self.layers.items() if (padded := layer.rank_padded_to())}

    def trained_tensors(self, trial: int) -> dict[str, Tensor]:
        """What one trial trains, padding not counted, as views: 'layer/tensor' -> values."""
        return {
            f"{name}/{key}": part
            for name, layer in (self.layers | self.heads).items()
            for key, part in layer.parts(trial).items()
            if key in layer.trained
        }

    def trainable_parameters(self, trial: int) -> int:
        """How many numbers a trial trains."""
        return sum(part.numel() for part in self.trained_tensors(trial).values())

    def trial_state(self, trial: int) -> dict[str, Tensor]:
        """A copy of all that one trial is, without padding."""
        return {key: part.clone() for key, part in self._all_tensors(trial).items()}

    def load_trial_state(self, trial: int, state: Mapping[str, Tensor]) -> None:
        """Put what a trial is into a slot of this pack; its ranks must be the slot's."""
        for key, part in self._all_tensors(trial).items():
            if key not in state or state[key].shape != part.shape:
                found = tuple(state[key].shape) if key in state else "nothing"
                raise ValueError(f"{key}: this trial needs shape {tuple(part.shape)}, the state has {found}")
            part.copy_(state[key])

    def _all_tensors(self, trial: int) -> dict[str, Tensor]:
        layers = self.layers | self.heads
        parts = {f"{name}/{key}": part for name, layer in layers.items() for key, part in layer.parts(trial).items()}
        return parts | self.trained_tensors(trial)
