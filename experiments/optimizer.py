"""AdamW, clipping and learning-rate schedules with a number of their own for every trial of a pack."""

import math
from collections.abc import Mapping, Sequence
from itertools import compress

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from lora_variants.variant import ParameterGroup


def schedule_factor(kind: str, step: int, *, total: int, warmup: int) -> float:
    """What the learning rate of step 0 .. total - 1 is multiplied by: a linear warm-up, then the schedule.

    Linear and cosine would reach 0 at `total`, one step after the last.
    """
    if step < warmup:
        return (step + 1) / (warmup + 1)
    passed = (step - warmup) / max(1, total - warmup)
    if kind == "linear":
        return 1 - passed
    return 0.5 * (1 + math.cos(math.pi * passed)) if kind == "cosine" else 1.0


def spread(values: Tensor, like: Tensor) -> Tensor:
    """One number a trial, shaped to multiply (trials, ...)."""
    return values.to(like).view(-1, *(1,) * (like.ndim - 1))


@torch.no_grad()
def gradient_norms(groups: Sequence[ParameterGroup], trials: int) -> Float[Tensor, " trials"]:
    """The norm of each trial's whole gradient.

    Trial by trial: a sum over all trials at once adds in an order that depends on how many there are.
    """
    gradients = [_slices(p.grad, group) for group in groups for p in group.parameters if p.grad is not None]
    return torch.stack([get_total_norm([gradient[k] for gradient in gradients]) for k in range(trials)])


@torch.no_grad()
def clip_gradients(groups: Sequence[ParameterGroup], norms: Tensor, limits: Sequence[float | None]) -> None:
    """Scale each trial's gradient down to its limit, as torch.nn.utils.clip_grad_norm_ does; None is no limit."""
    limit = norms.new_tensor([math.inf if limit is None else limit for limit in limits])
    factor = (limit / (norms + 1e-6)).clamp(max=1.0)  # 1e-6: torch's own
    if not bool((factor == 1).all()):
        multiply_gradients(groups, factor)


@torch.no_grad()
def multiply_gradients(groups: Sequence[ParameterGroup], factors: Float[Tensor, " trials"]) -> None:
    """Multiply each trial's gradient by its own number, in place."""
    for group in groups:
        for _, gradient in group.by_trial():
            if gradient is not None:
                gradient.mul_(spread(factors, gradient))


class AdamW:
    """torch.optim.AdamW with learning rate, weight decay and step count per trial; trials may be at rest.

    Each trial is moved by torch's own fused kernel, all its tensors that share a rate in one call. So its
    arithmetic is the same in any pack, and a trial at rest is not touched.
    """

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        *,
        trials: int,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.groups, self.betas, self.eps = tuple(groups), betas, eps
        self.steps = torch.zeros(trials)  # float32, as the kernel reads it
        self.moments = [
            [(torch.zeros_like(value), torch.zeros_like(value)) for value, _ in group.by_trial()]
            for group in self.groups
        ]
        self._calls = [
            _Call(group, [group.parameters[i] for i in alike], [moments[i] for i in alike])
            for group, moments in zip(self.groups, self.moments, strict=True)
            for alike in _alike(group.parameters)
        ]

    @torch.no_grad()
    def step(self, factors: Float[Tensor, " trials"], moving: Bool[Tensor, " trials"]) -> None:
        """One update at `factors` times each group's rates; a trial that is not moving stays as it is, bit for bit."""
        self.steps += moving
        (beta1, beta2), chosen = self.betas, torch.nonzero(moving).flatten().tolist()
        for call in self._calls:
            rates, decays = (call.group.rates.double() * factors).tolist(), call.group.weight_decay.tolist()
            steps, slots = self.steps.to(call.device), call.slots()
            for k in chosen:
                (values, first, second), gradients = slots[k]
                if not gradients:
                    continue
                torch._fused_adamw_(
                    values, gradients, first, second, [], [steps[k]] * len(values),
                    lr=rates[k], beta1=beta1, beta2=beta2, weight_decay=decays[k], eps=self.eps,
                    amsgrad=False, maximize=False,
                )  # fmt: skip

    def trial_state(self, trial: int) -> dict[str, Tensor]:
        """A copy of one trial's moments and step count."""
        return {key: part.clone() for key, part in self._parts(trial).items()}

    def load_trial_state(self, trial: int, state: Mapping[str, Tensor]) -> None:
        """Put a trial's moments and step count into this slot."""
        for key, part in self._parts(trial).items():
            part.copy_(state[key])

    def _parts(self, trial: int) -> dict[str, Tensor]:
        parts = {"steps": self.steps[trial]}
        for i, moments in enumerate(self.moments):
            for j, (first, second) in enumerate(moments):
                parts |= {f"{i}/{j}/first": first[trial], f"{i}/{j}/second": second[trial]}
        return parts

    def zero_gradients(self) -> None:
        for group in self.groups:
            for parameter in group.parameters:
                parameter.grad = None


class _Call:
    """The tensors of one group, type and device: what the kernel moves in one call, for each trial."""

    def __init__(
        self, group: ParameterGroup, parameters: list[nn.Parameter], moments: list[tuple[Tensor, Tensor]]
    ) -> None:
        self.group, self.parameters, self.device = group, parameters, parameters[0].device
        values = [_slices(parameter.detach(), group) for parameter in parameters]
        own = [pair if group.trial_axis else (pair[0][0], pair[1][0]) for pair in moments]
        first, second = ([_slices(pair[i], group) for pair in own] for i in (0, 1))
        columns = (values, first, second)
        self.tensors = [[[of[k] for of in column] for column in columns] for k in range(len(group.rates))]

    def slots(self) -> list[tuple[list[list[Tensor]], list[Tensor]]]:
        """For each trial (values, first moments, second moments) and gradients; parameters without one are left out."""
        given = [parameter.grad for parameter in self.parameters]
        used = [gradient is not None for gradient in given]
        pairs = zip(given, self.parameters, strict=True)
        gradients = [_slices(_laid_out_as(p, gradient), self.group) for gradient, p in pairs if gradient is not None]
        kept = self.tensors if all(used) else [[list(compress(c, used)) for c in columns] for columns in self.tensors]
        return [(columns, [of[k] for of in gradients]) for k, columns in enumerate(kept)]


def _slices(tensor: Tensor, group: ParameterGroup) -> Sequence[Tensor]:
    """What each trial has of a tensor."""
    return tensor.unbind() if group.trial_axis and len(group.rates) > 1 else (tensor,)


def _laid_out_as(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in the parameter's memory layout: the kernel goes through memory, not through indices."""
    return gradient if gradient.stride() == parameter.stride() else torch.empty_like(parameter).copy_(gradient)


def _alike(parameters: Sequence[nn.Parameter]) -> list[list[int]]:
    """Places of the parameters that share a type and a device."""
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for i, parameter in enumerate(parameters):
        kinds.setdefault((parameter.dtype, parameter.device), []).append(i)
    return list(kinds.values())
