"""Which pretrained model a run adapts, and how it is read."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator


class ModelConfig(BaseModel):
    """A model of the Hugging Face Hub, or a folder with the files of one."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    source: Literal["huggingface"] = Field("huggingface", description="where the model comes from")
    name: str = Field(
        min_length=1, description="name on the Hugging Face Hub, or a folder; a folder is stored as an absolute path"
    )
    revision: str | None = Field(None, description="branch, tag or commit on the Hub; null: its main branch")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="type of the frozen weights; what is trained is in float32"
    )
    dropout: float = Field(0.0, ge=0, lt=1, description="the base's own dropout, in every place it has; a pack needs 0")
    pooling: Literal["auto", "mean"] = Field(
        "auto",
        description="classification: the architecture's own head, or the mean of the last hidden states and one linear",
    )
    pickled: bool = Field(False, description="also read pytorch_model.bin where there are no safetensors; tensors only")
    remote_code: bool = Field(False, description="run the Python code that comes with the model")
    weights: Literal["pretrained", "random"] = Field(
        "pretrained", description="random: the architecture with weights of no value, for trying things out"
    )

    @field_validator("name")
    @classmethod
    def _whole(cls, name: str) -> str:
        try:
            path = Path(name).expanduser()
            return str(path.resolve()) if path.is_dir() else name
        except (OSError, RuntimeError) as error:  # too long a path; nobody's home
            raise ValueError(f"{name[:80]!r} cannot be looked up: {getattr(error, 'strerror', error)}") from None

    @property
    def folder(self) -> Path | None:
        """The folder that the name is; None for a name on the Hub."""
        path = Path(self.name)
        return path if path.is_dir() else None


class ModelError(ValueError):
    """A base model that cannot be had as it was asked for: the rule, the value, the way out."""
