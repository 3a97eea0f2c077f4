"""The knobs of AdaLoRA, and the rank that each layer begins with."""

import math
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from lora_variants.frozen_model.linear_map import LinearMap
from lora_variants.interface.config import MOST, AdapterConfig

INITIAL_OVER_TARGET = 1.5  # section 4: the initial budget is 1.5 times the final one


class AdaLoRAConfig(AdapterConfig):
    """The knobs of AdaLoRA; `rank` is the average rank that is left at the end."""

    learning_rate_factor: ClassVar[float | None] = 1.0  # at rank 4 it is 0.5: LoRA's best rate doubles there
    # The scale s of half of the authors' scripts for GLUE, alpha 32 over an initial rank of 2 (NLU/scripts: MRPC, QNLI,
    # RTE, STS-B); the others have 16 / 3 (MNLI), 32 / 3 (CoLA) and 8 (QQP, SST-2). P and Q start far smaller than
    # LoRA's A: at LoRA's scale of 2 a ΔW moves little.
    DEFAULT_ALPHA: ClassVar[dict[str, float]] = {"alpha_per_rank": 16.0}

    name: Literal["adalora"] = Field("adalora", description="which variant")
    initial_rank: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="rank of each layer at the start; default ceil(1.5 rank), at most min(d_out, d_in)",
    )
    initial_fraction: float = Field(0.1, ge=0, lt=1, description="t_i / T: share of steps before pruning starts")
    final_fraction: float = Field(0.4, ge=0, lt=1, description="t_f / T: share of steps with the final ranks")
    prune_every: int = Field(5, ge=1, le=MOST, description="ΔT: steps between two prunings")
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
