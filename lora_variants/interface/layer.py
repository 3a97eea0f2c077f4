"""The layers that take a layer's place: trained tensors with a leading trial axis over one frozen linear map."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lora_variants.frozen_model.linear_map import LinearMap
from lora_variants.interface.config import AdapterConfig
from lora_variants.interface.pack import Pack
from lora_variants.interface.rng import stream

Role = Literal["A", "B", "other", "head"]

SMALLEST_BUCKET = 8


def rank_bucket(rank: int) -> int:
    """The length that a rank is padded to with zeros: 8, 16, 32, ...; 0 stays 0.

    It depends on the trial alone, so that a trial's arithmetic is the same alone and in any pack.
    """
    return 0 if rank == 0 else max(SMALLEST_BUCKET, 1 << (rank - 1).bit_length())


def padded_rank(ranks: Sequence[int], configs: Sequence[AdapterConfig]) -> int:
    """The length of a pack's rank axis in a layer: the longest bucket of its trials."""
    return max(rank_bucket(max(rank, config.pad_rank_to)) for rank, config in zip(ranks, configs, strict=True))


class Factors(NamedTuple):
    """ΔW = scale * left @ right, left (d_out, r), right (r, d_in)."""

    left: Float[Tensor, "d_out r"]
    right: Float[Tensor, "r d_in"]
    scale: float

    def product(self) -> Float[Tensor, "d_out d_in"]:
        return (self.scale * self.left) @ self.right


class Triplets(NamedTuple):
    """ΔW = scale * P diag(Lambda) Q, P (d_out, r), Lambda (r,), Q (r, d_in)."""

    P: Float[Tensor, "d_out r"]
    Lambda: Float[Tensor, " r"]
    Q: Float[Tensor, "r d_in"]
    scale: float

    def folded(self) -> Factors:
        """The same ΔW with Λ in the left factor."""
        return Factors(self.P * self.Lambda, self.Q, self.scale)


class Trained(NamedTuple):
    """What a trained tensor is: its role among the groups, and which axis after the trial axis has length rank."""

    role: Role
    rank_axis: int | None = None


class TrialLayer(nn.Module):
    """A layer with trained tensors of its own for every trial; it takes a layer's place in the model."""

    trained: ClassVar[dict[str, Trained]]
    state: ClassVar[dict[str, Trained]] = {}

    def __init__(self, name: str, base: LinearMap, ranks: Sequence[int], pack: Pack) -> None:
        super().__init__()
        self.name, self.base, self.pack = name, base, pack
        self.ranks = tuple(ranks)

    def new_tensor(self, *shape: int) -> Tensor:
        """Zeros (trials, *shape) where W0 is, in float32 or W0's wider type."""
        weight = self.base.base_weight()
        dtype = torch.promote_types(weight.dtype, torch.float32)
        return torch.zeros(self.pack.trials, *shape, dtype=dtype, device=weight.device)

    def draw(self, key: str, trial: int, *, law: str, deviation: float) -> None:
        """Fill a trial's part of a tensor, padding apart, from the trial's own stream.

        The numbers depend on the seed, the layer and the shape alone: not on the precision, nor on what else
        is in the pack.
        """
        part = self.parts(trial)[key]
        generator = stream(self.pack.seeds[trial], "init", self.name, key)
        if law == "gaussian":
            drawn = torch.randn(part.shape, generator=generator, dtype=torch.float64)
        else:
            drawn = (2 * torch.rand(part.shape, generator=generator, dtype=torch.float64) - 1) * 3**0.5
        part.copy_(drawn * deviation)

    def parts(self, trial: int) -> dict[str, Tensor]:
        """One trial's tensors without padding, as views."""
        parts = {}
        for key, trained in (self.trained | self.state).items():
            if getattr(self, key) is None:
                continue
            part = getattr(self, key).detach()[trial]
            parts[key] = part if trained.rank_axis is None else part.narrow(trained.rank_axis, 0, self.unpadded(trial))
        return parts

    def merged_weight(self, trial: int) -> Float[Tensor, "d_out d_in"]:
        """The weight of the plain layer that computes what this one does for a trial."""
        raise NotImplementedError

    def merged_bias(self, trial: int) -> Float[Tensor, " d_out"] | None:
        """Its bias, None where the base's own is kept."""
        return None

    def unpadded(self, trial: int) -> int:
        """How many rank rows of a trial's tensors are not padding."""
        return self.ranks[trial]


class AdaptedLayer(TrialLayer, ABC):
    """A layer of the model with its update: y = W0 x + ΔW x for each trial's own ΔW."""

    dropout: tuple[float, ...] = ()

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        if not self.pack.enabled:
            return self.base(x)
        return self.adapted(x)

    @abstractmethod
    def adapted(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        """The layer's output with every trial's update; x is trial-major."""

    @abstractmethod
    def delta(self, trial: int) -> Factors | Float[Tensor, "d_out d_in"]:
        """ΔW of one trial, scale included: factors where the variant has them, dense otherwise."""

    def start_from(self, trial: int, update: Factors | Triplets | Float[Tensor, "d_out d_in"]) -> None:
        """Set a trial's ΔW to this one, which is of this layer's shape and of no higher rank than it holds."""
        raise ValueError(f"{type(self).__name__} of {self.name} starts from nothing that was learned before")

    @abstractmethod
    def ranks_alive(self) -> list[int]:
        """The rank of ΔW that each trial uses now."""

    def rank_padded_to(self) -> int:
        """The length of the rank axis; 0 where no tensor has one."""
        lengths = [getattr(self, k).shape[1 + t.rank_axis] for k, t in self.trained.items() if t.rank_axis is not None]
        return max(lengths, default=0)

    def scales(self) -> list[float]:
        """The scale of each trial's factors; empty where there are no factors."""
        return []

    def merged_weight(self, trial: int) -> Float[Tensor, "d_out d_in"]:
        """W0 + ΔW, computed in the adapter's precision."""
        update = self.delta(trial)
        dense = update.product() if isinstance(update, Factors) else update
        return self.base.base_weight().to(dense.dtype) + dense

    def dropout_mask(self, x: Float[Tensor, "trials n d_in"]) -> Float[Tensor, "trials n d_in"] | None:
        """What the adapter's input is multiplied by: a function of (seed, step, micro-step, layer) alone.

        So a mask is the same in any pack, and when checkpointing computes the forward again. None: no dropout.
        """
        if not self.training or not any(self.dropout):
            return None
        masks = torch.ones_like(x)
        for trial, p in enumerate(self.dropout):
            key = (self.pack.steps[trial], self.pack.micro_step, self.name)
            generator = stream(self.pack.dropout_seeds[trial], "dropout", *key, device=x.device)
            draws = torch.rand(x.shape[1:], generator=generator, device=x.device)
            masks[trial] = (draws >= p).to(x.dtype) / (1 - p)
        return masks


class HeadLayer(TrialLayer):
    """A task's head: a linear map with a weight and a bias of its own for every trial, trained from a fresh draw."""

    trained: ClassVar[dict[str, Trained]] = {"weight": Trained("head"), "bias": Trained("head")}

    def __init__(self, name: str, base: LinearMap, pack: Pack) -> None:
        super().__init__(name, base, (min(base.d_in, base.d_out),) * pack.trials, pack)
        self.weight = nn.Parameter(self.new_tensor(base.d_out, base.d_in))
        self.bias = None if base.base_bias() is None else nn.Parameter(self.new_tensor(base.d_out))
        bound = base.d_in**-0.5  # nn.Linear's own initialisation
        for trial, seed in enumerate(pack.seeds):
            generator = stream(seed, "head", name)
            for tensor in (self.weight, self.bias):
                if tensor is None:
                    continue
                drawn = torch.rand(tensor.shape[1:], generator=generator, dtype=torch.float64)
                tensor.detach()[trial].copy_((2 * drawn - 1) * bound)

    def forward(self, x: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows d_out"]:
        by_trial = self.pack.by_trial(x).to(self.weight.dtype)
        y = torch.bmm(by_trial, self.weight.mT)
        y = y if self.bias is None else y + self.bias[:, None, :]
        return y.reshape(*x.shape[:-1], -1)  # logits of a narrow base stay in the head's precision

    def merged_weight(self, trial: int) -> Float[Tensor, "d_out d_in"]:
        return self.weight.detach()[trial]

    def merged_bias(self, trial: int) -> Float[Tensor, " d_out"] | None:
        return None if self.bias is None else self.bias.detach()[trial]
