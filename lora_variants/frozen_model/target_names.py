"""Targets that need no knowledge of the model: `attention`, `attention-qv`, `mlp` and `all-linear`.

They mean the same matrices in every architecture of the table: W_q, W_k, W_v and W_o of every attention, the
matrices of every feed-forward layer, or both. A fused projection counts as its parts, so that each has a rank of
its own. An architecture is known by the names of its layers; where a model has linear layers that the table cannot
place, nothing is guessed.
"""

import re
from collections.abc import Collection, Iterable
from typing import NamedTuple

from lora_variants.frozen_model.linear_map import names_of, split_slice


class Architecture(NamedTuple):
    """The names of a block's layers; '#' stands for the block's number."""

    block: str
    query: str
    key: str
    value: str
    output: str
    mlp: tuple[str, ...]

    def parts(self, target: str) -> tuple[str, ...]:
        """The layers that a target stands for, from the block's number on."""
        attention = (self.query, self.key, self.value, self.output)
        parts = {"attention": attention, "attention-qv": (self.query, self.value), "mlp": self.mlp}
        return tuple(f"{self.block}.{part}" for part in parts.get(target, attention + self.mlp))


TARGET_NAMES = ("attention", "attention-qv", "mlp", "all-linear")

ARCHITECTURES = {
    "this project's transformers": Architecture("layers.#", "query", "key", "value", "output", ("up", "down")),
    "BERT, RoBERTa, ELECTRA": Architecture(
        "layer.#",
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        ("intermediate.dense", "output.dense"),
    ),
    "DeBERTa-v2": Architecture(
        "layer.#",
        "attention.self.query_proj",
        "attention.self.key_proj",
        "attention.self.value_proj",
        "attention.output.dense",
        ("intermediate.dense", "output.dense"),
    ),
    "DistilBERT": Architecture(
        "layer.#",
        "attention.q_lin",
        "attention.k_lin",
        "attention.v_lin",
        "attention.out_lin",
        ("ffn.lin1", "ffn.lin2"),
    ),
    "GPT-2": Architecture(
        "h.#",
        "attn.c_attn[1/3]",
        "attn.c_attn[2/3]",
        "attn.c_attn[3/3]",
        "attn.c_proj",
        ("mlp.c_fc", "mlp.c_proj"),
    ),
    "Llama, Mistral, Qwen2, Gemma": Architecture(
        "layers.#",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    ),
    "ViT": Architecture(
        "layers.#",
        "attention.q_proj",
        "attention.k_proj",
        "attention.v_proj",
        "attention.o_proj",
        ("mlp.fc1", "mlp.fc2"),
    ),
    "torch's encoder": Architecture(
        "layers.#",
        "self_attn.query",
        "self_attn.key",
        "self_attn.value",
        "self_attn.out_proj",
        ("linear1", "linear2"),
    ),
}

# Outside the blocks: embeddings, poolers, heads, and what turns positions into keys and queries
_APART = re.compile(
    r"(^|\.)(\w*embed\w*|patches|unembedding|pooler|\w*head|(pre_)?classifier|score|cls|pos_(key|query)_proj)(\.|$)"
)


def spelled_out(targets: Iterable[str], layers: Collection[str]) -> list[str]:
    """The targets with each name replaced by the layers that it stands for; patterns stay as they are."""
    return [
        part for target in targets for part in (layers_of(target, layers) if _is_name(target, layers) else [target])
    ]


def patterns_of(targets: Iterable[str], layers: Collection[str]) -> dict[str, tuple[str, ...]]:
    """What each target name stands for in a model with these linear layers, '#' for the number of a block."""
    return {t: _architecture(t, layers).parts(t) for t in targets if _is_name(t, layers)}


def layers_of(target: str, layers: Collection[str]) -> list[str]:
    """The layers that a target name stands for, in the model's order, slices as such.

    Raises: ValueError, with the layers, for a model whose linear layers are not all known.
    """
    slices: dict[str, list[str]] = {}
    for pattern in _architecture(target, layers).parts(target):
        path, rows = split_slice(pattern)
        slices.setdefault(path, []).append(rows)
    return [f"{name}{rows}" for name in layers for path in slices if _is(path, name) for rows in slices[path]]


def _is_name(target: str, layers: Collection[str]) -> bool:
    """Whether it is one of the names, and not a layer that happens to be called so."""
    return target in TARGET_NAMES and target not in layers


def _architecture(target: str, layers: Collection[str]) -> Architecture:
    """The one whose parts are there in every block, and that leaves no layer of a block over."""
    inside = [name for name in layers if not _APART.search(name)]
    for architecture in ARCHITECTURES.values():
        paths = {split_slice(pattern)[0] for pattern in architecture.parts("all-linear")}
        found = {path: [name for name in inside if _is(path, name)] for path in paths}
        blocks = {frozenset(_block(path, name) for name in names) for path, names in found.items()}
        if inside and len(blocks) == 1 and sum(map(len, found.values())) == len(inside):
            return architecture
    raise ValueError(
        f"target {target!r}: the linear layers of this model are not those of an architecture that is known here "
        f"({'; '.join(ARCHITECTURES)}); name them by patterns; the model has: {names_of(layers)}"
    )


def _is(path: str, name: str) -> bool:
    """Whether a layer is this part of some block."""
    return re.search(r"(^|\.)" + re.escape(path).replace(r"\#", r"\d+") + "$", name) is not None


def _block(path: str, name: str) -> str:
    """The block that a layer is in, given which part of it the layer is."""
    return name.removesuffix(path.partition("#")[2])
