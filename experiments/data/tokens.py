"""Texts as tokens: one flat tensor with the ends of its rows, cached by the content of text and tokenizer."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int, UInt8
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from experiments.models.weights import fingerprint
from experiments.user_cache import cache_folder, is_read_only

FORMAT = "3"  # of what is cached; another number makes all of it anew


@dataclass(frozen=True)
class Tokens:
    """Rows of token numbers, each from its start to before its end in `flat`; rows may share tokens."""

    flat: Int[Tensor, " tokens"]
    starts: Int[Tensor, " rows"]
    ends: Int[Tensor, " rows"]
    marked: Bool[Tensor, " tokens"]  # what a language model is scored on
    cut: Int[Tensor, " rows"]  # how many tokens more a row would have
    segments: UInt8[Tensor, " tokens"] | None = None  # 0 in the first text of a pair, 1 in the second

    @property
    def lengths(self) -> Int[Tensor, " rows"]:
        return self.ends - self.starts

    @property
    def truncated(self) -> Bool[Tensor, " rows"]:
        return self.cut > 0

    @property
    def scored(self) -> Int[Tensor, " rows"]:
        """How many tokens of each row a language model is scored on: those marked, but never the first."""
        before = torch.cat([torch.zeros(1, dtype=torch.int64), self.marked.cumsum(0)])
        return before[self.ends] - before[torch.minimum(self.starts + 1, self.ends)]

    def padded(self, rows: Int[Tensor, " chosen"], length: int, pad: int) -> dict[str, Tensor]:
        """'input_ids' and 'attention_mask' (chosen, length), and 'marked'; rows are padded on the right.

        Pairs also have 'token_type_ids'.
        """
        place = torch.arange(length)
        inside = place < self.lengths[rows, None]
        at = (self.starts[rows, None] + place).clamp(max=len(self.flat) - 1)
        ids = torch.where(inside, self.flat[at].long(), pad)
        found = {"input_ids": ids, "attention_mask": inside.long(), "marked": inside & self.marked[at]}
        return found if self.segments is None else found | {"token_type_ids": self.segments[at].long() * inside}


def joined(
    rows: Sequence[Sequence[int]], cut: Sequence[int], *,
    marks: Sequence[Sequence[bool]] | None = None, segments: Sequence[Sequence[int]] | None = None,
) -> Tokens:  # fmt: skip
    """Rows of token numbers as Tokens; without marks every token is marked."""
    ends = torch.tensor([len(row) for row in rows], dtype=torch.int64).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    flat = torch.tensor([token for row in rows for token in row], dtype=torch.int32)
    marked = torch.ones(len(flat), dtype=torch.bool)
    if marks is not None:
        marked = torch.tensor([mark for row in marks for mark in row], dtype=torch.bool)
    kinds = None if segments is None else torch.tensor([kind for row in segments for kind in row], dtype=torch.uint8)
    return Tokens(flat, starts, ends, marked, torch.tensor(cut, dtype=torch.int64), kinds)


def tokenizer_sha256(tokenizer: Any) -> str:
    """What a fast tokenizer does, by content; its padding and truncation apart, which every call sets anew."""
    tree = json.loads(tokenizer.backend_tokenizer.to_str())
    tree |= {"padding": None, "truncation": None}
    special = {key: str(value) for key, value in tokenizer.special_tokens_map.items()}
    made = list(tokenizer.model_input_names)
    return hashlib.sha256(json.dumps([tree, special, made], sort_keys=True).encode()).hexdigest()


def cached_tokens(build: Callable[[], Tokens], **depends_on: str | int | None) -> Tokens:
    """The tokens from the user's cache, or built and stored there; `depends_on` is all that they depend on.

    A file that is torn or changed is built again; where the cache cannot or must not be written, nothing is lost but
    time.
    """
    key = hashlib.sha256(json.dumps([FORMAT, depends_on], sort_keys=True).encode()).hexdigest()[:24]
    path = cache_folder() / "tokens" / f"{key}.safetensors"
    found = _load(path)
    if found is None:
        found = build()
        if not is_read_only():
            _store(found, path)
    return found


def _tensors(tokens: Tokens) -> dict[str, Tensor]:
    found = {field.name: getattr(tokens, field.name) for field in fields(tokens)}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def _load(path: Path) -> Tokens | None:
    try:
        with safe_open(path, framework="pt") as file:
            stored: Mapping[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            expected = (file.metadata() or {}).get("fingerprint")
    except (SafetensorError, OSError):
        return None
    return Tokens(**stored) if fingerprint(stored) == expected else None


def _store(tokens: Tokens, path: Path) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(_tensors(tokens), partial, metadata={"fingerprint": fingerprint(_tensors(tokens))})
        partial.replace(path)
    except (OSError, SafetensorError):
        partial.unlink(missing_ok=True)
