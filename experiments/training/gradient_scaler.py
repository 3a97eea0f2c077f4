"""Loss scaling for float16: torch.amp.GradScaler with a scale of its own for every trial of a pack.

Float16 ends at 65504 and loses what is below 6e-8, so a trial's loss is multiplied by its scale before backward and
its gradient divided by it after. Scales are powers of two: where nothing overflows or underflows no bit changes.

A trial whose loss or gradient is not finite skips the step and goes on with half the scale; the others do not notice.
Its weights, moments and the optimizer's count of its steps stay as they are. Its data, its dropout, the schedule of its
learning rate and that of AdaLoRA's budget go on: every trial sees the same batches, and ends with its last step.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from experiments.training.optimizer import multiply_gradients
from lora_variants.interface.parameter_groups import ParameterGroup

INITIAL_SCALE, GROWTH_INTERVAL = 2.0**16, 2000  # torch's own, as are doubling and halving
SMALLEST_SCALE = 2.0**-14  # float16's smallest normal number: no smaller scale could help what overflows even here
LARGEST_SCALE = 2.0**127  # float32's largest power of two


class GradientScaler:
    """A loss scale of each trial, how many steps in a row it was good for, and how many steps the trial skipped.

    All three are held on the CPU, where the loop learns which trials are finite, so that no step waits for the device
    once more.
    """

    def __init__(self, groups: Sequence[ParameterGroup], *, trials: int) -> None:
        self.groups = tuple(groups)
        self.scale = torch.full((trials,), INITIAL_SCALE)
        self.good_steps = torch.zeros(trials, dtype=torch.int32)
        self.skipped = torch.zeros(trials, dtype=torch.int32)

    def scaled(self, losses: Float[Tensor, " trials"]) -> Float[Tensor, " trials"]:
        """Each trial's loss times its scale."""
        return losses * self.scale.to(losses.device, non_blocking=True)

    def unscale_gradients(self) -> None:
        """Divide each trial's gradient by its scale."""
        device = next(p.device for group in self.groups for p in group.parameters)
        multiply_gradients(self.groups, self.scale.reciprocal().to(device, non_blocking=True))

    def update(self, finite: Bool[Tensor, " trials"], running: Bool[Tensor, " trials"]) -> Bool[Tensor, " trials"]:
        """Take note of a step of the running trials; returns which trials were finite or may try again.

        Where a trial was not finite its scale halves, and at the smallest one there is no other try; after
        `GROWTH_INTERVAL` good steps in a row it doubles. A trial that may not try again stays as it is.
        """
        good, skips = running & finite, running & ~finite & (self.scale > SMALLEST_SCALE)
        grows = good & (self.good_steps + 1 == GROWTH_INTERVAL)
        grown = torch.where(grows, (2 * self.scale).clamp(max=LARGEST_SCALE), self.scale)
        self.scale = torch.where(skips, self.scale / 2, grown)
        self.good_steps = torch.where(skips | grows, 0, self.good_steps + good)
        self.skipped += skips
        return finite | skips

    def metrics(self) -> dict[str, list[float]]:
        """The scale that each trial goes on with, and how many steps it has skipped so far."""
        return {"train/loss_scale": self.scale.tolist(), "train/steps_skipped": self.skipped.tolist()}

    def trial_state(self, trial: int) -> dict[str, Tensor]:
        """A copy of all that one trial has here."""
        return {key: part.clone() for key, part in self._parts(trial).items()}

    def load_trial_state(self, trial: int, state: Mapping[str, Tensor]) -> None:
        """Put what a trial has into this slot."""
        for key, part in self._parts(trial).items():
            part.copy_(state[key])

    def _parts(self, trial: int) -> dict[str, Tensor]:
        return {key: getattr(self, key)[trial] for key in ("scale", "good_steps", "skipped")}
