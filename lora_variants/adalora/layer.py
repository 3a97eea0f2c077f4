"""AdaLoRA's layer: triplets P, Λ, Q with their smoothed sensitivities, of which some are alive."""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lora_variants.adalora.config import AdaLoRAConfig
from lora_variants.interface.factored_layer import FactoredLayer
from lora_variants.interface.layer import Factors, Trained, Triplets, padded_rank
from lora_variants.interface.warm_start import Update, as_triplets

INIT_DEVIATION = 0.02  # the authors' code; the paper says "Gaussian"


class AdaLoRALayer(FactoredLayer):
    """P (trials, d_out, r), Λ (trials, r), Q (trials, r, d_in), r the initial rank; `alive` (trials, r)."""

    trained: ClassVar[dict[str, Trained]] = {
        "P": Trained("B", rank_axis=1),
        "Lambda": Trained("other", rank_axis=0),
        "Q": Trained("A", rank_axis=0),
    }
    state: ClassVar[dict[str, Trained]] = {"alive": Trained("other", rank_axis=0)} | {
        f"{key}_{moment}": tensor for key, tensor in trained.items() for moment in ("sensitivity", "uncertainty")
    }

    def create_factors(self, configs: Sequence[AdaLoRAConfig]) -> None:
        initial_ranks = [config.initial_rank_at(r, self.base) for config, r in zip(configs, self.ranks, strict=True)]
        self.initial_ranks = tuple(initial_ranks)
        padded = padded_rank(initial_ranks, configs)
        self.P = nn.Parameter(self.new_tensor(self.base.d_out, padded))
        self.Lambda = nn.Parameter(self.new_tensor(padded))
        self.Q = nn.Parameter(self.new_tensor(padded, self.base.d_in))
        for key in self.trained:
            for moment in ("sensitivity", "uncertainty"):
                self.register_buffer(f"{key}_{moment}", torch.zeros_like(getattr(self, key).detach()))
        within = torch.arange(padded) < torch.tensor(initial_ranks)[:, None]
        self.alive: Bool[Tensor, "trials r"]
        self.within: Float[Tensor, "trials r"]
        self.register_buffer("alive", within.to(self.P.device))
        self.register_buffer("within", within.to(self.P))
        for trial in range(self.pack.trials):
            for key in ("P", "Q"):
                self.draw(key, trial, law="gaussian", deviation=INIT_DEVIATION)

    def unpadded(self, trial: int) -> int:
        return self.initial_ranks[trial]

    def factors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.P, (self.scale[:, None] * self.Lambda).unsqueeze(2), self.Q

    @torch.no_grad()
    def triplets(self, trial: int) -> Triplets:
        """The triplets that make ΔW of a trial, pruned ones left out."""
        used = self.alive[trial] | (self.Lambda[trial] != 0)  # between two prunings a pruned Λ moves again
        scale = float(self.scale[trial])
        return Triplets(self.P[trial][:, used], self.Lambda[trial, used], self.Q[trial, used], scale)

    def delta(self, trial: int) -> Factors:
        return self.triplets(trial).folded()

    @torch.no_grad()
    def start_from(self, trial: int, update: Update) -> None:
        """The first triplets become the update's; the others keep their fresh P and Q, with Λ = 0. All are alive."""
        parts, found = self.parts(trial), as_triplets(update)
        k = len(found.Lambda)
        parts["P"][:, :k], parts["Q"][:k] = found.P.to(self.P), found.Q.to(self.Q)
        parts["Lambda"].zero_()[:k] = self.rescaled(found.Lambda, found.scale, trial)

    def ranks_alive(self) -> list[int]:
        return [int(count) for count in self.alive.sum(dim=1)]

    def scores(self, trial: int) -> Float[Tensor, " r"]:
        """The score of each triplet of a trial, padding left out (eq. 8)."""
        s = {
            key: getattr(self, f"{key}_sensitivity")[trial] * getattr(self, f"{key}_uncertainty")[trial]
            for key in self.trained
        }
        return (s["Lambda"] + s["P"].mean(dim=0) + s["Q"].mean(dim=1))[: self.initial_ranks[trial]]
