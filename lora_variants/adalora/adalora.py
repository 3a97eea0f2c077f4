"""AdaLoRA: ΔW = s P Λ Q whose triplets are pruned to one budget over all layers (Zhang et al. 2023, arXiv 2303.10512).

Each triplet i has a direction P_i, a value Λ_i and a direction Q_i. Sensitivity I = |w ∇_w L| is smoothed
(eq. 9) and weighted by its uncertainty (eq. 10, 11); a triplet's score is s(Λ_i) + mean_j s(P_ji) +
mean_j s(Q_ij) (eq. 8); each pruning keeps the triplets with the highest scores, b(t) of them in all layers
together (eq. 6, 14), and sets the Λ of the others to zero.

Departures from the paper:
- The budget falls along (1 - (t - t_i) / (T - t_f - t_i))^3, as in the authors' code: eq. 14 as printed
  does not start at the initial budget.
- The orthogonality penalty is the mean over the matrices of ‖PᵀP - I‖_F and ‖QQᵀ - I‖_F, as in the
  authors' code, in which the published γ were tuned (`orthogonality_norm: frobenius`). Equation 4 has
  the sum of squares over all matrices (`squared_sum`).
- Λ, P and Q are scaled by s = alpha / target rank, so that `alpha` means what it means in LoRA. The
  authors' code divides by the initial rank.
- Sensitivity is taken before the step, from w_t and its own gradient, as in algorithm 1; the authors'
  code multiplies the gradient by the weights after the step (`sensitivity_at: after_step`).
- Ties never prune below the budget: equal scores keep a layer's first triplets first, layer by layer
  in turn, so exactly b(t) triplets are left. The authors' threshold also removes the ties.
- The gradients in the sensitivity are the clipped ones, as in the authors' code.
- With LoRA+'s ratio P learns faster, as the factor on the output side; Λ, a vector, stays at the base rate.
- After the last pruning no scores are kept, as in the authors' code: nothing reads them.
- Schedules are fractions of the run: t_i = initial_fraction T, t_f = final_fraction T. With the initial
  rank equal to the rank nothing is pruned: the paper's SVD-LoRA.
"""

from collections.abc import Mapping
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lora_variants.adalora.budget import budget, highest_triplets, smooth
from lora_variants.adalora.config import AdaLoRAConfig, last_pruning
from lora_variants.adalora.layer import AdaLoRALayer
from lora_variants.adalora.orthogonality import distance_from_orthonormal
from lora_variants.adalora.peft_layout import adalora_adapter, adalora_schedule
from lora_variants.frozen_model.linear_map import LinearMap
from lora_variants.interface.config import Config
from lora_variants.interface.factored_layer import FactoredLayer
from lora_variants.interface.peft_layouts import PeftAdapter
from lora_variants.lora import LoRA


class AdaLoRA(LoRA):
    config_class: ClassVar[type[Config]] = AdaLoRAConfig
    layer_class: ClassVar[type[FactoredLayer]] = AdaLoRALayer
    layers: dict[str, AdaLoRALayer]  # type: ignore[assignment]

    def trained_rank(self, config: AdaLoRAConfig, rank: int, base: LinearMap) -> int:
        return config.initial_rank_at(rank, base)

    def with_ranks(self, trial: int, needed: Mapping[str, int]) -> str:
        """One initial rank holds for all layers."""
        return f"initial_rank={max([*needed.values(), *(layer.unpadded(trial) for layer in self.layers.values())])}"

    def attached(self) -> None:
        kind = {name: getattr(layer.P, name) for layer in self.layers.values() for name in ("device", "dtype")}
        self._beta1, self._beta2, gamma = (
            torch.tensor([getattr(config, knob) for config in self.configs], **kind)
            for knob in ("beta1", "beta2", "orthogonality")
        )
        squared = [config.orthogonality_norm == "squared_sum" for config in self.configs]
        matrices = [2 * max(1, sum(layer.ranks[k] > 0 for layer in self.layers.values())) for k in range(len(squared))]
        divisor = [1 if form else count for form, count in zip(squared, matrices, strict=True)]
        self._squared = torch.tensor(squared, device=gamma.device)
        self._gamma = gamma / gamma.new_tensor(divisor)

    def penalty(self) -> Float[Tensor, " trials"]:
        """γ R(P, Q) of each trial (eq. 4)."""
        if not self.layers or not any(config.orthogonality for config in self.configs):
            return super().penalty()
        layers = self.layers.values()
        P, Q, within = ([getattr(layer, key) for layer in layers] for key in ("P", "Q", "within"))
        return self._gamma * distance_from_orthonormal(P, Q, within, self._squared)

    def before_step(self) -> None:
        self._observe("before_step", step_ahead=1)

    def after_step(self) -> None:
        self._observe("after_step", step_ahead=0)
        for trial, config in enumerate(self.configs):
            if self.pack.running[trial]:  # a skipped step counts: the budget is kept, with the scores there are
                self._prune(trial, config)

    def peft_adapters(self, trial: int) -> dict[str, PeftAdapter]:
        plain, layers = super().peft_adapters(trial), self.layers.items()
        if not plain:
            return {}
        steps, config = self.pack.total_steps[trial], self.configs[trial]
        own = adalora_adapter(
            {name: layer.triplets(trial) for name, layer in layers},
            {name: layer.base.owner for name, layer in layers},
            initial_ranks={name: layer.initial_ranks[trial] for name, layer in layers},
            total_rank=sum(layer.ranks[trial] for _, layer in layers),
            schedule=adalora_schedule(config, steps, last=last_pruning(steps, config)),
        )
        return {"adalora": own} | plain

    def _observe(self, when: str, *, step_ahead: int) -> None:
        """Scores of the trials whose sensitivity is taken now; after the last pruning nobody needs them."""
        chosen = [
            self.pack.moving[k]
            and config.sensitivity_at == when
            and self.pack.steps[k] + step_ahead <= last_pruning(self.pack.total_steps[k], config)
            for k, config in enumerate(self.configs)
        ]
        if self.layers and any(chosen):
            for key in AdaLoRALayer.trained:
                weights = [getattr(layer, key) for layer in self.layers.values()]
                smooth(
                    weights,
                    [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights],
                    [getattr(layer, f"{key}_sensitivity") for layer in self.layers.values()],
                    [getattr(layer, f"{key}_uncertainty") for layer in self.layers.values()],
                    betas=(self._beta1, self._beta2),
                    chosen=torch.tensor(chosen, device=self._beta1.device),
                )

    @torch.no_grad()
    def _prune(self, trial: int, config: AdaLoRAConfig) -> None:
        """Choose the triplets where the schedule says so; in the final phase hold the last choice."""
        step, total = self.pack.steps[trial], self.pack.total_steps[trial]
        first, last = round(config.initial_fraction * total), last_pruning(total, config)
        layers = [layer for layer in self.layers.values() if layer.ranks[trial]]
        initial, target = (sum(la.initial_ranks[trial] for la in layers), sum(la.ranks[trial] for la in layers))
        if initial == target:
            return
        choosing = step == last or (step < last and step % config.prune_every == 0)
        if choosing:
            kept = budget(step, first=first, last=last, initial=initial, target=target)
            for layer, alive in zip(layers, highest_triplets([la.scores(trial) for la in layers], kept), strict=True):
                layer.alive[trial, : len(alive)] = alive
        if choosing or step > last:
            for layer in layers:
                layer.Lambda[trial] *= layer.alive[trial]
