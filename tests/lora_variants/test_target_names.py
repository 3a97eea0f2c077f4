"""`attention`, `attention-qv`, `mlp` and `all-linear` are the same matrices in every architecture, and nothing else."""

import io
from collections.abc import Sequence

import pytest
import torch
from models import attached, knobs
from rich.console import Console
from tiny_transformers import tiny
from torch import nn

from experiments.config.loading import load
from experiments.models.digit_transformer import DigitTransformer
from experiments.models.transformer import ByteTransformer
from experiments.plan import show_plan
from experiments.terminal import Display
from lora_variants.frozen_model.target_names import ARCHITECTURES, TARGET_NAMES
from lora_variants.interface.attach import outside_heads, select_maps

CLASSIFIER = "AutoModelForSequenceClassification"


def torch_encoder() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True), 2)


BUILD = {
    "bytes": lambda: ByteTransformer(width=32, depth=2, heads=2),
    "digits": lambda: DigitTransformer(width=32, depth=2, heads=2),
    "torch": torch_encoder,
    "vit": lambda: tiny("vit", "AutoModelForImageClassification"),
    "gpt2": lambda: tiny("gpt2", "AutoModelForCausalLM"),
    "llama": lambda: tiny("llama", "AutoModelForCausalLM"),
    "qwen2": lambda: tiny("qwen2", CLASSIFIER),
    "bert": lambda: tiny("bert", CLASSIFIER),
    "roberta": lambda: tiny("roberta", CLASSIFIER),
    "deberta-v2": lambda: tiny("deberta-v2", CLASSIFIER),
    "deberta-v2 of unshared positions": lambda: tiny("deberta-v2", CLASSIFIER, share_att_key=False),
    "distilbert": lambda: tiny("distilbert", CLASSIFIER),
}

# A block's name, W_q, W_k, W_v, W_o, then the feed-forward layer's matrices, in no order
BERT = ["intermediate.dense", "output.dense"]
EXPECTED: dict[str, tuple[str, list[str], list[str]]] = {
    "bytes": ("layers.{}", ["query", "key", "value", "output"], ["up", "down"]),
    "digits": ("layers.{}", ["query", "key", "value", "output"], ["up", "down"]),
    "torch": ("layers.{}", [f"self_attn.{p}" for p in ("query", "key", "value", "out_proj")], ["linear1", "linear2"]),
    "vit": ("vit.layers.{}", [f"attention.{p}_proj" for p in "qkvo"], ["mlp.fc1", "mlp.fc2"]),
    "gpt2": (
        "transformer.h.{}",
        ["attn.c_attn[1/3]", "attn.c_attn[2/3]", "attn.c_attn[3/3]", "attn.c_proj"],
        ["mlp.c_fc", "mlp.c_proj"],
    ),
    "llama": (
        "model.layers.{}",
        [f"self_attn.{p}_proj" for p in "qkvo"],
        [f"mlp.{p}_proj" for p in ("gate", "up", "down")],
    ),
    "bert": (
        "bert.encoder.layer.{}",
        [*(f"attention.self.{p}" for p in ("query", "key", "value")), "attention.output.dense"],
        BERT,
    ),
    "deberta-v2": (
        "deberta.encoder.layer.{}",
        [*(f"attention.self.{p}_proj" for p in ("query", "key", "value")), "attention.output.dense"],
        BERT,
    ),
    "distilbert": (
        "distilbert.transformer.layer.{}",
        [f"attention.{p}_lin" for p in ("q", "k", "v", "out")],
        ["ffn.lin1", "ffn.lin2"],
    ),
}
EXPECTED["qwen2"] = EXPECTED["llama"]
EXPECTED["roberta"] = ("roberta.encoder.layer.{}", *EXPECTED["bert"][1:])
EXPECTED["deberta-v2 of unshared positions"] = EXPECTED["deberta-v2"]


def chosen(model: nn.Module, *targets: str, heads: Sequence[str] = ()) -> list[str]:
    return list(select_maps(model, targets, heads))


@pytest.mark.parametrize("kind", BUILD)
def test_a_name_means_exactly_these_layers(kind: str) -> None:
    block, attention, mlp = EXPECTED[kind]
    parts = {
        "attention": attention,
        "attention-qv": [attention[0], attention[2]],
        "mlp": mlp,
        "all-linear": attention + mlp,
    }
    model = BUILD[kind]()
    for name in TARGET_NAMES:
        found = chosen(model, name)
        assert sorted(found) == sorted(f"{block.format(i)}.{part}" for i in range(2) for part in parts[name]), name
        order = [path for path, _ in model.named_modules()] if kind not in ("torch", "gpt2") else []
        assert not order or found == [path for path in order if path in found]


def test_each_row_of_the_table_is_somebodys() -> None:
    blocks = {(expected[0].split(".")[-2], *sorted(expected[1] + expected[2])) for expected in EXPECTED.values()}
    table = {
        (rows.block.split(".")[0], *sorted((rows.query, rows.key, rows.value, rows.output, *rows.mlp)))
        for rows in ARCHITECTURES.values()
    }
    assert table == blocks


def test_names_and_patterns_go_together_and_name_a_layer_once() -> None:
    model = BUILD["bert"]()
    both = chosen(model, "attention-qv", "*.0.*.key", "attention-qv", "*.1.attention.self.query")
    block = "bert.encoder.layer.{}.attention.self.{}"
    assert both == [
        *(block.format(0, part) for part in ("query", "key", "value")),
        *(block.format(1, part) for part in ("query", "value")),
    ]


def test_a_name_and_a_pattern_for_the_same_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="adapt the same rows; name each row once"):
        chosen(BUILD["gpt2"](), "attention-qv", "*.c_attn")


class Perceptron(nn.Module):
    """Layers that no table knows."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp, self.head = nn.Linear(8, 8), nn.Linear(8, 2)


@pytest.mark.parametrize("name", ["attention", "attention-qv", "all-linear"])
def test_an_unknown_architecture_is_an_error_that_lists_its_linear_layers(name: str) -> None:
    with pytest.raises(ValueError, match=f"target '{name}': .*not those of an architecture.*; the model has: mlp$"):
        chosen(Perceptron(), name, heads=["head"])


def test_a_layer_that_is_called_like_a_name_is_meant_itself() -> None:
    assert chosen(Perceptron(), "mlp", heads=["head"]) == ["mlp"]


@pytest.mark.parametrize("kind", ["bart", "albert"])
def test_an_architecture_is_not_guessed_from_some_of_its_layers(kind: str) -> None:
    with pytest.raises(ValueError, match="is known here"):
        chosen(tiny(kind, CLASSIFIER), "attention-qv")


def test_a_block_with_one_more_linear_layer_or_one_fewer_is_not_known() -> None:
    more, fewer = BUILD["bert"](), BUILD["bert"]()
    more.bert.encoder.layer[1].adapter = nn.Linear(4, 4)  # type: ignore[union-attr,operator,index]
    fewer.bert.encoder.layer[1].intermediate.dense = nn.Identity()  # type: ignore[union-attr,operator,index]
    for model in (more, fewer):
        with pytest.raises(ValueError, match="is known here"):
            chosen(model, "attention")


def test_embeddings_poolers_and_heads_are_in_no_name() -> None:
    for kind in BUILD:
        model = BUILD[kind]()
        left = set(outside_heads(model, ())) - {name.partition("[")[0] for name in chosen(model, "all-linear")}
        for name in left:
            assert name.split(".")[0] not in ("encoder", "layers"), name
    assert not set(chosen(BUILD["bert"](), "all-linear")) & {"bert.pooler.dense", "classifier"}


def test_attention_qv_adapts_the_queries_and_values_of_gpt2_and_leaves_its_keys_alone() -> None:
    model = BUILD["gpt2"]()
    variant = attached("lora", model, targets=["attention-qv"], heads=(), configs=[knobs("lora", rank=2)])
    for tensor in variant.trained_tensors(0).values():
        tensor.add_(0.1)
    site = variant.model.get_submodule("transformer.h.0.attn.c_attn")
    x = torch.randn(1, 3, 32)
    with torch.no_grad():
        after = site(x)
        with variant.disabled():
            change = after - site(x)
    assert [bool(part.abs().max() > 1e-3) for part in change.chunk(3, dim=-1)] == [True, False, True]


def test_the_plan_says_what_a_name_stands_for_and_the_configuration_keeps_the_name() -> None:
    console = Console(file=io.StringIO(), width=200)
    config = load(None, variant="lora", rank=2, overrides=["task.name=bytes", "targets=[attention-qv, mlp]"])
    show_plan(config, Display(console))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "attention-qv stands for layers.#.query, layers.#.value\n" in shown
    assert "mlp stands for layers.#.up, layers.#.down\n" in shown
    assert config.tree()["targets"] == ["attention-qv", "mlp"]
    assert all(f"layers.{i}.{part}" in shown for i in range(4) for part in ("query", "value", "up", "down"))
    assert "layers.0.key" not in shown
