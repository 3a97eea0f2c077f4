"""A loop of one's own: torch's optimizers, penalties and hooks serve every variant alike."""

import runpy
from typing import Any

import pytest
import torch
from models import ADAPTERS, ALONE, KINDS, Regression, attached, built, inputs, knobs, trained, variant_on
from project_paths import ROOT
from torch import Tensor

from lora_variants import VARIANTS
from lora_variants.interface.pack import Pack
from lora_variants.interface.variant import Variant

EXAMPLE = ROOT / "examples" / "own_model.py"
every_variant = pytest.mark.parametrize("name", VARIANTS)


@every_variant
def test_the_example_runs_with_every_variant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [str(EXAMPLE), "--variant", name])
    seen = runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert seen["variant"].pack.steps == [100]
    if name in ADAPTERS:
        assert sum(ranks[0] for ranks in seen["variant"].ranks_alive().values()) == 4 * 6  # the budget, exactly


def test_the_readmes_snippet_is_the_example_with_a_name_in_place_of_the_argument() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    snippet = readme.partition("## Your own model")[2].partition("```python\n")[2].partition("```")[0]
    lines = [line for line in snippet.splitlines() if not line.startswith("name = ")]
    left = iter(EXAMPLE.read_text(encoding="utf-8").splitlines())
    assert len(lines) > 20
    assert [line for line in lines if line not in left] == []  # each of them, in this order


def with_torchs_optimizer(variant: Variant, *, steps: int, learning_rate: float, weight_decay: float) -> None:
    """What `trained` does to a pack of one without clipping and at a falling rate, in a loop of one's own."""
    task = Regression()
    optimizer = torch.optim.AdamW(variant.torch_groups(learning_rate, weight_decay))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    for _, batch in zip(range(steps), task.training_batches(variant.pack.seeds[0], 4), strict=False):
        loss = task.row_losses(variant.model.train(), batch).sum() / task.row_counts(batch).sum()
        (loss + variant.penalty().sum()).backward()
        with variant.optimizer_step():
            optimizer.step()
        schedule.step()
        optimizer.zero_grad()


@every_variant
def test_torchs_adamw_over_the_groups_trains_what_the_training_loop_trains(name: str) -> None:
    """LoRA+'s ratio, vectors without weight decay, dropout and AdaLoRA's budget are in it."""
    ours, theirs = (variant_on(name, "linear", ranks=(2,), dropout=0.2, learning_rate_ratio=16.0) for _ in range(2))
    wanted: dict[str, Any] = {"steps": 10, "learning_rate": 1e-2, "weight_decay": 0.1}
    trained(ours, **wanted, lr_schedule="linear", max_grad_norm=None)
    with_torchs_optimizer(theirs, **wanted)
    expected, found = ours.trial_state(0), theirs.trial_state(0)
    assert theirs.pack.steps == ours.pack.steps == [10]
    assert found.keys() == expected.keys()
    for key in expected:
        torch.testing.assert_close(found[key], expected[key], rtol=1e-9, atol=1e-12, msg=key)


def test_the_groups_for_torch_say_role_rate_and_weight_decay_of_every_trained_parameter() -> None:
    variant = variant_on("lora_plus", "linear", ranks=(2,), learning_rate_ratio=16.0)
    variant.head_rates = (0.5,)
    groups = variant.torch_groups(0.01, 0.1)
    found = {(group["role"], group["lr"], group["weight_decay"]) for group in groups}
    assert found == {("A", 0.01, 0.1), ("B", 0.16, 0.1), ("head", 0.5, 0.1), ("head", 0.5, 0.0)}
    needed = {id(p) for p in variant.model.parameters() if p.requires_grad}
    assert {id(p) for group in groups for p in group["params"]} == needed


def test_a_pack_of_different_rates_is_refused_and_one_of_equal_rates_is_not() -> None:
    def groups(ratios: list[float]) -> list[dict[str, Any]]:
        configs = [knobs("lora", rank=2, learning_rate_ratio=ratio) for ratio in ratios]
        return attached("lora", built("linear"), configs=configs).torch_groups(0.01)

    assert {group["lr"] for group in groups([4.0, 4.0])} == {0.01, 0.04}
    with pytest.raises(
        ValueError, match=r"one learning rate .* group 'B' have 0.01, 0.04: train each of them as a pack"
    ):
        groups([1.0, 4.0])


@every_variant
def test_the_penalty_is_a_tensor_over_trials_on_which_only_a_method_with_one_has_a_gradient(name: str) -> None:
    variant = variant_on(name, "linear", ranks=(2, 3))
    penalty = variant.penalty()
    assert penalty.shape == (variant.pack.trials,)
    assert penalty.dtype == torch.float64
    assert penalty.requires_grad == bool(penalty.any()) == (name == "adalora")


def test_without_anything_adapted_the_penalty_is_zero_too() -> None:
    variant = variant_on("adalora", "linear", ranks=(0,))
    assert not variant.layers
    assert variant.penalty().tolist() == [0.0]


def test_around_an_optimizers_step_the_hooks_are_called_and_the_step_counts_for_trials_that_run() -> None:
    heard: list[tuple[str, list[int]]] = []

    class Listening(VARIANTS["lora"].load()):  # type: ignore[misc]
        def before_step(self) -> None:
            heard.append(("before", list(self.pack.steps)))

        def after_step(self) -> None:
            heard.append(("after", list(self.pack.steps)))

    variant = Listening(built("linear"), Pack(seeds=(0, 1), total_steps=(5, 5), running=[True, False]), [])
    with variant.optimizer_step():
        heard.append(("step", list(variant.pack.steps)))
    assert heard == [("before", [0, 0]), ("step", [0, 0]), ("after", [1, 0])]


# Precision of full_all


def outputs_by_position_and_by_name(model: torch.nn.Module, x: Tensor) -> list[Tensor]:
    return [model(x), model(x=x)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_full_all_trains_a_model_in_16_bits_from_inputs_in_16_bits(kind: str, dtype: torch.dtype) -> None:
    (name,) = ALONE
    model, x = built(kind).to(dtype), inputs(1).to(dtype)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    variant = attached(name, model, targets=KINDS[kind].targets, heads=(), configs=[knobs(name)])
    assert [out.dtype for out in outputs_by_position_and_by_name(model, x)] == [torch.float32] * 2
    optimizer = torch.optim.AdamW(variant.torch_groups(1e-5))  # steps that 16 bits would round away
    losses = []
    for _ in range(5):
        loss = model(x).square().mean()
        loss.backward()
        losses.append(loss.item())
        with variant.optimizer_step():
            optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0]
    with variant.disabled():
        assert model(x).dtype == dtype
    variant.detach()
    assert model(x).dtype == dtype
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_full_all_with_a_head_merges_a_model_in_16_bits_into_one_that_computes_the_same(dtype: torch.dtype) -> None:
    model, x = (
        torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 4)).to(dtype),
        torch.randn(3, 8, dtype=dtype),
    )
    variant = attached("full_all", model, heads=("1",), configs=[knobs("full_all")])
    adapted = model(x)
    assert adapted.dtype == torch.float32
    torch.testing.assert_close(variant.merge()(x), adapted)  # to float32's rounding, not to that of 16 bits
    assert torch.equal(variant.unmerge()(x), adapted)
    assert variant.detach()(x).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_all_leaves_the_inputs_of_a_wider_model_alone(dtype: torch.dtype) -> None:
    model, x = built("linear").to(dtype), inputs(1)
    attached("full_all", model, configs=[knobs("full_all")])
    assert model(x.to(dtype)).dtype == dtype
    with pytest.raises(RuntimeError, match="dtype"):  # as without full_all
        model(x.bfloat16())
