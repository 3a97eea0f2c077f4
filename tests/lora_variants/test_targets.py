"""Targets, slices, ranks and scales mean in every model what their names say."""

import copy
import subprocess
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from models import ADAPTERS, attached, knobs
from project_paths import ROOT
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from lora_variants import VARIANTS
from lora_variants.frozen_model.linear_map import slice_rows
from lora_variants.interface.attach import attach
from lora_variants.interface.pack import Pack
from lora_variants.interface.ranks import RankWarning
from lora_variants.interface.variant import Variant

WIDTH = 64


class Net(nn.Module):
    """Two blocks with names that patterns can tell apart, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({part: nn.Linear(WIDTH, WIDTH) for part in ("query", "key", "value")}) for _ in range(2)
        )
        self.fused = nn.Linear(WIDTH, 3 * WIDTH)
        self.head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block["query"](x) + block["key"](x) + block["value"](x)
        return self.head(self.fused(x)[..., :WIDTH])


def put(
    model: nn.Module,
    targets: Sequence[str],
    *,
    name: str = "lora",
    heads: Sequence[str] = (),
    trials: int = 1,
    **wanted: Any,
) -> Variant:
    config = knobs(name, **({"rank": 2} | wanted))
    pack = Pack(seeds=tuple(range(trials)), total_steps=(10,) * trials, rows=2)
    return attach(
        VARIANTS[name].load(), model, targets=targets, head_modules=heads, pack=pack, configs=[config] * trials
    )


# Patterns


def test_a_pattern_that_matches_nothing_is_an_error_that_names_the_layers_there_are() -> None:
    with pytest.raises(ValueError, match=r"target '\*\.k', 'h\.\*' matches no linear layer; the model has: .*0\.key"):
        put(Net(), ["*.query", "*.k", "h.*"])
    with pytest.raises(ValueError, match="target an empty list matches no linear layer; the model has: blocks"):
        put(Net(), [])


def test_targets_are_adapted_in_the_models_order_and_each_once() -> None:
    variant = put(Net(), ["*.value", "*.query", "blocks.0.*"])
    assert list(variant.layers) == [
        "blocks.0.query",
        "blocks.0.key",
        "blocks.0.value",
        "blocks.1.query",
        "blocks.1.value",
    ]


def test_a_star_leaves_the_heads_out_and_every_linear_layer_in_a_head_trains() -> None:
    variant = put(Net(), ["*"], heads=["head"])
    assert len(variant.layers) == 7
    assert not any(name.startswith("head") for name in variant.layers)
    assert list(variant.heads) == ["head.0", "head.2"]
    assert len(quietly(Net(), ["*"]).layers) == 9
    with pytest.raises(ValueError, match=r"'head\.0' matches no linear layer"):
        put(Net(), ["head.0"], heads=["head"])


def test_a_head_that_is_not_there_or_cannot_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="head module 'classifier' is not in the model; its parts are: blocks, fused"):
        put(Net(), ["*"], heads=["classifier"])
    model = Net()
    model.head.append(nn.LayerNorm(2))
    with pytest.raises(ValueError, match=r"head module head\.3 is a LayerNorm; only nn\.Linear heads train"):
        put(model, ["*.query"], heads=["head"])


def test_a_model_that_is_one_linear_layer_is_refused_and_left_as_it_was() -> None:
    model = nn.Linear(WIDTH, WIDTH)
    with pytest.raises(ValueError, match="wrap it in a module"):
        put(model, ["*"])
    assert model.weight.requires_grad


# Slices


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (["fused[0:65]", "fused[64:128]"], r"'fused\[0:65\]' and 'fused\[64:128\]' adapt the same rows"),
        (["fused[1/3]", "fused"], r"'fused\[1/3\]' and 'fused' adapt the same rows"),
        (["fused[1/3]", "fused[0:64]"], "adapt the same rows; name each row once"),
        (["*", "fused[2/3]"], "adapt the same rows"),
    ],
)
def test_overlapping_slices_are_refused(targets: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        put(Net(), targets)


def test_neighbouring_slices_are_adapted_each_with_its_own_rows() -> None:
    model = Net()
    variant = put(model, ["fused[3/3]", "fused[0:64]"])
    assert list(variant.layers) == ["fused[0:64]", "fused[3/3]"]
    for part in variant.trained_tensors(0).values():
        part.add_(1.0)
    x = torch.randn(2, WIDTH)
    change = variant.model.fused(x) - nn.functional.linear(x, *[p.detach() for p in fused_weights(variant)])
    assert [bool(c.abs().amax() > 0.1) for c in change.chunk(3, dim=-1)] == [True, False, True]


def fused_weights(variant: Variant) -> tuple[nn.Parameter, nn.Parameter]:
    owner = variant.layers["fused[0:64]"].base.owner
    return owner.weight, owner.bias


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("fused[0:193]", "rows 0:193 are not within the layer's 0:192"),
        ("fused[5:5]", "rows 5:5 are not within"),
        ("fused[0/3]", "192 rows have no part 0 of 3 equal parts"),
        ("fused[4/3]", "192 rows have no part 4 of 3"),
        ("fused[1/5]", "192 rows have no part 1 of 5"),
    ],
)
def test_rows_that_a_layer_does_not_have_are_an_error(target: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        put(Net(), [target])


@pytest.mark.parametrize("part", ["query[1/2]", "out_proj[0:4]", "*[1/2]"])
def test_a_slice_of_torchs_attention_is_refused_instead_of_bypassed(part: str) -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2, batch_first=True)})
    with pytest.raises(ValueError, match="projections of torch's attention have no slices"):
        put(model, [f"attention.{part}"])


def test_thirds_are_the_rows_that_they_name() -> None:
    assert [slice_rows(f"c_attn[{part}/3]", 27) for part in (1, 2, 3)] == [(0, 9), (9, 18), (18, 27)]
    assert slice_rows("qkv[3:16]", 27) == (3, 16)
    assert slice_rows("qkv", 27) is None


# W_q and W_v only


def moved_rows(after: Tensor, before: Tensor) -> list[int]:
    return (after != before).any(dim=1).nonzero().flatten().tolist()


@pytest.mark.parametrize("name", [*ADAPTERS, "full"])
def test_lora_on_query_and_value_of_gpt2_leaves_key_and_output_as_they_were(name: str) -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_positions=8, n_embd=16, n_layer=1, n_head=2)).double().eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    variant = quietly(model, ["*.c_attn[1/3]", "*.c_attn[3/3]"], name=name)
    wake(variant)
    tokens = torch.arange(8)[None]
    adapted = variant.model(tokens).logits.detach()
    after = variant.merge().state_dict()
    assert after.keys() == before.keys()
    fused = "transformer.h.0.attn.c_attn.weight"  # (d_in, d_out)
    assert moved_rows(after[fused].mT, before[fused].mT) == [*range(16), *range(32, 48)]
    assert [key for key in before if key != fused and not torch.equal(after[key], before[key])] == []
    torch.testing.assert_close(variant.model(tokens).logits, adapted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", [*ADAPTERS, "full"])
def test_lora_on_query_and_value_of_torchs_attention_leaves_key_and_output_as_they_were(name: str) -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, 1).double()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    variant = quietly(model, ["*.query", "*.value"], name=name)
    wake(variant)
    x = torch.randn(2, 3, 16, dtype=torch.float64)
    adapted = variant.model(x).detach()
    after = variant.merge().state_dict()
    assert after.keys() == before.keys()
    fused = "layers.0.self_attn.in_proj_weight"
    assert moved_rows(after[fused], before[fused]) == [*range(16), *range(32, 48)]
    assert [key for key in before if key != fused and not torch.equal(after[key], before[key])] == []
    torch.testing.assert_close(variant.model(x).detach(), adapted, rtol=1e-10, atol=1e-10)


def quietly(model: nn.Module, targets: Sequence[str], **options: Any) -> Variant:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)
        return put(model, targets, **options)


def wake(variant: Variant) -> None:
    generator = torch.Generator().manual_seed(0)
    for part in variant.trained_tensors(0).values():
        part.add_(torch.rand(part.shape, generator=generator, dtype=torch.float64))


# Ranks


def ranks_of(variant: Variant) -> dict[str, int]:
    return {name: layer.ranks[0] for name, layer in variant.layers.items()}


def test_the_last_pattern_that_matches_a_layer_gives_its_rank_and_no_match_is_0() -> None:
    targets = ["blocks.*", "fused[1/3]", "fused[3/3]"]
    variant = put(Net(), targets, rank={"blocks.*": 4, "*.value": 6, "blocks.1.*": 3, "fused[3/3]": 5})
    assert ranks_of(variant) == {
        "blocks.0.query": 4,
        "blocks.0.key": 4,
        "blocks.0.value": 6,
        "blocks.1.query": 3,
        "blocks.1.key": 3,
        "blocks.1.value": 3,
        "fused[3/3]": 5,
    }
    assert ranks_of(put(Net(), targets, rank={"fused": 2})) == {"fused[1/3]": 2, "fused[3/3]": 2}
    assert ranks_of(put(Net(), ["*.key"], rank={"*": 4, "blocks.0.key": 0})) == {"blocks.1.key": 4}


def test_a_rank_pattern_without_a_target_is_an_error_that_names_the_targets() -> None:
    message = r"rank pattern '\*\.key' matches no targeted layer; the targets are: blocks\.0\.query, blocks\.1\.query$"
    with pytest.raises(ValueError, match=message):
        put(Net(), ["*.query"], rank={"*.query": 2, "*.key": 4})


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_rank_above_both_dimensions_is_refused_and_at_them_it_is_not(name: str) -> None:
    message = r"rank 17 of fused\[0:16\] is above min\(d_out, d_in\) = 16 of its 16 x 64 matrix"
    model = Net()
    with pytest.raises(ValueError, match=message):
        put(model, ["fused[0:16]"], name=name, rank=17)
    assert all(parameter.requires_grad for parameter in model.parameters())
    with pytest.warns(RankWarning):
        assert ranks_of(put(model, ["fused[0:16]"], name=name, rank=16)) == {"fused[0:16]": 16}


def test_factors_may_be_padded_to_the_highest_rank_that_any_layer_can_have() -> None:
    model = nn.Sequential(nn.Linear(200, 300), nn.Linear(300, 4))
    assert put(model, ["*"], pad_rank_to=200).layers.keys() == {"0", "1"}
    with pytest.raises(ValueError, match="pads to more than 200, the highest rank"):
        put(nn.Sequential(nn.Linear(200, 300), nn.Linear(300, 4)), ["*"], pad_rank_to=201)


def test_at_break_even_one_warning_has_both_parameter_counts_and_below_there_is_none() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        put(Net(), ["*.query", "fused"], rank=31)
    # 64 x 64 breaks even at rank 32, 192 x 64 at 48
    message = (
        r"^rank 32 is at or above break-even in 2 of 3 layers \(blocks\.0\.query, blocks\.1\.query\): "
        r"their adapters have 8,192 parameters, the matrices themselves 8,192$"
    )
    with pytest.warns(RankWarning, match=message) as caught:
        put(Net(), ["*.query", "fused"], rank=32)
    assert len(caught) == 1


# Scales


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("lora", {"alpha": 8.0}, {4: 2.0, 16: 0.5}),
        ("lora", {"alpha_per_rank": 3.0}, {4: 3.0, 16: 3.0}),
        ("lora", {}, {4: 2.0, 16: 2.0}),
        ("lora_plus", {"alpha": 8.0}, {4: 2.0, 16: 0.5}),
        ("rslora", {"alpha": 8.0}, {4: 4.0, 16: 2.0}),
        ("rslora", {"alpha_per_rank": 0.5}, {4: 1.0, 16: 2.0}),
        ("rslora", {}, {4: 4.0, 16: 2.0}),
        ("adalora", {"alpha": 8.0}, {4: 2.0, 16: 0.5}),
        ("adalora", {"alpha": 8.0, "initial_rank": 20}, {4: 2.0, 16: 0.5}),
        ("adalora", {}, {4: 16.0, 16: 16.0}),
    ],
)
def test_the_scale_of_a_layer_follows_its_own_target_rank(
    name: str, given: dict[str, Any], expected: dict[int, float]
) -> None:
    variant = put(Net(), ["blocks.0.*"], name=name, rank={"*.query": 4, "*.value": 16}, **given)
    assert variant.scales() == {"blocks.0.query": [expected[4]], "blocks.0.value": [expected[16]]}
    wake(variant)
    for layer in variant.layers.values():
        x = torch.randn(2, WIDTH)
        factors = layer.delta(0)
        assert factors.scale == expected[layer.ranks[0]]
        difference = layer(x) - layer.base(x)
        torch.testing.assert_close(difference, x @ factors.product().mT, rtol=1e-4, atol=1e-3)


def test_a_longer_learning_rate_of_b_reaches_matrices_b_only() -> None:
    for name, ratio in (("lora_plus", None), ("adalora", 4.0), ("lora", 4.0)):
        given = {} if ratio is None else {"learning_rate_ratio": ratio}
        variant = put(Net(), ["*.query"], name=name, heads=["head"], trials=2, **given)
        rates, decay = torch.tensor([1e-3, 2e-3]), torch.tensor([0.1, 0.2])
        for group in variant.parameter_groups(rates, decay):
            factor = (ratio or 16.0) if group.role == "B" else 1.0
            torch.testing.assert_close(group.rates, rates * factor)
            matrices = {parameter.ndim > 2 for parameter in group.parameters}
            torch.testing.assert_close(group.weight_decay, decay if matrices == {True} else torch.zeros(2))
            assert len(matrices) == 1


# The table


def test_the_table_of_variants_imports_nothing_heavy_until_one_is_loaded() -> None:
    code = (
        "import sys, lora_variants\n"
        "print(*lora_variants.VARIANTS)\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'jaxtyping'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "lora_variants.VARIANTS['lora'].load()\n"
        "assert 'torch' in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(VARIANTS)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variants_configuration_knows_its_name_and_refuses_unknown_knobs(name: str) -> None:
    config_class = VARIANTS[name].load().config_class
    assert config_class().name == name
    with pytest.raises(ValueError, match="alhpa"):
        config_class(alhpa=1.0)
    assert VARIANTS[name].summary


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": 1.0, "alpha_per_rank": 1.0}, "give alpha or alpha_per_rank, not both"),
        ({"rank": {}}, "an empty map of ranks adapts nothing"),
        ({"rank": -1}, "greater than or equal to 0"),
        ({"rank": True}, "valid integer"),
        ({"pad_rank_to": -1}, "greater than or equal to 0"),
        ({"rank": "8"}, "valid integer"),
        ({"alpha": 0.0}, "greater than 0"),
        ({"dropout": 1.0}, "less than 1"),
        ({"learning_rate_ratio": 0.0}, "greater than 0"),
    ],
)
def test_a_knob_without_a_meaning_is_an_error(name: str, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VARIANTS[name].load().config_class(**given)


def test_a_shared_layer_is_adapted_wherever_it_stands() -> None:
    model = Net()
    model.blocks[1]["key"] = shared = model.blocks[0]["query"]
    variant = put(model, ["*.query"])
    assert list(variant.layers) == ["blocks.0.query", "blocks.1.query"]
    assert model.blocks[1]["key"] is model.blocks[0]["query"] is variant.layers["blocks.0.query"]
    merged = variant.merge()
    assert merged.blocks[1]["key"] is merged.blocks[0]["query"] is not shared
    assert variant.detach().blocks[1]["key"] is model.blocks[0]["query"] is shared


def test_a_layer_whose_forward_was_replaced_is_computed_by_calling_it() -> None:
    model, x = Net(), torch.randn(2, WIDTH)
    replaced = model.fused.forward
    model.fused.forward = lambda x: 2 * replaced(x)  # type: ignore[method-assign]
    before = model(x)
    put(model, ["fused"])
    torch.testing.assert_close(model(x), before)


def test_a_layer_whose_weight_is_computed_from_others_is_refused() -> None:
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)))
    with pytest.raises(ValueError, match="is computed from others; merge it first"):
        attached("lora", model, heads=(), configs=[knobs("lora", rank=2)])


def test_a_part_of_an_adapted_model_is_refused_and_a_merged_copy_is_not() -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)))
    variant = attached("lora", model, heads=(), configs=[knobs("lora", rank=2)])
    with pytest.raises(ValueError, match="adapted already"):
        attached("lora", model[0], heads=(), configs=[knobs("lora", rank=2)])
    plain = copy.deepcopy(variant.merge())
    assert attached("lora", plain, heads=(), configs=[knobs("lora", rank=2)]).layers


@pytest.mark.parametrize("name", ["lora", "full_all"])
@pytest.mark.parametrize("after", ["merge", "detach"])
def test_adapters_of_a_model_that_is_merged_or_detached_cannot_be_switched_off(name: str, after: str) -> None:
    variant = attached(name, nn.Sequential(nn.Linear(8, 8)), heads=(), configs=[knobs(name, rank=2)])
    getattr(variant, after)()
    with pytest.raises(RuntimeError, match="merged or detached"), variant.disabled():
        pass
