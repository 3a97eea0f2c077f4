"""The configuration of a run: one tree, described where its knobs are defined."""

import hashlib
import json
import os
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, field_validator, model_validator

from experiments.config.seed import RunSeed
from experiments.models.model_config import ModelConfig
from experiments.tasks.task import TaskConfig
from lora_variants.interface.config import MOST, Config, Pattern

Rate = Annotated[float, Field(gt=0)]
Labels = Literal[True, "shuffled", "base_model"]


class Section(BaseModel):
    """A part of the tree: strict types, frozen, unknown keys refused."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)


class TrainingConfig(Section):
    """How a run trains; the same for every variant but for the learning rate."""

    steps: int = Field(1000, ge=0, le=MOST, description="optimizer steps")
    batch_size: int = Field(
        4, ge=1, le=2**20, description="examples in a step's batch; multiples of 8 in all shapes keep packs bit-exact"
    )
    learning_rate: Rate | dict[str, Rate] = Field(
        5e-3,
        description="peak learning rate: a number, or a map from variant to number; a variant that the map does not "
        "name has LoRA's times the `learning_rate_factor` of its Config",
    )
    head_learning_rate: Rate | None = Field(
        None, description="peak learning rate of the task's head under every variant; null: the variant's own"
    )
    weight_decay: float = Field(0.0, ge=0, description="decoupled weight decay of matrices (AdamW)")
    lr_schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="learning rate after the warm-up"
    )
    warmup_ratio: float = Field(0.05, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    max_grad_norm: float | None = Field(1.0, gt=0, description="largest norm of a trial's gradient; null for no limit")
    gradient_accumulation_steps: int = Field(
        1, ge=1, le=2**20, description="parts that a step's batch goes through in; must divide batch_size"
    )
    gradient_checkpointing: bool = Field(
        False, description="compute activations again in backward instead of keeping them"
    )
    precision: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="bfloat16, float16: autocast, weights in float32; float16 scales each trial's loss"
    )
    labels: Labels = Field(
        True,
        description="true: the data's own; shuffled: those of other training rows, permuted by the seed of the data; "
        "base_model: drawn from the frozen base's predictions (language models). False labels make a null",
    )
    checkpoint_every: int = Field(
        100, ge=0, le=MOST, description="steps between checkpoints; 0: none. Changes no result"
    )
    evaluate_every: int = Field(
        250, ge=0, le=MOST, description="steps between evaluations on validation; 0: at the end only"
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="CPU threads of torch; null: torch's own choice. Small models are fastest with 1",
    )
    device: Literal["auto", "cpu", "cuda", "mps"] = Field("auto", description="auto: CUDA, else MPS, else CPU")

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"gradient_accumulation_steps {self.gradient_accumulation_steps} does not divide "
                f"batch_size {self.batch_size}"
            )
        return self


class StartConfig(Section):
    """What a run starts from: an adapter that was learned before, on the same base model."""

    path: str = Field(
        min_length=1,
        description="folder (or file of weights) of a finished run or of a PEFT adapter (LoRA, AdaLoRA), or a loralib "
        "checkpoint; "
        "relative to the current folder, stored as an absolute path",
    )
    alpha: float | None = Field(
        None, gt=0, description="alpha of a loralib checkpoint, which holds none; of anything else null"
    )

    other_base: bool = Field(
        False, description="start also from what was learned on another base model, known by the sha256 of its weights"
    )

    @field_validator("path")
    @classmethod
    def _whole(cls, path: str) -> str:
        try:
            return os.path.realpath(Path(path).expanduser())  # of a loop of links it makes no error; reading it does
        except RuntimeError:
            raise ValueError(f"there is no home directory for {path!r}") from None


class WandbConfig(Section):
    """Weights & Biases; not part of what a run is."""

    mode: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: WANDB_MODE if set, else online where a key is configured, else offline"
    )
    project: str = Field("lora-rank-studies", min_length=1, description="W&B project")


class RunConfig(Section):
    """Everything that a run depends on."""

    study: str = Field(
        "single", pattern=r"^\w[\w.-]*$", max_length=200, description="folder of the run directory, and W&B group"
    )
    task: SerializeAsAny[TaskConfig]
    model: ModelConfig | None = Field(None, description="the base model, of tasks that bring none of their own")
    targets: list[Pattern] = Field(min_length=1, description="patterns of the layers to adapt")
    variant: SerializeAsAny[Config]
    seed: RunSeed = Field(
        0,
        description="a number, or a map {init, data, dropout} with the seed of each; of a map one that is missing is 0",
    )
    training: TrainingConfig = TrainingConfig()  # type: ignore[call-arg]
    start: StartConfig | None = Field(None, description="what ΔW starts from; null: from zero")
    wandb: WandbConfig = WandbConfig()  # type: ignore[call-arg]

    @model_validator(mode="after")
    def _one_narrow_type(self) -> Self:
        dtype, precision = self.model.dtype if self.model else "float32", self.training.precision
        if "float32" not in (dtype, precision) and dtype != precision:
            raise ValueError(
                f"model.dtype={dtype} and training.precision={precision} are two 16-bit types, which do not compute "
                f"together; choose one of them for both, or float32 for one"
            )
        return self

    @property
    def learning_rate(self) -> float:
        assert isinstance(self.training.learning_rate, float)  # resolved by resolve()
        return self.training.learning_rate

    def tree(self) -> dict[str, Any]:
        """Plain values; feeding them back gives the same run."""
        return self.model_dump(mode="json")

    def hashed_config(self) -> dict[str, Any]:
        """The tree without what changes no result: W&B, how often a checkpoint is written, where things lie.

        What start, data and base model hold changes it: content hashes for `config_hash`.
        """
        tree = self.tree()
        for place in self.task.places:
            *parts, last = place.split(".")
            section = reduce(lambda found, part: found.get(part) or {}, parts, tree["task"])
            section.pop(last, None)
        if tree["model"] is None:
            del tree["model"]
        else:
            tree["model"] = {knob: tree["model"][knob] for knob in ("dtype", "dropout", "pooling")}
        del tree["wandb"], tree["training"]["checkpoint_every"], tree["start"]
        if self.training.labels is True:
            del tree["training"]["labels"]
        return tree

    def config_hash(self, **content: str) -> str:
        """12 hex digits of all that the result depends on: the configuration and content hashes."""
        tree = self.hashed_config() | content
        return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:12]
