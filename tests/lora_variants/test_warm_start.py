"""What a run starts from: adapters of PEFT, of loralib and of our own runs give the very ΔW that they hold."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import loralib
import peft
import pytest
import torch
from models import attached
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from experiments.config.schema import StartConfig
from experiments.models.model_card import ModelCard
from experiments.record.adapter_files import save_update
from experiments.record.adapter_formats import DELTA, RunStoreError
from experiments.record.starting_point import StartingPoint, read_start
from lora_variants import VARIANTS
from lora_variants.interface.layer import Factors
from lora_variants.interface.rng import stream
from lora_variants.interface.variant import Variant
from lora_variants.interface.warm_start import as_dense, as_triplets

TOKENS = torch.arange(24).reshape(3, 8)
EVERY = tuple(name for name in VARIANTS if name != "head")
ADAPTERS = ("lora", "rslora", "lora_plus", "adalora")
HIGH = {"rank": 8, "alpha": 5.0}


def bert() -> nn.Module:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return BertForSequenceClassification(BertConfig(vocab_size=40, num_labels=3, **sizes)).eval()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=32, n_layer=2, n_head=4)).eval()


# model, PEFT's targets with a rank and an alpha of their own, our targets, the layers that are not adapted, heads
CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[int, int]], list[str], str, list[str]]] = {
    "bert": (
        bert,
        {"0.attention.self.value": (3, 5), "1.attention.self.query": (6, 12), "intermediate.dense": (2, 1)},
        ["*.query", "*.value", "*.intermediate.dense"],
        "*.0.*.query",
        ["classifier"],
    ),
    "gpt2": (
        gpt2,
        {"0.attn.c_attn": (6, 9), "mlp.c_fc": (2, 3), "1.mlp.c_proj": (4, 4)},
        ["*.c_attn", "*.c_fc", "*.mlp.c_proj"],
        "*.0.mlp.c_proj",
        [],
    ),
    "gpt2 by slices": (
        gpt2,
        {"0.attn.c_attn": (6, 9), "mlp.c_fc": (2, 3)},
        ["*.c_attn[1/3]", "*.c_attn[2/3]", "*.c_attn[3/3]", "*.c_fc"],
        "*.1.attn.c_attn[2/3]",
        [],
    ),
}
FORMATS = ("lora", "rslora", "adalora", "adalora pruned")


def saved_by_peft(folder: Path, case: str, form: str) -> nn.Module:
    """PEFT's model with random factors and heads, saved by PEFT itself."""
    build, modules, _, _, heads = CASES[case]
    shared = {"target_modules": list(modules), "modules_to_save": heads or None, "fan_in_fan_out": build is gpt2}
    config: peft.LoraConfig
    if form.startswith("adalora"):
        config = peft.AdaLoraConfig(init_r=6, target_r=2, lora_alpha=5, total_step=10, **shared)
    else:
        config = peft.LoraConfig(
            r=1, lora_alpha=7, use_rslora=form == "rslora", **shared,
            rank_pattern={name: rank for name, (rank, _) in modules.items()},
            alpha_pattern={name: alpha for name, (_, alpha) in modules.items()},
        )  # fmt: skip
    model = peft.get_peft_model(build(), config)
    generator = stream(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter += torch.randn(parameter.shape, generator=generator) * 0.2
    if form == "adalora pruned":
        layers = [(n, m) for n, m in model.base_model.model.named_modules() if hasattr(m, "lora_E")]
        patterns = [[True, False] * 3, [False] * 6, [True] * 6]
        kept = {name: patterns[i % 3] for i, (name, _) in enumerate(layers)}
        for name, layer in layers:
            layer.lora_E["default"].data *= torch.tensor(kept[name])[:, None]
        model.peft_config["default"].rank_pattern = {f"{name}.lora_E": alive for name, alive in kept.items()}
    model.save_pretrained(folder)
    return model.eval()


def started(
    path: Path, name: str, model: nn.Module, targets: Sequence[str], heads: Sequence[str], **knobs: Any
) -> Variant:
    knobs = knobs if "rank" in VARIANTS[name].load().config_class.model_fields else {}
    variant = attached(name, model, targets=targets, heads=heads, configs=[VARIANTS[name].load().config_class(**knobs)])
    start(path).put_into(variant)
    return variant


def start(path: Path, alpha: float | None = None) -> StartingPoint:
    found = read_start(StartConfig(path=str(path), alpha=alpha))
    assert found is not None
    return found


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=TOKENS).logits
    return found


@pytest.mark.filterwarnings("ignore:Adapter .* invalid shape")
@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_a_folder_saved_by_peft_gives_the_same_logits_in_every_variant(
    tmp_path: Path, case: str, form: str, name: str
) -> None:
    build, _, targets, skipped, heads = CASES[case]
    theirs = saved_by_peft(tmp_path, case, form)
    rank = {"*": 8, skipped: 8 if "slices" in case else 0}
    ours = started(tmp_path, name, build(), targets, heads, rank=rank, alpha=5.0)
    torch.testing.assert_close(logits(ours.model), logits(theirs), rtol=1e-5, atol=1e-5)
    assert (logits(theirs) - logits(build())).abs().max() > 1e-2


@pytest.mark.parametrize("name", EVERY)
def test_a_loralib_checkpoint_gives_the_same_outputs_in_every_variant(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    theirs = nn.ModuleDict({"query": loralib.Linear(12, 10, r=4, lora_alpha=6), "out": nn.Linear(10, 3)})
    nn.init.normal_(theirs["query"].lora_B)
    torch.save({"model_state_dict": loralib.lora_state_dict(theirs)}, tmp_path / "lora.ckpt")
    base = nn.ModuleDict({"query": nn.Linear(12, 10), "out": nn.Linear(10, 3)})
    base.load_state_dict(theirs.state_dict(), strict=False)  # not in eval: there loralib has merged ΔW into it
    knobs = HIGH if name in ADAPTERS else {}
    variant = attached(name, base, targets=["query"], heads=[], configs=[VARIANTS[name].load().config_class(**knobs)])
    start(tmp_path / "lora.ckpt", alpha=6.0).put_into(variant)
    x = torch.randn(5, 12, generator=stream(1))
    expected = theirs["query"](x)
    torch.testing.assert_close(base["query"](x), expected, rtol=1e-5, atol=1e-5)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.outer, self.head = nn.Linear(16, 24), nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.outer(torch.tanh(self.inner(x)))))


X = torch.randn(5, 16, generator=stream(3))


def ours(
    name: str,
    *,
    heads: Sequence[str] = ("head",),
    seed: int = 3,
    targets: Sequence[str] = ("inner", "outer"),
    **knobs: Any,
) -> Variant:
    config = VARIANTS[name].load().config_class(**knobs)
    return attached(name, Two(), targets=targets, heads=heads, configs=[config], seeds=[seed])


def learned(name: str, *, seed: int = 3, **knobs: Any) -> Variant:
    """A variant after random changes to all that trains."""
    variant = ours(name, seed=seed, **knobs)
    for tensor in variant.trained_tensors(0).values():
        tensor += torch.randn(tensor.shape, generator=stream(4)) * 0.2
    return variant


def saved(variant: Variant, folder: Path) -> Path:
    """A finished run's folder, as far as it is read."""
    folder.mkdir()
    save_update(variant, 0, folder, ModelCard(), base_sha256="0" * 64)
    (folder / "config.yaml").write_text("")
    (folder / "result.json").write_text("{}")
    return folder


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("source", [*EVERY, "head"])
def test_every_variant_starts_from_what_every_variant_left(tmp_path: Path, source: str, name: str) -> None:
    knobs = {"rank": {"inner": 4, "outer": 2}, "alpha": 3.0} if source in ADAPTERS else {}
    before = learned(source, **knobs)
    folder = saved(before, tmp_path / "run")
    if source == "full_all" and name != "full_all":
        with pytest.raises(ValueError, match=r"updates of inner.bias, outer.bias, which this run does not adapt"):
            start(folder).put_into(ours(name, rank=16) if name in ADAPTERS else ours(name))
        return
    after = ours(name, rank=16, alpha=7.0) if name in ADAPTERS else ours(name)
    fresh = after.model(X).detach()
    start(folder).put_into(after)
    torch.testing.assert_close(after.model(X), before.model(X), rtol=1e-5, atol=1e-5)
    assert (after.model(X) - fresh).abs().max() > 1e-2


RANKS = {"inner": 7, "outer": 3}


@pytest.mark.parametrize("written_by", ["us", "peft"])
@pytest.mark.parametrize("name", ["lora", "rslora", "lora_plus"])
def test_at_equal_rank_and_alpha_a_and_b_are_the_very_same_numbers(tmp_path: Path, name: str, written_by: str) -> None:
    knobs: dict[str, Any] = {"rank": RANKS, "alpha": 4.7}
    before = learned(name, **knobs)
    after = ours(name, seed=9, **knobs)
    folder = saved(before, tmp_path / "run")
    if written_by == "peft":  # alpha as it was given, not as float32 keeps alpha / r
        alphas = {
            path: knobs["alpha"] * rank**0.5 if name == "rslora" else knobs["alpha"] for path, rank in RANKS.items()
        }
        changed(folder, lambda config: config | {"alpha_pattern": alphas})
    start(folder).put_into(after)
    expected = before.trained_tensors(0)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in after.trained_tensors(0).items())


def test_adalora_goes_on_from_its_own_folder_with_its_own_triplets(tmp_path: Path) -> None:
    before = learned("adalora", rank=4, initial_rank=6, alpha=2.0)
    folder = saved(before, tmp_path / "run")
    after = ours("adalora", seed=9, rank=3, initial_rank=6, alpha=6.0)
    start(folder / "adalora").put_into(after)
    for name, layer in after.layers.items():
        theirs, found = before.layers[name].parts(0), layer.parts(0)
        assert torch.equal(found["P"], theirs["P"])
        assert torch.equal(found["Q"], theirs["Q"])
        torch.testing.assert_close(found["Lambda"], theirs["Lambda"] * (2.0 / 4) / (6.0 / 3))


def test_adalora_starts_from_plain_lora_with_orthonormal_directions_and_sorted_values(tmp_path: Path) -> None:
    before = learned("lora", rank=4, alpha=3.0)
    after = ours("adalora", rank=4, initial_rank=6, orthogonality=1.0)
    start(saved(before, tmp_path / "run")).put_into(after)
    for name, layer in after.layers.items():
        parts, update = layer.parts(0), before.deltas(0)[name]
        assert isinstance(update, Factors)
        P, Q, values = parts["P"][:, :4], parts["Q"][:4], parts["Lambda"][:4] * layer.scales()[0]
        torch.testing.assert_close(P.mT @ P, torch.eye(4), rtol=0, atol=1e-6)
        torch.testing.assert_close(Q @ Q.mT, torch.eye(4), rtol=0, atol=1e-6)
        torch.testing.assert_close(values, torch.linalg.svdvals(update.product())[:4], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ADAPTERS)
def test_what_a_lower_rank_leaves_free_is_fresh_and_changes_nothing(tmp_path: Path, name: str) -> None:
    folder = saved(learned("lora", seed=9, rank=2, targets=["inner"]), tmp_path / "run")
    knobs = {"rank": 5, "initial_rank": 5} if name == "adalora" else {"rank": 5}
    fresh, after = ours(name, **knobs), ours(name, **knobs)
    start(folder).put_into(after)
    drawn, silent = (("P", "Q"), "Lambda") if name == "adalora" else (("A",), "B")
    axis = {"P": 1, "Q": 0, "A": 0, "B": 1, "Lambda": 0}
    for key in drawn:
        left, there = (v.layers["inner"].parts(0)[key].narrow(axis[key], 2, 3) for v in (fresh, after))
        assert torch.equal(left, there)
    assert not after.layers["inner"].parts(0)[silent].narrow(axis[silent], 2, 3).any()
    assert after.layers["inner"].parts(0)[silent].narrow(axis[silent], 0, 2).all()
    for key, part in after.layers["outer"].parts(0).items():  # the adapter has nothing for it
        assert torch.equal(part, fresh.layers["outer"].parts(0)[key])


@pytest.mark.parametrize("name", [*ADAPTERS, "full"])
def test_one_trial_of_a_pack_starts_and_the_others_are_as_they_were(tmp_path: Path, name: str) -> None:
    before = learned("lora", rank=2, alpha=3.0)
    folder = saved(before, tmp_path / "run")
    made = VARIANTS[name].load().config_class
    configs = [made(rank=rank) if name in ADAPTERS else made() for rank in (2, 9)]
    pack = attached(name, Two(), targets=["inner", "outer"], heads=["head"], configs=configs)
    first = pack.trial_state(0)
    start(folder).put_into(pack, trial=1)
    assert all(torch.equal(value, first[key]) for key, value in pack.trial_state(0).items())
    for layer, update in pack.deltas(1).items():
        expected = as_dense(before.deltas(0)[layer])
        torch.testing.assert_close(as_dense(update).double(), expected.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["full", "full_all", "lora"])
@pytest.mark.parametrize("build", [bert, gpt2])
def test_the_way_out_for_dora_is_merged_minus_base_weights(
    tmp_path: Path, build: Callable[[], nn.Module], name: str
) -> None:
    targets = ["value"] if build is bert else ["c_attn"]
    config = peft.LoraConfig(r=2, use_dora=True, target_modules=targets, fan_in_fan_out=build is gpt2)
    theirs = peft.get_peft_model(build(), config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter += torch.randn(parameter.shape, generator=stream(5)) * 0.4
    theirs.save_pretrained(tmp_path)
    merged, base = theirs.merge_and_unload(), build().state_dict()
    variant = attached(
        name, build(), targets=[f"*.{targets[0]}"], heads=(), configs=[VARIANTS[name].load().config_class()]
    )
    assert "was made with DoRA: save merged minus base weights" in refusal(tmp_path, variant)
    changes = {
        key: value - base[key] for key, value in merged.state_dict().items() if key in dict(merged.named_parameters())
    }
    save_file({key: change.contiguous() for key, change in changes.items() if change.any()}, tmp_path / DELTA)
    if name == "lora":  # the rescaled W0 is in ΔW, so its rank is full
        assert "an update of rank 32 does not fit into rank 16" in refusal(tmp_path, variant)
        return
    start(tmp_path).put_into(variant)
    torch.testing.assert_close(logits(variant.model), logits(merged), rtol=1e-5, atol=1e-5)
    assert (logits(merged) - logits(build())).abs().max() > 1e-3


def test_a_delta_beside_dora_s_factors_is_the_update_and_the_heads_beside_them_are_taken(tmp_path: Path) -> None:
    before = learned("full")
    folder = changed(saved(learned("lora", rank=2), tmp_path / "run"), lambda config: config | {"use_dora": True})
    save_file({f"{name}.weight": as_dense(update) for name, update in before.deltas(0).items()}, folder / DELTA)
    after = ours("full", seed=9)
    start(folder).put_into(after)
    torch.testing.assert_close(after.model(X), before.model(X), rtol=1e-5, atol=1e-5)


def test_forms_change_and_the_update_does_not() -> None:
    generator = stream(7)
    left, right = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((9, 3), (3, 6)))
    factors = Factors(left, right, 0.7)
    dense = 0.7 * left @ right
    triplets = as_triplets(factors)
    for form in (factors, triplets, triplets.folded(), as_triplets(dense), dense):
        torch.testing.assert_close(as_dense(form), dense, rtol=1e-12, atol=1e-12)
    assert len(as_triplets(dense).Lambda) == 3
    assert len(as_triplets(Factors(left * 0, right, 0.7)).Lambda) == 3


def refusal(path: Path, variant: Variant, alpha: float | None = None) -> str:
    """The message, and that nothing was changed."""
    before = variant.trial_state(0)
    with pytest.raises(RunStoreError) as refused:
        start(path, alpha).put_into(variant)
    assert all(torch.equal(value, before[key]) for key, value in variant.trial_state(0).items())
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.mark.parametrize("source", ["lora", "full"])
def test_a_higher_rank_is_refused_with_the_ranks_to_set(tmp_path: Path, source: str) -> None:
    knobs = {"rank": {"inner": 4, "outer": 9}} if source == "lora" else {}
    folder = saved(learned(source, **knobs), tmp_path / "run")
    inner, outer = (4, 9) if source == "lora" else (16, 16)
    wide = {"*": 5, "outer": 9} if source == "lora" else {"*": 5, "inner": 16, "outer": 16}
    said = refusal(folder, ours("lora", rank=5))
    rules = ", ".join(f'"{pattern}": {rank}' for pattern, rank in wide.items())
    assert said.endswith(f"set rank={{{rules}}}")
    start(folder).put_into(ours("lora", rank=json.loads(said.partition("rank=")[2])))
    said = refusal(folder, ours("rslora", rank={"inner": inner, "outer": 2}))
    assert said.endswith(f'set rank={{"inner": {inner}, "outer": {outer}}}')
    said = refusal(folder, ours("adalora", rank={"inner": 3, "outer": 2}))
    assert said.endswith(f"set initial_rank={max(inner, outer)}")


def test_layers_that_the_targets_do_not_name_are_refused_by_name(tmp_path: Path) -> None:
    folder = saved(learned("lora", rank=2), tmp_path / "run")
    for variant in (ours("lora", rank={"inner": 0, "outer": 4}), ours("full", targets=["outer"]), ours("head")):
        assert "there are updates of inner" in refusal(folder, variant)


@pytest.mark.parametrize("name", ["lora", "full", "full_all"])
def test_the_shape_of_an_update_must_be_the_layer_s(tmp_path: Path, name: str) -> None:
    folder = saved(learned("lora", rank=2, heads=()), tmp_path / "run")
    tensors = load_file(folder / "adapter_model.safetensors")
    key = "base_model.model.inner.lora_B.weight"
    save_file(tensors | {key: tensors[key][:20].contiguous()}, folder / "adapter_model.safetensors")
    assert "the update of inner is 20 x 16, this model's is 24 x 16" in refusal(folder, ours(name))


@pytest.mark.parametrize("name", ["lora", "full_all", "head"])
def test_heads_are_taken_where_the_task_has_them_and_refused_where_not(tmp_path: Path, name: str) -> None:
    folder = saved(learned("head"), tmp_path / "run")
    after = ours(name, seed=9)
    start(folder).put_into(after)
    assert torch.equal(after.heads["head"].weight, learned("head").heads["head"].weight)
    if name != "head":
        assert "other than the updates, head.bias, head.weight, that are no head" in refusal(
            folder, ours(name, heads=())
        )
    save_file({"head.weight": torch.ones(4, 16)}, folder / "head.safetensors")
    assert "the head head.weight is 4 x 16, this model's is 3 x 16" in refusal(folder, ours(name))


def test_a_slice_s_update_in_a_whole_module_needs_all_the_rows_it_changes(tmp_path: Path) -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.c_attn = nn.Linear(8, 24)

    def on(*targets: str, rank: int = 2) -> Variant:
        config = VARIANTS["lora"].load().config_class(rank=rank)
        return attached("lora", Fused(), targets=targets, heads=(), configs=[config])

    before = on("c_attn[1/3]", "c_attn[3/3]")
    for tensor in before.trained_tensors(0).values():
        tensor += torch.randn(tensor.shape, generator=stream(4))
    folder = saved(before, tmp_path / "run")
    after = on("c_attn[1/3]", "c_attn[3/3]")
    start(folder).put_into(after)
    for name, update in after.deltas(0).items():
        torch.testing.assert_close(as_dense(update), as_dense(before.deltas(0)[name]), rtol=1e-6, atol=1e-6)
    whole = on("c_attn", rank=4)
    start(folder).put_into(whole)
    torch.testing.assert_close(whole.merge().c_attn.weight, before.merge().c_attn.weight, rtol=1e-5, atol=1e-5)
    assert "changes rows other than those of c_attn[1/3]" in refusal(folder, on("c_attn[1/3]"))


def loralib_file(folder: Path, **more: Tensor) -> Path:
    torch.save({"inner.lora_A": torch.ones(2, 16), "inner.lora_B": torch.ones(24, 2), **more}, folder / "lora.pt")
    return folder / "lora.pt"


def test_loralib_needs_its_alpha_and_nothing_else_takes_one(tmp_path: Path) -> None:
    path = loralib_file(tmp_path)
    assert "does not hold its scale alpha / r; give the alpha" in refusal(path, ours("lora", rank=2))
    folder = saved(learned("lora", rank=2), tmp_path / "run")
    assert "holds its own scale; leave start.alpha out" in refusal(folder, ours("lora", rank=2), alpha=3.0)
    variant = ours("lora", rank=2)
    start(path, alpha=3.0).put_into(variant)
    torch.testing.assert_close(as_dense(variant.deltas(0)["inner"]), torch.full((24, 16), 3.0).double())


def test_a_loralib_file_with_biases_is_refused(tmp_path: Path) -> None:
    path = loralib_file(tmp_path, **{"inner.bias": torch.ones(24)})
    assert "inner.bias, that are no head of this task; its heads are: head.bias, head.weight" in refusal(
        path, ours("lora", rank=2), alpha=1.0
    )


def test_what_is_not_finite_or_empty_is_refused(tmp_path: Path) -> None:
    broken = learned("lora", rank=2)
    broken.trained_tensors(0)["outer/B"][0, 0] = float("nan")
    said = refusal(saved(broken, tmp_path / "nan"), ours("lora", rank=2))
    assert "outer is not finite: its training diverged" in said
    empty = saved(ours("head", heads=()), tmp_path / "empty")
    assert "neither an update nor a head" in refusal(empty, ours("lora", rank=2))


def changed(folder: Path, change: Callable[[dict[str, Any]], Mapping[str, Any]]) -> Path:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(change(config)))
    return folder


def test_the_content_hash_is_that_of_what_the_adapter_means(tmp_path: Path) -> None:
    first = start(saved(learned("lora", rank=2), tmp_path / "a"))
    moved = changed(saved(learned("lora", rank=2), tmp_path / "b"), lambda config: config | {"lora_dropout": 0.5})
    assert start(moved).sha256 == first.sha256
    louder = changed(moved, lambda c: c | {"alpha_pattern": {k: 2 * a for k, a in c["alpha_pattern"].items()}})
    assert start(louder).sha256 != first.sha256
    assert start(loralib_file(tmp_path), 1.0).sha256 != start(loralib_file(tmp_path), 2.0).sha256
