"""Adapters on disk: PEFT loads what we write, and it computes what we computed."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from safetensors.torch import load_file
from tiny_transformers import tiny
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from experiments.models.model_card import ModelCard
from experiments.record.adapter_files import load_update, save_update
from lora_variants import VARIANTS
from lora_variants.interface.attach import attach
from lora_variants.interface.pack import Pack
from lora_variants.interface.variant import Variant

TOKENS = torch.arange(24).reshape(3, 8)
OURS, SHA256 = ModelCard(), "0" * 64  # a base that PEFT is not told how to load
Build = Callable[[], nn.Module]


def bert() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return BertForSequenceClassification(BertConfig(vocab_size=40, num_labels=3, **sizes)).eval()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=32, n_layer=2, n_head=4)).eval()


CASES = {
    "bert": (
        bert,
        ["*.query", "*.value", "*.intermediate.dense"],
        ("classifier",),
        {"*": 4, "*.0.*.query": 0, "*.value": 2},
    ),
    "gpt2": (gpt2, ["*.c_attn", "*.c_fc", "*.mlp.c_proj"], (), {"*": 4, "*.0.mlp.c_fc": 0, "*.c_attn": 2}),
    "roberta": (
        lambda: tiny("roberta", "AutoModelForSequenceClassification", num_labels=3),
        ["attention-qv", "mlp"],
        ("classifier",),
        {"*": 4, "*.0.*.query": 0, "*.value": 2},
    ),
    "llama": (
        lambda: tiny("llama", "AutoModelForCausalLM"),
        ["all-linear"],
        (),
        {"*": 4, "*.0.*.q_proj": 0, "*.v_proj": 2},
    ),
    "gpt2 q and v": (gpt2, ["*.c_attn[1/3]", "*.c_attn[3/3]"], (), {"*[1/3]": 3, "*[3/3]": 5}),
}


def trained(
    build: Build, targets: list[str], heads: tuple[str, ...], variant: str, knobs: dict[str, object]
) -> Variant:
    """An attached variant after random changes to all that trains; AdaLoRA pruned, its first layer to nothing."""
    entry = VARIANTS[variant].load()
    pack = Pack(seeds=(0,), total_steps=(1,))
    attached = attach(
        entry,
        build(),
        targets=targets,
        head_modules=heads,
        pack=pack,
        configs=[entry.config_class(name=variant, **knobs)],
    )
    generator = torch.Generator().manual_seed(1)
    for tensor in attached.trained_tensors(0).values():
        tensor += torch.randn(tensor.shape, generator=generator) * 0.1
    if variant == "adalora":
        pack.steps = [1]
        attached.after_step()
        assert sum(ranks[0] for ranks in attached.ranks_alive().values()) < sum(
            layer.initial_ranks[0]
            for layer in attached.layers.values()  # type: ignore[attr-defined]
        )
        first = next(iter(attached.layers.values()))
        first.alive.zero_()  # type: ignore[attr-defined]
        first.Lambda.detach().zero_()  # type: ignore[attr-defined]
    return attached


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=TOKENS).logits
    return found


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", ["lora", "rslora", "lora_plus", "adalora"])
def test_a_folder_written_by_us_gives_the_same_logits_in_peft(tmp_path: Path, case: str, variant: str) -> None:
    build, targets, heads, ranks = CASES[case]
    attached = trained(build, targets, heads, variant, {"rank": ranks, "alpha": 6.0})
    save_update(attached, 0, tmp_path, OURS, base_sha256=SHA256)
    theirs = peft.PeftModel.from_pretrained(build(), tmp_path)
    torch.testing.assert_close(logits(theirs), logits(attached.model), rtol=1e-5, atol=1e-5)
    assert (logits(theirs) - logits(build())).abs().max() > 1e-3


def test_a_layer_whose_name_ends_with_that_of_another_has_its_own_rank_and_scale_in_peft(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        inner = nn.Sequential(OrderedDict(proj=nn.Linear(16, 16)))
        return nn.Sequential(OrderedDict(proj=nn.Linear(16, 16), block=inner))

    attached = trained(build, ["*"], (), "lora", {"rank": {"proj": 2, "block.proj": 3}, "alpha": 6.0})
    save_update(attached, 0, tmp_path, OURS, base_sha256=SHA256)
    theirs, x = peft.PeftModel.from_pretrained(build(), tmp_path), torch.randn(2, 16)
    torch.testing.assert_close(theirs(x), attached.model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match")  # said of PEFT's own files too
@pytest.mark.parametrize("is_trainable", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_adalora_folder_of_a_run_gives_the_same_logits_in_pefts_own_adalora(
    tmp_path: Path, case: str, is_trainable: bool
) -> None:
    build, targets, heads, ranks = CASES[case]
    attached = trained(build, targets, heads, "adalora", {"rank": ranks, "alpha": 6.0})
    assert len({scale for scales in attached.scales().values() for scale in scales}) > 1
    save_update(attached, 0, tmp_path, OURS, base_sha256=SHA256)
    theirs = peft.PeftModel.from_pretrained(build(), tmp_path / "adalora", is_trainable=is_trainable)
    torch.testing.assert_close(logits(theirs.eval()), logits(attached.model), rtol=1e-5, atol=1e-5)
    assert (logits(theirs) - logits(build())).abs().max() > 1e-3
    layers = [module for module in theirs.modules() if isinstance(module, peft.tuners.adalora.SVDLinear)]
    assert layers
    assert all(layer.r["default"] for layer in layers)  # what was pruned to nothing is left out
    assert sum(layer.r["default"] for layer in layers) == sum(alive[0] for alive in attached.ranks_alive().values())
    assert all(layer.lora_E["default"].requires_grad == is_trainable for layer in layers)


def test_lambda_is_lora_e_number_for_number_where_all_layers_have_one_scale(tmp_path: Path) -> None:
    build, targets, heads, ranks = CASES["bert"]
    attached = trained(build, targets, heads, "adalora", {"rank": ranks, "alpha_per_rank": 3.0})
    save_update(attached, 0, tmp_path, OURS, base_sha256=SHA256)
    stored = load_file(tmp_path / "adalora" / "adapter_model.safetensors")
    assert not any(key.endswith("lora_A.weight") for key in stored)
    for name, layer in attached.layers.items():
        triplets = layer.triplets(0)  # type: ignore[attr-defined]
        if len(triplets.Lambda):
            for key, value in (("E", triplets.Lambda[:, None]), ("A", triplets.Q), ("B", triplets.P)):
                assert torch.equal(stored[f"base_model.model.{name}.lora_{key}"], value)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("variant", ["lora", "adalora", "full", "full_all", "head"])
def test_what_is_on_disk_makes_a_plain_model_of_the_same_outputs(tmp_path: Path, case: str, variant: str) -> None:
    build, targets, heads, ranks = CASES[case]
    knobs = {"rank": ranks} if variant in ("lora", "adalora") else {}
    attached = trained(build, targets, heads, variant, knobs)
    save_update(attached, 0, tmp_path, OURS, base_sha256=SHA256)
    plain = build()
    load_update(plain, tmp_path)
    torch.testing.assert_close(logits(plain), logits(attached.model), rtol=1e-4, atol=1e-5)


def test_the_update_of_torch_s_own_attention_is_written_dense(tmp_path: Path) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.ModuleDict({"attention": nn.MultiheadAttention(16, 2, batch_first=True)}).eval()

    attached = trained(build, ["*.query", "*.value"], (), "lora", {"rank": 2})
    (path,) = save_update(attached, 0, tmp_path, OURS, base_sha256=SHA256)
    assert path.name == "delta.safetensors"
    plain, x = build(), torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(2))
    load_update(plain, tmp_path)
    ours, theirs = (model["attention"](x, x, x)[0] for model in (attached.model, plain))  # type: ignore[index]
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
