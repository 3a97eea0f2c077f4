"""Which base model a task with a built-in one adapts: the one that is shipped, or one that is pretrained here."""

from typing import ClassVar, Literal

from pydantic import Field, ValidationInfo, field_validator

from experiments.tasks.task import TaskConfig
from lora_variants.interface.config import Seed


class BuiltInBaseConfig(TaskConfig):
    """The knobs of such a task. What is shipped was pretrained with the defaults of steps and seed."""

    places: ClassVar[tuple[str, ...]] = ("pretraining", "pretraining_seed")  # the fingerprint of W0 tells

    pretraining_steps: int
    pretraining_seed: Seed = Field(0, description="seed of the base model's initialisation and of its batches")
    pretraining: Literal["shipped", "rebuild"] | None = Field(
        None,
        validate_default=True,
        description="shipped: the base model that comes with the package; rebuild: pretrain it here, once, then it is "
        "cached; null: rebuild where steps or seed of the pretraining are not those of the shipped one",
    )

    @field_validator("pretraining")
    @classmethod
    def _settle(cls, stated: str | None, info: ValidationInfo) -> str:
        shipped = {knob: cls.model_fields[knob].default for knob in ("pretraining_steps", "pretraining_seed")}
        other = [knob for knob, value in shipped.items() if info.data.get(knob, value) != value]
        if stated == "shipped" and other:
            differ = " and ".join(f"{knob} {shipped[knob]}, not {info.data[knob]}" for knob in other)
            raise ValueError(
                f"the shipped base model was made with {differ}; say rebuild, or leave {' and '.join(other)} out"
            )
        return stated or ("rebuild" if other else "shipped")
