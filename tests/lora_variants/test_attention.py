"""The attention that takes the place of torch's computes the same, masks and returned weights included."""

from typing import Any

import pytest
import torch
from models import ALONE, PACKED, attached, knobs, rows_of
from torch import Tensor, nn

from lora_variants import VARIANTS
from lora_variants.frozen_model.attention import Attention

ROWS, LENGTH, KEYS, WIDTH, HEADS = 4, 5, 7, 8, 2
TIGHT = {"rtol": 1e-12, "atol": 1e-12}


class Holder(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, **({"batch_first": True} | options))
        if self.attention.in_proj_bias is not None:
            nn.init.normal_(self.attention.in_proj_bias)
            nn.init.normal_(self.attention.out_proj.bias)

    def forward(self, *args: Any, **options: Any) -> tuple[Tensor, Tensor | None]:
        return self.attention(*args, **options)


def replaced(name: str = "lora", targets: tuple[str, ...] = ("*",), *, rows: int = ROWS, **options: Any) -> nn.Module:
    """A fresh attention under a variant that has learned nothing yet."""
    model = Holder(**options).double()
    variant = attached(name, model, targets=targets, heads=(), configs=[knobs(name, rank=2)], rows=rows)
    return variant.model


def qkv(*, kdim: int = WIDTH, vdim: int = WIDTH) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = ((ROWS, LENGTH, WIDTH), (ROWS, KEYS, kdim), (ROWS, KEYS, vdim))
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return q, k, v


def boolean(*shape: int) -> Tensor:
    """A mask that hides about a third, never the first key."""
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(2)) < 0.3
    mask[..., 0] = False
    return mask


def additive(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


MASKS: dict[str, dict[str, Tensor]] = {
    "none": {},
    "boolean": {"attn_mask": boolean(LENGTH, KEYS)},
    "float": {"attn_mask": additive(LENGTH, KEYS)},
    "boolean_of_each_head": {"attn_mask": boolean(ROWS * HEADS, LENGTH, KEYS)},
    "float_of_each_head": {"attn_mask": additive(ROWS * HEADS, LENGTH, KEYS)},
    "padding": {"key_padding_mask": boolean(ROWS, KEYS)},
    "float_padding": {"key_padding_mask": additive(ROWS, KEYS)},
    "both": {"attn_mask": boolean(LENGTH, KEYS), "key_padding_mask": boolean(ROWS, KEYS)},
    "float_both": {"attn_mask": additive(ROWS * HEADS, LENGTH, KEYS), "key_padding_mask": additive(ROWS, KEYS)},
}
SHAPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "other_widths": {"kdim": 6, "vdim": 10},
    "without_bias": {"bias": False},
    "other_widths_without_bias": {"kdim": 6, "vdim": 10, "bias": False},
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("weights", [{"need_weights": False}, {}, {"average_attn_weights": False}])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("mask", MASKS)
def test_outputs_and_weights_are_torchs(mask: str, shape: str, weights: dict[str, Any], training: bool) -> None:
    options = SHAPES[shape]
    args = qkv(kdim=options.get("kdim", WIDTH), vdim=options.get("vdim", WIDTH))
    theirs = Holder(**options).double().train(training)
    ours = replaced(**options).train(training)
    assert isinstance(ours.attention, Attention)
    expected, found = theirs(*args, **MASKS[mask], **weights), ours(*args, **MASKS[mask], **weights)
    torch.testing.assert_close(found[0], expected[0], **TIGHT)
    assert (found[1] is None) is (expected[1] is None) is (not weights.get("need_weights", True))
    if expected[1] is not None:
        torch.testing.assert_close(found[1], expected[1], **TIGHT)


@pytest.mark.parametrize("need_weights", [True, False])
def test_sequence_first_attention_in_a_pack_of_one_is_torchs(need_weights: bool) -> None:
    args = [x.transpose(0, 1) for x in qkv()]
    mask = {"key_padding_mask": boolean(ROWS, KEYS), "need_weights": need_weights}
    expected = Holder(batch_first=False).double()(*args, **mask)
    found = replaced(batch_first=False)(*args, **mask)
    assert found[0].shape == (LENGTH, ROWS, WIDTH)
    torch.testing.assert_close(found[0], expected[0], **TIGHT)


@pytest.mark.parametrize("need_weights", [True, False])
def test_a_causal_hint_goes_with_its_mask_and_is_an_error_without(need_weights: bool) -> None:
    q = qkv()[0]
    mask = nn.Transformer.generate_square_subsequent_mask(LENGTH, dtype=torch.float64)
    options = {"is_causal": True, "need_weights": need_weights}
    expected = Holder().double()(q, q, q, attn_mask=mask, **options)[0]
    torch.testing.assert_close(replaced()(q, q, q, attn_mask=mask, **options)[0], expected, **TIGHT)
    with pytest.raises(ValueError, match="needs it, as in torch"):
        replaced()(q, q, q, **options)


def test_an_input_without_a_row_axis_is_an_error() -> None:
    q = qkv()[0][0]
    with pytest.raises(ValueError, match="add a leading row axis"):
        replaced()(q, q, q)


@pytest.mark.parametrize("option", ["add_bias_kv", "add_zero_attn"])
def test_attention_with_extra_keys_is_refused_and_the_model_is_left_as_it_was(option: str) -> None:
    model = Holder(**{option: True})
    with pytest.raises(ValueError, match="add_bias_kv or add_zero_attn cannot be adapted"):
        attached("lora", model, heads=(), configs=[knobs("lora", rank=2)])
    assert isinstance(model.attention, nn.MultiheadAttention)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_dropout_of_the_base_acts_in_training_and_not_in_evaluation() -> None:
    args = qkv()
    model = replaced(dropout=0.5)
    expected = Holder().double()(*args)[0]
    for need_weights in (True, False):
        torch.manual_seed(0)
        first = model.train()(*args, need_weights=need_weights)[0]
        assert not torch.equal(first, model(*args, need_weights=need_weights)[0])
        torch.testing.assert_close(model.eval()(*args, need_weights=need_weights)[0], expected, **TIGHT)


@pytest.mark.parametrize("part", ["query", "key", "value", "out_proj"])
@pytest.mark.parametrize("name", [name for name in PACKED if name != "head"])
def test_one_adapted_projection_changes_its_own_weight_only_when_merged(name: str, part: str) -> None:
    model = Holder().double()
    before = {key: tensor.clone() for key, tensor in model.attention.state_dict().items()}
    variant = attached(name, model, targets=[f"attention.{part}"], heads=(), configs=[knobs(name, rank=2)] * 2)
    assert variant.layers.keys() == {f"attention.{part}"}
    for tensor in variant.trained_tensors(1).values():
        tensor.add_(0.1)
    x = torch.cat([qkv()[0]] * 2)
    adapted = variant.model(x, x, x)[0].detach()
    plain = variant.merge(1)
    torch.testing.assert_close(
        plain(*[rows_of(1, x, 2)] * 3)[0].detach(), rows_of(1, adapted, 2), rtol=1e-10, atol=1e-10
    )
    after = plain.attention.state_dict()
    rows = {"query": slice(0, 8), "key": slice(8, 16), "value": slice(16, 24)}
    if part == "out_proj":
        assert not torch.equal(after["out_proj.weight"], before["out_proj.weight"])
        after["out_proj.weight"] = before["out_proj.weight"]
    else:
        moved = (after["in_proj_weight"] != before["in_proj_weight"]).any(dim=1)
        assert moved.nonzero().flatten().tolist() == list(range(24))[rows[part]]
        after["in_proj_weight"] = before["in_proj_weight"]
    assert all(torch.equal(after[key], before[key]) for key in before)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerDecoderLayer(WIDTH, HEADS, 16, dropout=0.0, batch_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(x, x[:, :3])


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("targets", [("*",), ("*.query", "*.value"), ("*.linear1",), ("*.1.*",)])
@pytest.mark.parametrize("name", VARIANTS)
def test_an_encoder_evaluates_as_torchs_fused_path_does(name: str, targets: tuple[str, ...], nested: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, dropout=0.0, batch_first=True)
    encoder = nn.ModuleDict({"body": nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested)}).double().eval()
    x, padding = qkv()[0], torch.zeros(ROWS, LENGTH, dtype=torch.bool)
    padding[1, 3:] = padding[2, 4:] = True
    with torch.inference_mode():
        expected = encoder["body"](x, src_key_padding_mask=padding)
    trials = 1 if name in ALONE else 2
    attached(name, encoder, targets=targets, heads=(), configs=[knobs(name, rank=2)] * trials)
    with torch.inference_mode():
        found = encoder["body"](torch.cat([x] * trials), src_key_padding_mask=torch.cat([padding] * trials))
    shown = ~padding
    for part in found.chunk(trials):
        torch.testing.assert_close(part[shown], expected[shown], **TIGHT)


@pytest.mark.parametrize("name", VARIANTS)
def test_a_decoder_with_cross_attention_is_unchanged_at_the_start_and_every_projection_counts(name: str) -> None:
    x = qkv()[0]
    expected = Decoder().double()(x)
    variant = attached(name, Decoder().double(), heads=(), configs=[knobs(name, rank=2)])
    torch.testing.assert_close(variant.model(x), expected, **TIGHT)
    assert len(variant.layers) == (0 if name in ("head", *ALONE) else 2 * (4 + 4 + 2))
    generator = torch.Generator().manual_seed(3)
    for path, layer in variant.layers.items():
        for part in layer.parts(0).values():  # of both signs, so that no ReLU dies
            if part.is_floating_point():
                part.add_(torch.randn(part.shape, generator=generator, dtype=part.dtype) / 2)
        with torch.inference_mode():
            assert not torch.allclose(variant.model.eval()(x), expected), path
        expected = variant.model(x).detach()
