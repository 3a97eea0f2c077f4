"""AdamW, clipping and learning-rate schedules with a number of their own for every trial of a pack."""

import math
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from experiments.training.flat_parameters import FlatParameters
from lora_variants.interface.parameter_groups import ParameterGroup


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
def multiply_gradients(groups: Sequence[ParameterGroup], factors: Float[Tensor, " trials"]) -> None:
    """Multiply each trial's gradient by its own number, in place."""
    for group in groups:
        for _, gradient in group.by_trial():
            if gradient is not None:
                gradient.mul_(spread(factors, gradient))


class AdamW:
    """torch.optim.AdamW with learning rate, weight decay and step count per trial; trials may be at rest.

    Each trial is moved by torch's own fused kernel, and its norm is taken, over rows of memory of its own. So its
    arithmetic is the same in any pack, and a trial at rest is not touched. Parameters come into the rows with their
    first gradient; one that never has a gradient is left alone.
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
            [[torch.zeros_like(value), torch.zeros_like(value)] for value, _ in group.by_trial()]
            for group in self.groups
        ]
        self._rows: list[FlatParameters] = []
        self._waiting = [list(range(len(group.parameters))) for group in self.groups]

    @torch.no_grad()
    def gather(self) -> list[FlatParameters]:
        """All gradients in rows, one a trial."""
        for rows in self._rows:
            rows.gather()
        for group, moments, waiting in zip(self.groups, self.moments, self._waiting, strict=True):
            come = [i for i in waiting if group.parameters[i].grad is not None]
            for alike in _alike(group.parameters, come):
                self._rows.append(
                    FlatParameters(group, [group.parameters[i] for i in alike], [moments[i] for i in alike])
                )
            waiting[:] = [i for i in waiting if i not in come]
        return self._rows

    @torch.no_grad()
    def gradient_norms(self) -> Float[Tensor, " trials"]:
        """The norm of each trial's whole gradient.

        Trial by trial: a sum over all trials at once adds in an order that depends on how many there are.
        """
        rows = self.gather()
        return torch.stack([get_total_norm([of.by_trial[k][1] for of in rows]) for k in range(len(self.steps))])

    @torch.no_grad()
    def clip_gradients(self, norms: Float[Tensor, " trials"], limits: Sequence[float | None]) -> None:
        """Scale each trial's gradient down to its limit, as torch.nn.utils.clip_grad_norm_ does; None is no limit."""
        limit = norms.new_tensor([math.inf if limit is None else limit for limit in limits])
        factor = (limit / (norms + 1e-6)).clamp(max=1.0)  # 1e-6: torch's own
        if not bool((factor == 1).all()):
            for rows in self.gather():
                rows.gradients.mul_(spread(factor, rows.gradients))

    @torch.no_grad()
    def step(self, factors: Float[Tensor, " trials"], moving: Bool[Tensor, " trials"]) -> None:
        """One update at `factors` times each group's rates; a trial that is not moving stays as it is, bit for bit."""
        self.steps += moving
        (beta1, beta2), chosen = self.betas, torch.nonzero(moving).flatten().tolist()
        for rows in self.gather():
            rates, decays = (rows.group.rates.double() * factors).tolist(), rows.group.weight_decay.tolist()
            steps = self.steps.to(rows.values.device)
            for k in chosen:
                values, gradients, first, second = rows.by_trial[k]
                torch._fused_adamw_(
                    [values], [gradients], [first], [second], [], [steps[k]],
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
        """Every gradient is zero, or None where there never was one."""
        for rows in self._rows:
            rows.gradients.zero_()


def _alike(parameters: Sequence[nn.Parameter], chosen: Sequence[int]) -> list[list[int]]:
    """Places of the chosen parameters, those together that share a type and a device."""
    kinds: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for i in chosen:
        kinds.setdefault((parameters[i].dtype, parameters[i].device), []).append(i)
    return list(kinds.values())
