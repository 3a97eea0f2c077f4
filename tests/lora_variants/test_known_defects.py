"""Defects found in other implementations of these methods, one by one, and that ours does not have them."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from models import train
from pydantic import ValidationError
from torch import Tensor, nn

from experiments.tasks.task import Batch, Split, Task, TaskConfig
from experiments.training.evaluation import evaluate
from experiments.training.hyperparameters import SharedHyperparameters, TrialHyperparameters
from experiments.training.optimizer import AdamW
from lora_variants import VARIANTS
from lora_variants.adalora.adalora import AdaLoRA
from lora_variants.adalora.config import AdaLoRAConfig
from lora_variants.interface.attach import attach
from lora_variants.interface.layer import Factors
from lora_variants.interface.pack import Pack
from lora_variants.interface.ranks import RankWarning
from lora_variants.interface.rng import stream
from lora_variants.interface.variant import Variant

ROWS, WIDTH = 8, 48
ADAPTERS = ("lora", "rslora", "lora_plus", "adalora")
SHARED = SharedHyperparameters(steps=20, batch_size=ROWS)


class Model(nn.Module):
    """Two matrices with biases and a head; where asked, a layer that no input ever reaches."""

    def __init__(self, *, unused: bool = False) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, 40), nn.Linear(40, 32)
        self.head = nn.Linear(32, 3)
        if unused:
            self.expert = nn.Linear(WIDTH, 40)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.outer(torch.tanh(self.inner(x)))))


class Classification(Task):
    """Three classes, drawn from a fixed random map of the input."""

    score_name: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False
    head_modules = ("head",)

    def __init__(self) -> None:
        super().__init__(TaskConfig(name="classification"))
        self.truth = torch.randn(WIDTH, 3, generator=stream(0, "truth"))

    def data_sha256(self) -> dict[str, str]:
        return {}

    def architecture(self) -> nn.Module:
        return Model()

    def base_model(self, report: Any = None) -> nn.Module:
        torch.manual_seed(0)
        return Model()

    def training_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        generator = stream(seed, "data")
        while True:
            x = torch.randn(batch_size, WIDTH, generator=generator)
            yield {"x": x, "label": (x @ self.truth).argmax(dim=1)}

    def evaluation_batches(self, split: Split) -> Iterator[Batch]:
        yield next(self.training_batches(99, 64))

    def row_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return F.cross_entropy(model(batch["x"]), batch["label"], reduction="none")

    def row_counts(self, batch: Batch) -> Tensor:
        return torch.ones(len(batch["x"]))

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        return dict(means)


def model(*, unused: bool = False, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return Model(unused=unused).to(dtype)


def attached(name: str, base: nn.Module | None = None, *, heads: bool = True, steps: int = 20, **knobs: Any) -> Variant:
    entry = VARIANTS[name].load()
    pack = Pack(seeds=(3,), total_steps=(steps,), rows=ROWS)
    base = base or model()
    targets = [path for path, _ in base.named_children() if path != "head"]
    configs, head_modules = [entry.config_class(**knobs)], ["head"] if heads else []
    return attach(entry, base, targets=targets, head_modules=head_modules, pack=pack, configs=configs)


def trained(
    variant: Variant, *, rate: float = 2e-2, shared: SharedHyperparameters = SHARED
) -> list[dict[str, list[float]]]:
    """Metrics of every step."""
    heard: list[dict[str, list[float]]] = []
    trials = [TrialHyperparameters(seed=3, learning_rate=rate)]
    (outcome,) = train(variant, Classification(), trials, shared, on_step=lambda _, m: heard.append(m))
    assert outcome.failure is None
    assert len(heard) == shared.steps
    return heard


def update_norms(variant: Variant) -> dict[str, float]:
    updates = variant.deltas(0)
    assert all(isinstance(update, Factors) for update in updates.values())
    return {name: float(update.product().norm()) for name, update in updates.items()}  # type: ignore[union-attr]


def test_equal_initial_and_target_ranks_train_and_a_lower_initial_rank_is_refused_before_anything_runs() -> None:
    """Elsewhere both pass the configuration and crash at the first pruning."""
    variant = attached("adalora", rank=4, initial_rank=4, prune_every=1)
    trained(variant)
    assert variant.ranks_alive() == {"inner": [4], "outer": [4]}
    for rank in (5, {"inner": 2, "outer": 5}):
        with pytest.raises(ValidationError, match="initial_rank 4 is below rank 5"):
            AdaLoRAConfig(rank=rank, initial_rank=4)


def test_the_orthogonality_penalty_is_in_no_evaluation_and_no_loss_with_adapters_disabled() -> None:
    """Elsewhere it is added to every loss that the model returns, whatever that loss is for."""
    task = Classification()
    scores = []
    for gamma in (0.0, 100.0):
        variant = attached("adalora", rank=4, orthogonality=gamma)
        scores.append(evaluate(variant, task, "validation", "float32"))
        batch = next(task.evaluation_batches("validation"))
        loss = F.cross_entropy(variant.model(batch["x"]), batch["label"])
        assert scores[-1] == [{"loss": pytest.approx(float(loss.detach()), rel=1e-6)}]
        with variant.disabled():
            scores.append(evaluate(variant, task, "validation", "float32"))
    assert scores == [scores[0]] * 4  # Λ is zero at the start: enabled and disabled are the same function

    variant = attached("adalora", rank=4, orthogonality=0.1)
    base = model()
    base.head = variant.heads["head"]
    trained(variant)
    with variant.disabled():
        assert torch.equal(variant.model(batch["x"]), base(batch["x"]))


def test_task_loss_and_penalty_are_told_apart_and_a_loop_of_ones_own_gets_the_penalty() -> None:
    """Elsewhere a trainer that computes its own loss trains without the penalty, and is not told."""
    steps = SharedHyperparameters(steps=3, batch_size=ROWS)
    variant = attached("adalora", rank=4, orthogonality=0.5, steps=3)
    own = copy.deepcopy(variant)
    heard = trained(variant, shared=steps)

    batches = Classification().training_batches(3, ROWS)
    one = torch.ones(1, dtype=torch.float64)
    optimizer = AdamW(own.parameter_groups(2e-2 * one, 0 * one), trials=1)
    batch = next(batches)
    loss, penalty = F.cross_entropy(own.model(batch["x"]), batch["label"]), own.penalty()
    assert heard[0]["train/task_loss"] == [pytest.approx(float(loss.detach()), rel=1e-6)]
    assert heard[0]["train/penalty"] == [pytest.approx(float(penalty.detach()), rel=1e-6)]
    assert heard[0]["train/penalty"][0] > 1.0
    (loss + penalty.sum()).backward()
    before = float(penalty.detach())
    own.before_step()
    optimizer.step(one, one.bool())
    own.pack.steps[0] += 1
    own.after_step()
    after = own.penalty()
    assert float(after.detach()) < before


@pytest.mark.parametrize("name", [*ADAPTERS, "full", "head", "full_all"])
def test_attach_with_defaults_and_train_is_all_there_is_to_do(name: str) -> None:
    """Elsewhere the documented example of AdaLoRA stops for want of a number of steps."""
    if name in ADAPTERS:
        trains = "rank 24 .* in 2 of 2" if name == "adalora" else "rank 16 .* in 1 of 2"
        with pytest.warns(RankWarning, match=f"{trains} layers"):
            variant = attached(name, small_outer())
    else:
        variant = attached(name, small_outer())
    (before,) = evaluate(variant, Classification(), "validation", "float32")
    trained(variant)
    (after,) = evaluate(variant, Classification(), "validation", "float32")
    assert after["loss"] < before["loss"]


def small_outer() -> nn.Module:
    base = model()
    base.outer, base.head = nn.Linear(40, 16), nn.Linear(16, 3)
    return base


@pytest.mark.parametrize("steps", [10, 40])
def test_the_schedule_of_adalora_comes_from_the_packs_steps(steps: int) -> None:
    """Elsewhere schedules are in absolute steps, given by hand, and break when the run's length changes."""
    variant = attached("adalora", steps=steps, rank=4, initial_rank=10, prune_every=1)
    totals: list[int] = []

    def count(step: int, metrics: dict[str, list[float]]) -> None:
        totals.append(sum(ranks[0] for ranks in variant.ranks_alive().values()))

    trials, shared = (
        [TrialHyperparameters(seed=3, learning_rate=1e-2)],
        SharedHyperparameters(steps=steps, batch_size=ROWS),
    )
    train(variant, Classification(), trials, shared, on_step=count)
    first_below, first_at_target = (next(t for t, n in enumerate(totals, 1) if n <= most) for most in (19, 8))
    assert first_below == steps // 10 + 1
    assert 0.3 < first_at_target / steps <= 0.6
    assert totals[-1] == 8


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_layer_without_a_gradient_stops_no_variant(name: str) -> None:
    """Elsewhere the allocator multiplies weights with a gradient that is None."""
    base = model(unused=True)
    variant = attached(name, base, rank=4)
    before = {key: value.clone() for key, value in variant.trained_tensors(0).items()}
    trained(variant)
    after = variant.trained_tensors(0)
    moved = {key.split("/")[0] for key in after if not torch.equal(before[key], after[key])}
    assert moved - {"expert"} == {"inner", "outer", "head"}
    assert ("expert" in moved) == (name == "adalora")  # by its penalty
    update = variant.deltas(0)["expert"]
    assert isinstance(update, Factors)
    assert not update.product().any()


@pytest.mark.parametrize("name", ADAPTERS)
def test_merging_unmerging_and_disabling_change_no_scale_and_no_update(name: str) -> None:
    """Elsewhere setting and undoing the scale divides by the rank a second time."""
    variant = attached(name, rank={"inner": 4, "outer": 3}, alpha=6.0)
    trained(variant)
    scales, norms, ranks = variant.scales(), update_norms(variant), variant.ranks_alive()
    expected = 6.0 / 4**0.5 if name == "rslora" else 6.0 / 4
    assert scales["inner"] == [pytest.approx(expected)]
    assert all(norm > 0 for norm in norms.values())
    for _ in range(2):
        variant.merge()
        variant.unmerge()
        with variant.disabled():
            variant.model(torch.zeros(ROWS, WIDTH))
            variant.merge()
            variant.unmerge()
        variant.model.eval()
        variant.model.train()
        assert (variant.scales(), update_norms(variant), variant.ranks_alive()) == (scales, norms, ranks)


@pytest.mark.parametrize("name", ADAPTERS)
def test_weight_decay_survives_a_learning_rate_ratio(name: str) -> None:
    """Elsewhere the optimizer of LoRA+ drops the weight decay it is given, and the ratio leaks to 1-D parameters."""
    variant = attached(name, rank=4, learning_rate_ratio=8.0)
    one = torch.ones(1, dtype=torch.float64)
    found = {
        id(parameter): (float(group.rates), float(group.weight_decay))
        for group in variant.parameter_groups(0.01 * one, 0.1 * one)
        for parameter in group.parameters
    }
    trainable = [p for p in variant.model.parameters() if p.requires_grad]
    assert found.keys() == {id(parameter) for parameter in trainable}
    B, A, vector, head = (0.08, 0.1), (0.01, 0.1), (0.01, 0.0), variant.heads["head"]
    expected = {id(head.weight): A, id(head.bias): vector}
    for layer in variant.layers.values():
        expected |= {id(getattr(layer, key)): rate for key, rate in (("A", A), ("B", B)) if hasattr(layer, key)}
        if name == "adalora":
            expected |= {id(layer.P): B, id(layer.Lambda): vector, id(layer.Q): A}
    assert found == {key: pytest.approx(value) for key, value in expected.items()}


def test_lora_plus_has_its_ratio_by_default_and_its_matrices_shrink_by_weight_decay_alone() -> None:
    """With gradients of zero a step is the decay: B by λ times A's rate, biases not at all."""
    variant = attached("lora_plus", rank=4)
    one = torch.ones(1, dtype=torch.float64)
    optimizer = AdamW(variant.parameter_groups(0.01 * one, 0.5 * one), trials=1)
    parameters = {name: p for name, p in variant.model.named_parameters() if p.requires_grad}
    for parameter in parameters.values():
        parameter.detach().fill_(1.0)
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step(one, one.bool())
    expected = {"A": 1 - 0.01 * 0.5, "B": 1 - 16 * 0.01 * 0.5, "weight": 1 - 0.01 * 0.5, "bias": 1.0}
    for name, parameter in parameters.items():
        shrunk = torch.full_like(parameter, expected[name.rpartition(".")[2]])
        torch.testing.assert_close(parameter.detach(), shrunk, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ADAPTERS)
def test_rank_maps_are_checked_rank_0_is_legal_and_each_scale_follows_its_own_rank(name: str) -> None:
    """Elsewhere unmatched patterns and impossible ranks pass, 0 does not, and a pattern changes the scale unseen."""
    with pytest.raises(ValueError, match=r"rank pattern 'innner' matches no targeted layer.*inner, outer"):
        attached(name, rank={"innner": 4, "outer": 2})
    with pytest.raises(ValueError, match=r"rank 33 of outer is above min\(d_out, d_in\) = 32"):
        attached(name, rank={"inner": 4, "outer": 33})
    skipping = attached(name, rank={"*": 0, "outer": 3})
    assert list(skipping.layers) == ["outer"]
    assert type(skipping.model.inner) is nn.Linear
    trained(skipping)

    mixed = attached(name, rank={"inner": 2, "outer": 8}, alpha_per_rank=2.0)
    root = {"inner": 2 * 2**0.5, "outer": 2 * 8**0.5}
    expected = root if name == "rslora" else {"inner": 2.0, "outer": 2.0}
    assert mixed.scales() == {layer: [pytest.approx(scale)] for layer, scale in expected.items()}
    fixed = attached(name, rank={"inner": 2, "outer": 8}, alpha=4.0)
    expected = {"inner": 4 / 2**0.5, "outer": 4 / 8**0.5} if name == "rslora" else {"inner": 2.0, "outer": 0.5}
    assert fixed.scales() == {layer: [pytest.approx(scale)] for layer, scale in expected.items()}


def test_a_refused_rank_leaves_the_model_as_it_was() -> None:
    """Elsewhere a model is half wrapped when the error comes."""
    base = model()
    with pytest.raises(ValueError, match="rank 33"):
        attached("lora", base, rank={"inner": 4, "outer": 33})
    assert [type(part) for part in base.children()] == [nn.Linear] * 3
    assert all(parameter.requires_grad for parameter in base.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["lora", "rslora", "lora_plus", "adalora", "full"])
def test_merging_and_unmerging_leaves_the_base_weights_and_the_outputs_bit_for_bit(
    name: str, dtype: torch.dtype
) -> None:
    """Elsewhere ΔW is added to W0 and subtracted again, which rounds twice."""
    base = model(dtype=dtype)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    owners = dict(base.named_modules())
    knobs: dict[str, Any] = {} if name == "full" else {"rank": 4, "alpha_per_rank": 2.0}
    variant = attached(name, base, heads=False, **knobs)
    for tensor in variant.trained_tensors(0).values():
        tensor.add_(torch.randn(tensor.shape, generator=stream(1)) * 0.3)
    x = torch.randn(ROWS, WIDTH, generator=stream(2)).to(dtype)
    with torch.no_grad():
        adapted = base(x)
        with variant.disabled():
            plain = base(x)
        for _ in range(3):
            merged = variant.merge()(x)
            variant.unmerge()
        close = 1e-5 if dtype == torch.float32 else 5e-2  # bfloat16 keeps 8 bits
        assert (merged - adapted).abs().max() < close < (plain - adapted).abs().max()
        assert torch.equal(base(x), adapted)
        with variant.disabled():
            assert torch.equal(base(x), plain)
    variant.detach()
    assert dict(base.named_modules()) == owners
    assert all(torch.equal(value, before[key]) for key, value in base.state_dict().items())
    assert isinstance(variant, AdaLoRA) == (name == "adalora")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*ADAPTERS, "full"])
def test_a_merge_into_a_narrow_base_is_the_sum_in_float32_rounded_once(name: str, dtype: torch.dtype) -> None:
    """Elsewhere ΔW is rounded to the base's type before it is added, and the sum once more."""
    variant = attached(name, model(dtype=dtype)) if name == "full" else attached(name, model(dtype=dtype), rank=4)
    for tensor in variant.trained_tensors(0).values():
        tensor.add_(torch.randn(tensor.shape, generator=stream(1)) * 0.1)
    base, merged = model(dtype=dtype), variant.merge()
    for layer, update in variant.deltas(0).items():
        before, after = base.get_submodule(layer).weight, merged.get_submodule(layer).weight
        dense = update.product() if isinstance(update, Factors) else update
        assert dense.dtype == torch.float32
        once, twice = (before.float() + dense).to(dtype), before + dense.to(dtype)
        assert torch.equal(after, once)
        assert not torch.equal(after, twice)
    assert list(variant.layers) == ["inner", "outer"]
