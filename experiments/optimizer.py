"""AdamW, clipping and learning-rate schedules with a number of their own for every trial of a pack."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor
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
    gradients = [gradient for group in groups for _, gradient in group.by_trial() if gradient is not None]
    return torch.stack([get_total_norm([gradient[k] for gradient in gradients]) for k in range(trials)])


@torch.no_grad()
def clip_gradients(groups: Sequence[ParameterGroup], norms: Tensor, limits: Sequence[float | None]) -> None:
    """Scale each trial's gradient down to its limit, as torch.nn.utils.clip_grad_norm_ does; None is no limit."""
    limit = norms.new_tensor([math.inf if limit is None else limit for limit in limits])
    factor = (limit / (norms + 1e-6)).clamp(max=1.0)  # 1e-6: torch's own
    if bool((factor == 1).all()):
        return
    for group in groups:
        for _, gradient in group.by_trial():
            if gradient is not None:
                gradient.mul_(spread(factor, gradient))


class AdamW:
    """torch.optim.AdamW with learning rate, weight decay and step count per trial; trials may be at rest."""

    def __init__(
        self,
        groups: Sequence[ParameterGroup],
        *,
        trials: int,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.groups, self.betas, self.eps = tuple(groups), betas, eps
        self.steps = torch.zeros(trials, dtype=torch.float64)
        self.moments = [
            [(torch.zeros_like(value), torch.zeros_like(value)) for value, _ in group.by_trial()]
            for group in self.groups
        ]

    @torch.no_grad()
    def step(self, factors: Float[Tensor, " trials"], moving: Bool[Tensor, " trials"]) -> None:
        """One update at `factors` times each group's rates; a trial that is not moving stays as it is, bit for bit."""
        beta1, beta2 = self.betas
        self.steps += moving
        correction1, correction2 = 1 - beta1**self.steps, 1 - beta2**self.steps
        every = bool(moving.all())
        for group, moments in zip(self.groups, self.moments, strict=True):
            rates = group.rates.double() * factors
            size, decay = rates / correction1, 1 - rates * group.weight_decay.double()
            for (value, gradient), (first, second) in zip(group.by_trial(), moments, strict=True):
                if gradient is None:
                    continue
                kept = None if every else (value.clone(), first.clone(), second.clone())
                first.lerp_(gradient, 1 - beta1)
                second.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                denominator = (second.sqrt() / spread(correction2.sqrt(), second)).add_(self.eps)
                value.mul_(spread(decay, value)).sub_(spread(size, value) * first / denominator)
                if kept is not None:
                    _put_back((value, first, second), kept, moving)

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


def _put_back(now: Sequence[Tensor], before: Sequence[Tensor], moving: Tensor) -> None:
    """Undo the update of trials that are at rest; selected, not multiplied, since 0 * NaN is NaN."""
    for tensor, old in zip(now, before, strict=True):
        tensor.copy_(torch.where(spread(moving, tensor).bool(), tensor, old))
