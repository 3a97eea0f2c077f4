"""Two stored models, a matrix at a time: what somebody's full fine-tuning changed."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float64
from safetensors import SafetensorError, safe_open
from torch import Tensor

from experiments.record.adapter_formats import RunStoreError
from experiments.record.tensor_files import has_file, kind_of
from lora_variants.frozen_model.layer_names import by_layer
from lora_variants.frozen_model.linear_map import matches

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}  # those that are read
BUFFERS = re.compile("bool|u?int(16|32|64)")  # types of positions and masks: weights have them where others have floats


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file, by its header."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def readable(self) -> bool:
        """Whether its numbers are those of the model: weights in int8 or float8 are less without their scales."""
        return self.dtype in DTYPES.values()

    @property
    def is_matrix(self) -> bool:
        return len(self.shape) == 2 and not BUFFERS.fullmatch(self.dtype)

    def read(self) -> Float64[Tensor, "d_out d_in"]:
        """The matrix. Raises RunStoreError where it is not finite."""
        with safe_open(self.file, framework="pt") as opened:
            matrix = opened.get_tensor(self.key).double()
        if not torch.isfinite(matrix).all():
            broken = int((~torch.isfinite(matrix)).sum())
            raise RunStoreError(
                f"a model's weights are finite; {self.key} in {self.file} has {broken} entries that are not: "
                "the training diverged, or the file is broken; give another checkpoint"
            )
        return matrix


class Change(NamedTuple):
    """A matrix before and after, and the types that it is stored in."""

    name: str
    before: Float64[Tensor, "d_out d_in"]
    after: Float64[Tensor, "d_out d_in"]
    dtype_before: str
    dtype_after: str


@dataclass(frozen=True)
class ModelPair:
    """The matrices that two models share, by the later model's names without '.weight', in order of layers.

    `unpaired` are the matrices that one of them has alone, `unread` those that either stores in a type which is not
    read, with that type.
    """

    matrices: Mapping[str, tuple[StoredTensor, StoredTensor]]
    unpaired: tuple[str, ...]
    unread: Mapping[str, str]

    def changes(self) -> Iterator[Change]:
        """Every matrix that is another one after, read one at a time. Raises RunStoreError where one is not finite."""
        for name, (before, after) in self.matrices.items():
            first, last = before.read(), after.read()
            if not torch.equal(first, last):
                yield Change(name, first, last, before.dtype, after.dtype)


def pair_models(before: Path, after: Path, targets: Sequence[str]) -> ModelPair:
    """The matrices of two models that belong together; those that a pattern of `targets` names, if there are any.

    Names of one model may have a prefix before those of the other, as a classifier has before those of its encoder.
    Raises RunStoreError, whose text is for the user, where the models cannot be compared.
    """
    first, last = _tensors(before), _tensors(after)
    prefix_first, prefix_last = _prefixes(first, last)
    first = {f"{prefix_first}{name}": tensor for name, tensor in first.items()}
    last = {f"{prefix_last}{name}": tensor for name, tensor in last.items()}
    names = {name for model in (first, last) for name, tensor in model.items() if tensor.is_matrix}
    names = _targeted(names, targets)
    shared = sorted((name for name in names if name in first and name in last), key=by_layer)
    types = {name: [model[name].dtype for model in (first, last) if not model[name].readable] for name in shared}
    unread = {name: " and ".join(dict.fromkeys(found)) for name, found in types.items() if found}
    both = [name for name in shared if name not in unread]
    if unread and not both:
        raise RunStoreError(
            f"weights are read in {', '.join(DTYPES.values())}; {before} and {after} share none by name and such a "
            f"type: {unread_line(unread)}"
        )
    if not both:
        raise RunStoreError(
            f"two models are compared by the matrices that both have; {before} and {after} share none by name: "
            f"they have {_some(first)} and {_some(last)}; give the base that was fine-tuned, and what became of it"
        )
    for name in both:
        if (old := first[name].shape) != (new := last[name].shape):
            raise RunStoreError(
                f"a matrix has one shape before and after; {name} is {_shape(old)} in {before} and {_shape(new)} in "
                f"{after}: leave it out with patterns of --targets that name the others"
            )
    return ModelPair({name: (first[name], last[name]) for name in both}, tuple(sorted(names - set(shared))), unread)


def unread_line(unread: Mapping[str, str]) -> str:
    """'2 stored as int8, which is not read (a, b)', for each type, and the way out."""
    by_type: dict[str, list[str]] = {}
    for name, dtype in unread.items():
        by_type.setdefault(dtype, []).append(name)
    told = [f"{len(names)} stored as {dtype}, which is not read ({_some(names)})" for dtype, names in by_type.items()]
    return f"{'; '.join(told)}: save that model dequantised, in float32"


def _targeted(names: set[str], targets: Sequence[str]) -> set[str]:
    for target in targets:
        if not any(matches(target, name) for name in names):
            raise RunStoreError(f"target {target!r} matches no matrix of the models; they have: {_some(names, 8)}")
    return {name for name in names if any(matches(target, name) for target in targets)} if targets else names


def _prefixes(first: Iterable[str], last: Iterable[str]) -> tuple[str, str]:
    """What stands before the names of either model to make most names of both the same."""
    before_last, before_first = _prefix(last, set(first)), _prefix(first, set(last))
    return (before_last[0], "") if before_last[1] >= before_first[1] else ("", before_first[0])


def _prefix(longer: Iterable[str], shorter: set[str]) -> tuple[str, int]:
    starts = ((name, [0, *(at + 1 for at, letter in enumerate(name) if letter == ".")]) for name in longer)
    found = Counter(name[:start] for name, cuts in starts for start in cuts if name[start:] in shorter)
    return max(found.items(), key=lambda item: (item[1], not item[0]), default=("", 0))


def _tensors(path: Path) -> dict[str, StoredTensor]:
    """Every tensor of a model, by its name without '.weight'."""
    found: dict[str, StoredTensor] = {}
    for file in _files(path):
        try:
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 - not a mapping
                    part = opened.get_slice(key)
                    shape, dtype = tuple(part.get_shape()), _dtype(part.get_dtype())
                    if 0 not in shape:
                        found[key.removesuffix(".weight")] = StoredTensor(file, key, shape, dtype)
        except (SafetensorError, OSError, ValueError) as error:
            raise RunStoreError(
                f"a safetensors file must be whole; {file} cannot be read ({str(error)[:200]}): copy it again"
            ) from error
    return found


def _dtype(stored: str) -> str:
    """The type as PyTorch calls it: F8_E4M3 is float8_e4m3."""
    long = {"I": "int", "U": "uint", "F": "float"}.get(stored[0])
    return DTYPES.get(stored, stored.lower() if long is None else long + stored[1:].lower())


def _files(path: Path) -> list[Path]:
    """The files of a model's weights, each of them there."""
    if kind_of(path) is None:
        raise RunStoreError(f"a model is a folder or a .safetensors file; {path} does not exist: check the path")
    if path.is_file() and path.suffix == ".safetensors":
        return [path] if has_file(path) else []
    if path.is_dir() and has_file(path / WEIGHTS):
        return [path / WEIGHTS]
    if not (path.is_dir() and has_file(path / INDEX)):
        raise RunStoreError(
            f"a model's weights are in {WEIGHTS} or in the files that {INDEX} names; {path} is or holds neither: save "
            "the model with save_pretrained, or give a .safetensors file (an adapter is read without --before)"
        )
    try:
        named = sorted(set(json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise RunStoreError(f"{path / INDEX} has no weight_map from tensors to files: copy it again") from error
    for name in named:
        if not isinstance(name, str) or Path(name).name != name or not has_file(path / name):
            raise RunStoreError(f"{path / INDEX} names {str(name)[:80]!r}, which is no file of {path}: copy it too")
    return [path / name for name in named]


def _some(names: Iterable[str], most: int = 3) -> str:
    listed = sorted(names, key=by_layer)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
