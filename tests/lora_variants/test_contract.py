"""What every variant promises on every kind of layer: the contract behind the table of variants."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from models import (
    ADAPTERS,
    ALONE,
    KINDS,
    Regression,
    attached,
    built,
    inputs,
    knobs,
    rows_of,
    train,
    trained,
    variant_on,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.tasks.task import Batch
from experiments.training.hyperparameters import SharedHyperparameters, TrialHyperparameters
from experiments.training.loop import compute_gradients
from lora_variants import VARIANTS
from lora_variants.frozen_model.attention import Attention
from lora_variants.interface.layer import TrialLayer
from lora_variants.interface.sites import SlicedProjection
from lora_variants.interface.variant import Variant

TIGHT = {"rtol": 1e-10, "atol": 1e-10}

every_variant = pytest.mark.parametrize("name", VARIANTS)
every_adapter = pytest.mark.parametrize("name", ADAPTERS)
every_kind = pytest.mark.parametrize("kind", KINDS)


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(now: dict[str, Tensor], before: dict[str, Tensor]) -> None:
    assert now.keys() == before.keys()
    assert [name for name in now if not torch.equal(now[name], before[name])] == []


def own(model: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """The model's own parameters, by the module that holds each."""
    return [(m, key, p) for m in model.modules() for key, p in m.named_parameters(recurse=False)]


def equal_or_near(kind: str) -> dict[str, float]:
    """To the bit where the model's own layer computes; parts of a layer round in an order of their own."""
    return {"rtol": 0, "atol": 0 if KINDS[kind].whole else 1e-12}


# At the start, off, and taken away


@every_kind
@every_variant
def test_at_the_start_a_variant_computes_what_the_model_computed(name: str, kind: str) -> None:
    variant = variant_on(name, kind)
    x = inputs(variant.pack.trials)
    for training in (True, False):
        expected = built(kind).train(training).features(x)
        torch.testing.assert_close(variant.model.train(training).features(x), expected, **equal_or_near(kind))


@every_kind
@every_variant
def test_a_trained_variant_that_is_disabled_computes_what_the_model_computed(name: str, kind: str) -> None:
    variant = variant_on(name, kind)
    trained(variant)
    x, expected = inputs(variant.pack.trials), built(kind)
    adapted = variant.model.features(x)
    with variant.disabled():
        torch.testing.assert_close(variant.model.features(x), expected.features(x), **equal_or_near(kind))
    assert torch.equal(variant.model.features(x), adapted)


@every_kind
@every_variant
def test_detaching_gives_back_the_model_as_it_was(name: str, kind: str) -> None:
    model = built(kind)
    modules, parameters = list(model.modules()), [id(p) for p in model.parameters()]
    variant = attached(
        name,
        model,
        targets=KINDS[kind].targets,
        configs=[knobs(name, rank=2)],
    )
    trained(variant, steps=2)
    assert variant.detach() is model
    assert [id(m) for m in model.modules()] == [id(m) for m in modules]
    assert [id(p) for p in model.parameters()] == parameters
    x, untouched = inputs(1), built(kind)
    with torch.inference_mode():
        assert torch.equal(model.eval()(x), untouched.eval()(x))
    assert all(parameter.requires_grad for parameter in model.parameters())


@every_kind
@every_variant
def test_the_base_is_not_written_to_and_does_not_train(name: str, kind: str) -> None:
    model = built(kind)
    before, base = snapshot(model), own(model)
    trials = 1 if name in ALONE else 2
    variant = attached(name, model, targets=KINDS[kind].targets, configs=[knobs(name, rank=2)] * trials)
    assert not any(parameter.requires_grad for _, _, parameter in base)
    trained(variant)
    variant.merge(trials - 1)
    variant.unmerge()
    variant.detach()
    assert_same(snapshot(model), before)
    assert all(getattr(module, key) is parameter for module, key, parameter in base)
    assert all(parameter.grad is None for _, _, parameter in base)


# Merging


@every_kind
@every_variant
def test_the_merged_model_of_each_trial_is_a_plain_one_with_the_same_outputs(name: str, kind: str) -> None:
    variant = variant_on(name, kind)
    trained(variant)
    trials = variant.pack.trials
    for mode in (True, False):
        variant.model.train(mode)
        for trial in range(trials):
            x = inputs(trials)
            adapted = variant.model(x)
            plain = variant.merge(trial)
            assert not any(isinstance(m, (TrialLayer, SlicedProjection, Attention)) for m in plain.modules())
            torch.testing.assert_close(
                plain(rows_of(trial, x, trials)), rows_of(trial, adapted, trials).detach(), **TIGHT, check_dtype=True
            )
            assert torch.equal(variant.unmerge()(x), adapted)


@every_kind
@every_variant
def test_w0_plus_the_delta_of_a_trial_is_its_merged_weight(name: str, kind: str) -> None:
    variant = variant_on(name, kind)
    trained(variant)
    for trial in range(variant.pack.trials):
        assert variant.deltas(trial).keys() == variant.layers.keys() or name in ALONE
        for path, layer in variant.layers.items():
            delta = variant.deltas(trial)[path]
            dense = delta if isinstance(delta, Tensor) else delta.product()
            assert float(dense.abs().max()) > 0
            torch.testing.assert_close(layer.base.base_weight() + dense, layer.merged_weight(trial), **TIGHT)


# What trains


@every_kind
@every_variant
def test_every_trained_tensor_of_every_trial_has_moved_after_three_steps(name: str, kind: str) -> None:
    variant = variant_on(name, kind, initial_fraction=0.9, final_fraction=0.1)  # no pruning within three steps
    before = [
        {key: part.clone() for key, part in variant.trained_tensors(trial).items()}
        for trial in range(variant.pack.trials)
    ]
    trained(variant, steps=3)
    for trial, start in enumerate(before):
        still = [key for key, part in variant.trained_tensors(trial).items() if torch.equal(part, start[key])]
        assert still == []
        factors = [k for k, p in variant.trained_tensors(trial).items() if k.endswith(("/A", "/B", "/P", "/Q", "/W"))]
        for key in factors:
            now = variant.trained_tensors(trial)[key]
            assert bool((now != start[key]).all()), f"{key} has moved in part"


@every_kind
@every_variant
def test_each_trained_parameter_is_in_one_group_and_nothing_else_is(name: str, kind: str) -> None:
    variant = variant_on(name, kind)
    rates, decay = torch.full((2, variant.pack.trials), 0.1, dtype=torch.float64)
    groups = variant.parameter_groups(rates, decay)
    grouped = [id(parameter) for group in groups for parameter in group.parameters]
    training = [id(p) for p in variant.model.parameters() if p.requires_grad]
    assert sorted(grouped) == sorted(training)
    assert len(set(grouped)) == len(grouped) > 0
    counted = {trial: variant.trainable_parameters(trial) for trial in range(variant.pack.trials)}
    for trial, count in counted.items():
        assert count == sum(part.numel() for part in variant.trained_tensors(trial).values())


@every_kind
@every_adapter
def test_padding_stays_zero_under_weight_decay_and_clipping(name: str, kind: str) -> None:
    variant = variant_on(name, kind, alpha=8.0)
    trained(variant, steps=10, weight_decay=0.3, max_grad_norm=0.05)
    for layer in variant.layers.values():
        for key, tensor in layer.trained.items():
            for trial in range(variant.pack.trials):
                own_rank, whole = layer.unpadded(trial), getattr(layer, key).detach()[trial]
                padding = whole.narrow(tensor.rank_axis, own_rank, whole.shape[tensor.rank_axis] - own_rank)
                assert padding.numel() > 0
                assert torch.equal(padding, torch.zeros_like(padding)), key


@every_variant
def test_the_length_of_the_rank_axis_is_told_of_layers_with_factors_and_of_no_others(name: str) -> None:
    padded = {"first": 8, "second": 8} if name in ADAPTERS else {}
    assert variant_on(name, "linear").rank_padded_to() == padded


# Nothing is bypassed, and nothing reaches another trial


@every_kind
@every_variant
def test_an_update_of_any_layer_changes_its_trials_outputs_in_every_mode_and_no_other_trials(
    name: str, kind: str
) -> None:
    variant = variant_on(name, kind)
    trials, model = variant.pack.trials, variant.model
    x, last = inputs(trials), variant.pack.trials - 1
    by_layer: dict[str, list[Tensor]] = {}
    for key, part in variant.trained_tensors(last).items():
        by_layer.setdefault(key.rpartition("/")[0] or key, []).append(part)
    assert name in ALONE or by_layer.keys() == variant.layers.keys() | variant.heads.keys()
    for layer, parts in by_layer.items():
        before = outputs_by_mode(model, x)
        kept = [part.clone() for part in parts]
        for part in parts:
            part.add_(torch.rand_like(part) + 0.5)
        for mode, after in outputs_by_mode(model, x).items():
            change = (after - before[mode]).abs().flatten(1).amax(1).chunk(trials)
            assert float(change[last].min()) > 1e-6, f"{layer} is bypassed in {mode}"
            assert not any(bool(others.any()) for others in change[:last]), f"{layer} leaks in {mode}"
        for part, old in zip(parts, kept, strict=True):
            part.copy_(old)


def outputs_by_mode(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    outputs = {"train": model.train()(x).detach()}
    model.eval()
    outputs["eval"] = model(x).detach()
    with torch.no_grad():
        outputs["no_grad"] = model(x)
    with torch.inference_mode():
        outputs["inference_mode"] = model(x)
    return outputs


# Rank 0


@every_adapter
def test_a_layer_of_rank_0_for_all_trials_is_left_alone(name: str) -> None:
    model = built("linear")
    first = model.first
    variant = attached(name, model, configs=[knobs(name, rank={"*": 2, "first": 0}), knobs(name, rank={"second": 3})])
    assert model.first is first
    assert variant.layers.keys() == {"second"}
    nothing = attached(name, built("linear"), configs=[knobs(name, rank=0)] * 2)
    assert nothing.layers == {}
    assert [outcome.failure for outcome in trained(nothing)] == [None, None]


@pytest.mark.parametrize("form", ["frobenius", "squared_sum"])
@every_kind
@every_adapter
def test_a_layer_of_rank_0_for_one_trial_computes_w0_for_it_and_its_gradients_are_zero(
    name: str, kind: str, form: str
) -> None:
    variant = variant_on(name, kind, ranks=(2, 0), alpha=4.0, orthogonality_norm=form)
    assert [o.failure for o in trained(variant)] == [None, None]
    task = Regression()
    batches = [next(task.training_batches(seed, 4)) for seed in (1, 2)]
    losses, penalties = compute_gradients(variant, task, batches, SharedHyperparameters(steps=10, batch_size=4))
    assert bool(torch.isfinite(losses).all())
    assert float(penalties[1]) == 0
    for layer in variant.layers.values():
        x = torch.randn(8, layer.base.d_in, dtype=torch.float64)
        assert torch.equal(layer(x)[4:], layer.base(x)[4:])
        assert not torch.equal(layer(x)[:4], layer.base(x)[:4])
        for key in layer.trained:
            gradient = getattr(layer, key).grad
            assert bool(torch.isfinite(gradient).all())
            assert not bool(gradient[1].any())
        assert layer.scales()[1] == 0
        assert layer.ranks_alive()[1] == 0


# Cost


class Allocations(TorchDispatchMode):
    """The shapes of all tensors that operations make, views of what was there apart."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        there = {t.untyped_storage().data_ptr() for t in tensors((args, kwargs))}
        self.shapes += [tuple(t.shape) for t in tensors(made) if t.untyped_storage().data_ptr() not in there]
        return made


def tensors(tree: Any) -> Iterator[Tensor]:
    return (leaf for leaf in torch.utils._pytree.tree_leaves(tree) if isinstance(leaf, Tensor))


@pytest.mark.parametrize("trials", [1, 2])
@every_adapter
def test_no_dense_update_is_made_in_forward_backward_or_penalty(name: str, trials: int) -> None:
    d_in, d_out = 37, 41
    model = nn.Sequential(nn.Linear(d_in, d_out), nn.Tanh(), nn.Linear(d_out, d_in))
    variant = attached(name, model, heads=(), configs=[knobs(name, rank=3, dropout=0.2)] * trials)
    x = torch.randn(trials * 4, 5, d_in)
    with Allocations() as seen:
        loss = model(x).square().sum()
        (loss + variant.penalty().sum()).backward()
    assert (trials, 8, 20) in seen.shapes  # the mode does see the adapter
    assert [s for s in seen.shapes if sorted(s)[-2:] == [d_in, d_out]] == []
    with Allocations() as seen:
        variant.layers["0"].merged_weight(0)
    assert (d_out, d_in) in seen.shapes


# Precision, gradient checkpointing, gradient accumulation


def tokens_model(**options: Any) -> tuple[Any, Any]:
    from experiments.models.transformer import ByteTransformer

    torch.manual_seed(0)
    return ByteTransformer(width=32, depth=2, heads=2, context=16), NextByte(**options)


class NextByte(Regression):
    """Random bytes; with `repeat` the first batch comes back at every step."""

    head_modules = ("unembedding",)

    def __init__(self, *, repeat: bool = False) -> None:
        super().__init__(torch.float32)
        self.repeat = repeat

    def training_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        batch = {"tokens": torch.randint(256, (batch_size, 17), generator=generator)}
        while True:
            yield batch
            if not self.repeat:
                batch = {"tokens": torch.randint(256, (batch_size, 17), generator=generator)}

    def row_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        logits, tokens = model(batch["tokens"][:, :-1]), batch["tokens"]
        return nn.functional.cross_entropy(logits.mT, tokens[:, 1:], reduction="none").sum(dim=1)

    def row_counts(self, batch: Batch) -> Tensor:
        return torch.full((len(batch["tokens"]),), 16.0)


def on_bytes(name: str, *, dtype: torch.dtype = torch.float32, **wanted: Any) -> Variant:
    model, _ = tokens_model()
    trials = 1 if name in ALONE else 2
    configs = [knobs(name, rank=rank, **wanted) for rank in (4, 2)[:trials]]
    return attached(name, model.to(dtype), heads=("unembedding",), targets=("layers.*",), configs=configs)


def movement(name: str, precision: str) -> tuple[list[list[float]], Tensor, Variant]:
    """Losses of three steps on one batch, and how far the first trial's tensors moved."""
    variant, heard = on_bytes(name), []
    before = variant.trial_state(0)
    train(
        variant,
        NextByte(repeat=True),
        [TrialHyperparameters(seed=seed, learning_rate=3e-3, lr_schedule="constant") for seed in variant.pack.seeds],
        SharedHyperparameters(steps=3, batch_size=4, precision=precision),
        on_step=lambda step, metrics: heard.append(metrics["train/task_loss"]),
    )
    moved = [(part - before[key]).flatten() for key, part in variant.trained_tensors(0).items()]
    return heard, torch.cat(moved), variant


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@every_variant
def test_autocast_trains_in_the_direction_of_float32(name: str, precision: str) -> None:
    losses, moved, variant = movement(name, precision)
    assert bool(torch.isfinite(torch.tensor(losses)).all())
    assert all(last < first for first, last in zip(losses[0], losses[-1], strict=True))
    assert {p.dtype for p in variant.model.parameters() if p.requires_grad} == {torch.float32}
    expected = movement(name, "float32")[1]
    assert float(nn.functional.cosine_similarity(moved, expected, dim=0)) > 0.9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_kind
@every_variant
def test_every_kind_of_layer_runs_forward_and_backward_under_autocast(name: str, kind: str, dtype: torch.dtype) -> None:
    model = built(kind).float()
    trials = 1 if name in ALONE else 2
    variant = attached(name, model, targets=KINDS[kind].targets, configs=[knobs(name, rank=2)] * trials)
    x = inputs(trials).float()
    with torch.autocast("cpu", dtype=dtype):
        loss = model(x).float().square().mean()
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    assert {g.dtype for g in gradients if g is not None} == {torch.float32}
    with torch.autocast("cpu", dtype=dtype), torch.inference_mode():
        torch.testing.assert_close(model.eval()(x).float(), model(x.float()).float())
    variant.detach()


@every_kind
@every_variant
def test_a_base_in_bfloat16_goes_through_every_kind_of_layer_in_its_own_type(name: str, kind: str) -> None:
    model = built(kind).bfloat16()
    trials = 1 if name in ALONE else 2
    variant = attached(name, model, targets=KINDS[kind].targets, configs=[knobs(name, rank=2)] * trials)
    dtype = torch.float32 if name == "full_all" else torch.bfloat16  # there all of it trains, in float32
    assert model.features(inputs(trials).to(dtype)).dtype == dtype
    assert {layer_dtype for layer in variant.layers.values() for layer_dtype in dtypes(layer)} <= {torch.float32}


def dtypes(layer: TrialLayer) -> set[torch.dtype]:
    return {getattr(layer, key).dtype for key in layer.trained}


def gradients_of(variant: Variant, *, gradient_accumulation_steps: int = 1) -> dict[str, Tensor]:
    task = NextByte()
    batches = [next(task.training_batches(seed, 4)) for seed in variant.pack.seeds]
    shared = SharedHyperparameters(steps=10, batch_size=4, gradient_accumulation_steps=gradient_accumulation_steps)
    compute_gradients(variant, task, batches, shared)
    return {n: p.grad.clone() for n, p in variant.model.named_parameters() if p.grad is not None}


def awake(variant: Variant) -> Variant:
    """Every trained tensor away from its start, where half of the gradients are zero."""
    for trial, seed in enumerate(variant.pack.seeds):
        generator = torch.Generator().manual_seed(seed)
        for part in variant.trained_tensors(trial).values():
            part.add_(0.1 * torch.randn(part.shape, generator=generator, dtype=part.dtype))
    return variant


@every_variant
def test_gradient_checkpointing_gives_the_same_gradients_with_adapter_dropout_on(name: str) -> None:
    plain = gradients_of(awake(on_bytes(name, dropout=0.3)))
    variant = awake(on_bytes(name, dropout=0.3))
    variant.model.gradient_checkpointing = True
    torch.manual_seed(1)
    assert_same(gradients_of(variant), plain)
    if name in ADAPTERS:
        without = gradients_of(awake(on_bytes(name)))
        assert any(not torch.equal(without[key], plain[key]) for key in plain), "dropout did nothing"


@every_variant
def test_two_accumulated_parts_give_the_gradients_of_the_whole_batch(name: str) -> None:
    whole = gradients_of(awake(on_bytes(name, dtype=torch.float64)))
    parts = gradients_of(awake(on_bytes(name, dtype=torch.float64)), gradient_accumulation_steps=2)
    assert whole.keys() == parts.keys()
    for key, gradient in whole.items():
        assert float(gradient.abs().max()) > 0
        torch.testing.assert_close(parts[key], gradient, rtol=1e-12, atol=1e-12)


# Moving a trial


def descend(variant: Variant, slot: int, seed: int, *, steps: int) -> None:
    """Steps of plain gradient descent, which has no state of its own, on a slot's data."""
    task = Regression()
    stream = task.training_batches(seed, 4)
    for _ in range(variant.pack.steps[slot]):
        next(stream)
    for _ in range(steps):
        others = [next(task.training_batches(99 + k, 4)) for k in range(variant.pack.trials)]
        others[slot] = next(stream)
        compute_gradients(variant, task, others, SharedHyperparameters(steps=8, batch_size=4))
        variant.before_step()
        with torch.no_grad():
            for parameter in variant.model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.05 * parameter.grad
        variant.pack.steps = [done + 1 for done in variant.pack.steps]
        variant.after_step()
        for parameter in variant.model.parameters():
            parameter.grad = None


@every_kind
@every_variant
def test_a_trial_continues_in_another_slot_of_another_pack_as_if_it_had_stayed(name: str, kind: str) -> None:
    options: dict[str, Any] = {
        "initial_fraction": 0.0,
        "final_fraction": 0.25,
        "prune_every": 1,
        "initial_rank": 4,
        "dropout": 0.2,
        "alpha": 4.0,
    }
    mine, other = knobs(name, rank=2, **options), knobs(name, rank=3, **options)
    place = {"targets": KINDS[kind].targets, "steps": 8}
    here = attached(name, built(kind), configs=[mine], seeds=[5], **place)
    descend(here, 0, 5, steps=3)
    state = here.trial_state(0)

    alone = name in ALONE
    slot = 0 if alone else 1
    there = attached(
        name, built(kind), configs=[mine] if alone else [other, mine], seeds=[5] if alone else [8, 5], **place
    )
    neighbour = copy.deepcopy(there.trial_state(0))
    there.load_trial_state(slot, state)
    there.pack.steps = [3] * there.pack.trials
    assert_same(there.trial_state(slot), state)
    if not alone:
        assert_same(there.trial_state(0), neighbour)

    for variant, place_there in ((here, 0), (there, slot)):
        descend(variant, place_there, 5, steps=4)
    now, moved = here.trial_state(0), there.trial_state(slot)
    for key in now:
        torch.testing.assert_close(moved[key], now[key], rtol=1e-10, atol=1e-10)
    for path, layer in here.layers.items():
        for key in layer.state:  # what the next allocation is made from
            mine_now, moved_now = getattr(layer, key)[0], getattr(there.layers[path], key)[slot]
            torch.testing.assert_close(moved_now, mine_now, rtol=1e-10, atol=1e-12)
    assert [r[0] for r in here.ranks_alive().values()] == [r[slot] for r in there.ranks_alive().values()]
    x = inputs(1)
    twice = torch.cat([x] * there.pack.trials)
    torch.testing.assert_close(
        rows_of(slot, there.model.eval()(twice), there.pack.trials), here.model.eval()(x), **TIGHT
    )


def test_a_state_of_another_shape_is_refused_with_both_shapes() -> None:
    there, here = variant_on("lora", "linear", ranks=(2,)), variant_on("lora", "linear", ranks=(3,))
    with pytest.raises(ValueError, match=r"first/A: this trial needs shape \(3, 12\), the state has \(2, 12\)"):
        here.load_trial_state(0, there.trial_state(0))
