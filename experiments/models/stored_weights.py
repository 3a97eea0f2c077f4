"""What a model's files of weights hold: names, types and sizes of tensors, and whether all is finite."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from experiments.models.lfs_pointer import WAY_OUT, is_lfs_pointer
from experiments.models.model_config import ModelConfig, ModelError

FLOATS = ("F16", "BF16", "F32", "F64")


@dataclass(frozen=True)
class Stored:
    """A tensor of a safetensors file, by its header."""

    file: Path
    dtype: str
    size: int


@dataclass(frozen=True)
class StoredWeights:
    """The tensors of a checkpoint; none of a pickled one, which has no header. `prefix` names the model's body."""

    config: ModelConfig
    files: Sequence[Path]
    tensors: Mapping[str, Stored]
    prefix: str

    def key_of(self, name: str) -> str | None:
        """The checkpoint's name of a parameter of the model: with the name of the body before it, or without."""
        names = (name, name.removeprefix(f"{self.prefix}."), f"{self.prefix}.{name}")
        return next((key for key in names if key in self.tensors), None)

    def refuse_unfit(self, model: nn.Module, heads: Sequence[str]) -> None:
        """Raises: ModelError where the files cannot be the weights of this model: of other types, or far too few."""
        for name, _ in model.named_parameters():
            key = self.key_of(name)
            if key is not None and (there := self.tensors[key]).dtype not in FLOATS:
                raise ModelError(
                    f"model.name: {key} in {there.file.name} of {self.config.name!r} is of type {there.dtype}, weights "
                    f"are {', '.join(FLOATS)}; name the model that it was made from"
                )
        described = sum(p.numel() for name, p in model.named_parameters() if not name.startswith(tuple(heads)))
        held = sum(tensor.size for tensor in self.tensors.values())
        if self.tensors and described > 2 * held:  # of fewer the missing ones are named once they are loaded
            raise ModelError(
                f"model.name: config.json of {self.config.name!r} describes {described:,} parameters, its weights are "
                f"{held:,}: they do not belong together; download both again"
            )

    def refuse_dropped(self, model: nn.Module, unread: Iterable[str], heads: Sequence[str]) -> None:
        """Raises: ModelError for a tensor that belongs to a layer of the model, which has no place for it."""
        layers = {name: part for name, part in model.named_modules() if any(True for _ in part.parameters(False))}
        for key in sorted(unread):
            owner, _, tensor = key.rpartition(".")
            names = (owner, owner.removeprefix(f"{self.prefix}."), f"{self.prefix}.{owner}")
            if any(name in layers and not f"{name}.".startswith(tuple(heads)) for name in names):
                raise ModelError(
                    f"model.name: {key} of the weights of {self.config.name!r} would be left out: by its config.json "
                    f"the layer has no {tensor}; name the folder whose config.json belongs to these weights"
                )

    def refuse_not_finite(self, model: nn.Module) -> None:
        """Raises: ModelError that names the first tensor of W0 that is not finite, and its file."""
        name = next((name for name, p in model.named_parameters() if not torch.isfinite(p).all()), None)
        if name is None:
            return
        key = self.key_of(name)
        where = ", ".join(path.name for path in self.files[:3]) or "the random weights"
        if key is not None:
            there = self.tensors[key].file
            where = there.name
            with safe_open(there, framework="pt") as file:
                if torch.isfinite(file.get_tensor(key)).all():
                    raise ModelError(
                        f"model.dtype: {self.config.dtype} is too narrow for {key} in {where} of {self.config.name!r}, "
                        f"which is not finite in it; take bfloat16 or float32"
                    )
        raise ModelError(
            f"model.name: {key or name} in {where} of {self.config.name!r} is not finite: the base's own weights are "
            f"broken; download it again, or take another model"
        )


def read_headers(config: ModelConfig, files: Sequence[Path], prefix: str) -> StoredWeights:
    """What the files hold.

    Raises: ModelError for a pointer of Git LFS, and for a safetensors file that is not as long as its header says.
    """
    tensors: dict[str, Stored] = {}
    for path in files:
        what = f"model.name: {path.name} of {config.name!r}"
        try:
            if is_lfs_pointer(path):
                raise ModelError(f"{what} {WAY_OUT}")
            if path.suffix == ".safetensors":
                tensors |= _header(path)
        except SafetensorError as error:
            raise ModelError(f"{what} is torn or no safetensors file ({error}); download it again") from None
        except OSError as error:
            raise ModelError(f"{what} cannot be read: {error.strerror or error}") from None
    return StoredWeights(config, files, tensors, prefix)


def _header(path: Path) -> dict[str, Stored]:
    with safe_open(path, framework="pt") as file:
        slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        return {key: Stored(path, part.get_dtype(), prod(part.get_shape())) for key, part in slices.items()}
