"""The `planted` task: matrices whose right update D is known, each with a true rank and spectrum of its own.

Linear: y = (W0 + D) x with x ~ N(0, I), so the expected loss of ΔW is ‖ΔW - D‖_F² and no rank-r update
does better than the tail of D's squared singular values (Eckart and Young 1936). With a hidden layer,
y = R relu((W0 + D) x), there is no such closed form and none is claimed.
"""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from experiments.models.weights import Report, silent
from experiments.tasks.task import Batch, Split, Task, TaskConfig
from lora_variants.frozen_model.linear_map import matches, slice_rows
from lora_variants.interface.config import Seed
from lora_variants.interface.layer import Factors
from lora_variants.interface.rng import stream
from lora_variants.interface.variant import Variant

MOST_OUTPUTS = 2**13  # of a matrix: its readout is an orthogonal matrix of this size
MOST_NUMBERS = 2**28  # of all matrices and readouts: 1 GiB
FURTHEST = 100.0  # times as far from y as who predicts zeros: a model beyond has diverged


class PlantedMatrix(BaseModel):
    """One matrix and its planted update D with singular values size * decay^i, i = 1 .. rank."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    rank: int = Field(8, ge=0, le=MOST_OUTPUTS, description="true rank of D")
    d_out: int = Field(64, ge=1, le=MOST_OUTPUTS, description="rows of the matrix")
    d_in: int = Field(64, ge=1, le=2**20, description="columns of the matrix")
    size: float = Field(1.0, gt=0, description="factor of all singular values of D")
    decay: float = Field(2**-0.5, gt=0, le=1, description="ratio of neighbouring singular values of D")

    @model_validator(mode="after")
    def _fits(self) -> "PlantedMatrix":
        if self.rank > min(self.d_out, self.d_in):
            raise ValueError(f"rank {self.rank} is above min(d_out, d_in) of a {self.d_out} x {self.d_in} matrix")
        return self

    def singular_values(self) -> Tensor:
        return self.size * self.decay ** torch.arange(1, self.rank + 1, dtype=torch.float64)


class PlantedConfig(TaskConfig):
    name: Literal["planted"] = "planted"
    matrices: list[PlantedMatrix] = Field([PlantedMatrix()], min_length=1, description="the matrices")  # type: ignore[call-arg]
    hidden: bool = Field(False, description="a relu and a frozen random readout behind each matrix")
    noise: float = Field(0.0, ge=0, description="standard deviation of the noise on every training target")
    evaluation_rows: int = Field(8192, ge=1, le=2**22, description="rows of the validation and of the test split")
    problem_seed: Seed = Field(0, description="seed of W0, of D and of the held-out rows; not the run's seed")

    @model_validator(mode="after")
    def _in_memory(self) -> "PlantedConfig":
        numbers = sum(m.d_out * (m.d_in + m.d_out) for m in self.matrices)
        if numbers > MOST_NUMBERS:
            raise ValueError(
                f"matrices: they have {numbers:,} numbers with their readouts, at most {MOST_NUMBERS:,} are made; take "
                "fewer or smaller ones"
            )
        return self


class PlantedModel(nn.Module):
    """Each matrix maps its own part of the input; x (rows, sum of d_in) -> (rows, sum of d_out)."""

    def __init__(self, config: PlantedConfig) -> None:
        super().__init__()
        self.matrices = nn.ModuleList(nn.Linear(m.d_in, m.d_out, bias=False) for m in config.matrices)
        self.widths = [m.d_in for m in config.matrices]
        self.hidden = config.hidden
        for i, m in enumerate(config.matrices):
            generator = stream(config.problem_seed, "weights", i)
            weight = torch.randn(m.d_out, m.d_in, generator=generator, dtype=torch.float64) * m.d_in**-0.5
            linear_weight(self, i).copy_(weight)
            readout = torch.linalg.qr(torch.randn(m.d_out, m.d_out, generator=generator, dtype=torch.float64)).Q
            self.register_buffer(f"readout{i}", readout.float())

    def forward(self, x: Tensor) -> Tensor:
        parts = [matrix(part) for matrix, part in zip(self.matrices, x.split(self.widths, dim=-1), strict=True)]
        if self.hidden:
            parts = [F.relu(part) @ getattr(self, f"readout{i}").mT for i, part in enumerate(parts)]
        return torch.cat(parts, dim=-1)


def linear_weight(model: PlantedModel, i: int) -> Tensor:
    """The weight of matrix i, to write to."""
    return model.get_parameter(f"matrices.{i}.weight").detach()


class Planted(Task):
    """Batches are {"x": (rows, d_in), "y": (rows, d_out)}, drawn afresh at every step."""

    score_name = "squared_error"
    higher_is_better: ClassVar[bool] = False
    false_labels: ClassVar[tuple[str, ...]] = ("shuffled",)
    config_class: ClassVar[type[TaskConfig]] = PlantedConfig
    config: PlantedConfig

    @cached_property
    def updates(self) -> list[Tensor]:
        """D of every matrix, float64 (d_out, d_in)."""
        updates = []
        for i, m in enumerate(self.config.matrices):
            generator = stream(self.config.problem_seed, "update", i)
            left, right = (
                torch.linalg.qr(torch.randn(d, m.rank, generator=generator, dtype=torch.float64)).Q
                for d in (m.d_out, m.d_in)
            )
            updates.append((left * m.singular_values()) @ right.mT)
        return updates

    @cached_property
    def teacher(self) -> PlantedModel:
        teacher = PlantedModel(self.config).requires_grad_(False)
        for i, update in enumerate(self.updates):
            linear_weight(teacher, i).add_(update)
        return teacher

    def data_sha256(self) -> dict[str, str]:
        """Everything follows from the task's knobs."""
        knobs = self.config.model_dump_json()
        splits = ("train", "validation", "test")
        return {split: hashlib.sha256(f"{split} {knobs}".encode()).hexdigest() for split in splits}

    def describe_data(self) -> dict[str, dict[str, str]]:
        width = str(sum(m.d_in for m in self.config.matrices))
        rows = dict.fromkeys(("validation", "test"), f"{self.config.evaluation_rows:,}")
        return {
            split: {"rows": said, "numbers in a row": width}
            for split, said in {"train": "drawn afresh at every step", **rows}.items()
        }

    def architecture(self) -> nn.Module:
        return PlantedModel(self.config)

    def base_model(self, report: Report = silent) -> nn.Module:
        return self.architecture()

    def training_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        generator = stream(seed, "data")
        while True:
            batch = self._batch(batch_size, generator)
            noise = torch.randn(batch["y"].shape, generator=generator)
            yield batch | {"y": batch["y"] + self.config.noise * noise}

    def shuffled_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        """Rows are drawn afresh at every step, so each has the target of another row of its step."""
        generator = stream(seed, "labels")
        for batch in self.training_batches(seed, batch_size):
            yield batch | {"y": batch["y"][torch.randperm(batch_size, generator=generator)]}

    def evaluation_batches(self, split: Split) -> Iterator[Batch]:
        yield self._batch(self.config.evaluation_rows, stream(self.config.problem_seed, split))

    def _batch(self, rows: int, generator: torch.Generator) -> Batch:
        x = torch.randn(rows, sum(m.d_in for m in self.config.matrices), generator=generator)
        return {"x": x, "y": self.teacher(x)}

    def row_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return (model(batch["x"]).float() - batch["y"]).square().sum(dim=1)

    def row_counts(self, batch: Batch) -> Tensor:
        return torch.ones(len(batch["x"]), device=batch["x"].device)

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        return {"loss": means["loss"], "squared_error": means["loss"]}

    @property
    def score_range(self) -> tuple[float, float]:
        """Who predicts zeros errs by y, whose expected square is at most ‖W0 + D‖²."""
        zeros = sum(float(linear_weight(self.teacher, i).double().square().sum()) for i in range(len(self.updates)))
        return 0.0, FURTHEST**2 * zeros

    def diagnostics(self, variant: Variant, trial: int) -> dict[str, float]:
        """‖ΔW - D‖² over all matrices; without a hidden layer also the least that the ranks allow, and ‖D‖²."""
        found = variant.deltas(trial)
        ranks = variant.ranks_alive()
        distance = optimum = 0.0
        whole = set(ranks) <= {f"matrices.{i}" for i in range(len(self.updates))}
        for i, (update, planted) in enumerate(zip(self.updates, self.config.matrices, strict=True)):
            dense = torch.zeros_like(update)
            for name, learned in found.items():
                if matches(f"matrices.{i}", name):
                    rows = slice(*(slice_rows(name, planted.d_out) or (0, planted.d_out)))
                    product = learned.product() if isinstance(learned, Factors) else learned
                    dense[rows] += product.detach().cpu().double()
            distance += float((dense - update).square().sum())
            rank = ranks.get(f"matrices.{i}", [0] * (trial + 1))[trial]
            optimum += float(planted.singular_values()[rank:].square().sum())
        size = float(sum(update.square().sum() for update in self.updates))
        known = {"update_distance": distance, "update_size": size}
        closed_form = variant.layers and whole and not self.config.hidden
        return known | {"eckart_young_optimum": optimum} if closed_form else known
