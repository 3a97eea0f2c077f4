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

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from lora_variants.adalora.budget import budget, highest_triplets, smooth
from lora_variants.adalora.orthogonality import distance_from_orthonormal
from lora_variants.frozen_model.linear_map import LinearMap
from lora_variants.interface.config import AdapterConfig, Config
from lora_variants.interface.layer import FactoredLayer, Factors, Trained, Triplets, padded_rank
from lora_variants.interface.peft_layouts import PeftAdapter, adalora_adapter, adalora_schedule
from lora_variants.interface.warm_start import Update, as_triplets
from lora_variants.lora import LoRA

INITIAL_OVER_TARGET = 1.5  # section 4: the initial budget is 1.5 times the final one
INIT_DEVIATION = 0.02  # the authors' code; the paper says "Gaussian"


class AdaLoRAConfig(AdapterConfig):
    """The knobs of AdaLoRA; `rank` is the average rank that is left at the end."""

    learning_rate_factor: ClassVar[float | None] = 1.0

    name: Literal["adalora"] = Field("adalora", description="which variant")
    initial_rank: int | None = Field(
        None,
        ge=1,
        description="rank of each layer at the start; default ceil(1.5 rank), at most min(d_out, d_in)",
    )
    initial_fraction: float = Field(0.1, ge=0, lt=1, description="t_i / T: share of steps before pruning starts")
    final_fraction: float = Field(0.4, ge=0, lt=1, description="t_f / T: share of steps with the final ranks")
    prune_every: int = Field(5, ge=1, description="ΔT: steps between two prunings")
    beta1: float = Field(0.85, ge=0, lt=1, description="smoothing of the sensitivity, eq. 9")
    beta2: float = Field(0.85, ge=0, lt=1, description="smoothing of the uncertainty, eq. 10")
    orthogonality: float = Field(0.1, ge=0, description="γ: weight of the orthogonality penalty, eq. 4")
    orthogonality_norm: Literal["frobenius", "squared_sum"] = Field(
        "frobenius", description="mean of Frobenius norms (authors' code) or sum of their squares (eq. 4)"
    )
    sensitivity_at: Literal["before_step", "after_step"] = Field(
        "before_step",
        description="weights in |w ∇L|: before the step (algorithm 1) or after it (authors' code)",
    )

    @model_validator(mode="after")
    def _consistent(self) -> "AdaLoRAConfig":
        if self.initial_fraction + self.final_fraction > 1:
            raise ValueError(
                f"initial_fraction + final_fraction must be at most 1 to leave steps for pruning; "
                f"got {self.initial_fraction:g} + {self.final_fraction:g}"
            )
        highest = self.rank if isinstance(self.rank, int) else max(self.rank.values())
        if self.initial_rank is not None and self.initial_rank < highest:
            raise ValueError(f"initial_rank {self.initial_rank} is below rank {highest}; pruning cannot add triplets")
        return self

    def initial_rank_at(self, rank: int, base: LinearMap) -> int:
        """The rank at the start of a layer whose target is `rank`."""
        if rank == 0:
            return 0
        wanted = self.initial_rank or math.ceil(INITIAL_OVER_TARGET * rank)
        return min(wanted, base.d_out, base.d_in)


def last_pruning(total: int, config: AdaLoRAConfig) -> int:
    """T - t_f, the step after which the triplets left are final; 1 where the final phase is the whole run."""
    return max(1, total - round(config.final_fraction * total))


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
