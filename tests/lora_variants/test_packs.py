"""A trial is the same alone and in any pack, whatever happens to its neighbours; what cannot be so is refused."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from models import ALONE, KINDS, PACKED, Regression, attached, built, inputs, knobs, trained, variant_on
from pack_runs import (
    KNOBS,
    POISONED_AFTER,
    STEPS,
    TOKENS,
    TRIALS,
    VOCABULARY,
    Base,
    Tokens,
    assert_identical,
    run_pack,
    tiny_bert,
)
from torch import Tensor, nn

from experiments.models.transformer import ByteTransformer
from experiments.tasks.task import Batch
from experiments.training.loop import sums_by_trial
from experiments.training.trial import Outcome
from lora_variants import VARIANTS
from lora_variants.interface.attach import attach
from lora_variants.interface.layer import rank_bucket
from lora_variants.interface.pack import Pack
from lora_variants.interface.variant import Variant

every_packed = pytest.mark.parametrize("name", PACKED)


def tiny_gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_positions=32, n_embd=32, n_layer=2, n_head=2, **still))


BASES = {
    "bytes": Base(lambda: ByteTransformer(width=32, depth=2, heads=2, context=TOKENS), ("layers.*",), ("unembedding",)),
    "bert": Base(tiny_bert, ("bert.encoder.*",), ("bert.pooler", "classifier")),
    "gpt2": Base(tiny_gpt2, ("*.c_attn[1/3]", "*.c_attn[3/3]", "*.c_fc", "*.mlp.c_proj")),
}


# The same alone and in a pack


@pytest.mark.parametrize("base", BASES)
@every_packed
def test_a_trial_ends_bit_identical_alone_and_in_a_pack(name: str, base: str) -> None:
    if name == "head" and not BASES[base].heads:
        pytest.skip("nothing trains")
    packed = run_pack(name, (0, 1, 2), base=BASES[base], task=Tokens())
    for k, found in enumerate(packed):
        (alone,) = run_pack(name, (k,), base=BASES[base], task=Tokens())
        assert alone.outcome == found.outcome == Outcome(steps_executed=STEPS)
        assert_identical(alone, found)
    assert len({tuple(found.losses) for found in packed}) == 3


@every_packed
def test_gradient_accumulation_and_another_order_of_the_trials_change_no_bit(name: str) -> None:
    forth = run_pack(name, (0, 1, 2), base=BASES["bytes"], task=Tokens(), gradient_accumulation_steps=2)
    back = run_pack(name, (2, 1, 0), base=BASES["bytes"], task=Tokens(), gradient_accumulation_steps=2)
    for found, again in zip(forth, reversed(back), strict=True):
        assert_identical(found, again)


@pytest.mark.parametrize("kind", KINDS)
@every_packed
def test_with_odd_shapes_in_float64_alone_and_packed_agree_to_rounding(name: str, kind: str) -> None:
    base = Base(lambda: built(kind), KINDS[kind].targets, ("head",))
    packed = run_pack(name, (0, 1, 2), base=base, task=Regression(), dtype=torch.float64)
    for k, found in enumerate(packed):
        (alone,) = run_pack(name, (k,), base=base, task=Regression(), dtype=torch.float64)
        for key, part in alone.state.items():
            torch.testing.assert_close(found.state[key], part, rtol=1e-9, atol=1e-9)


def test_the_ranks_of_these_packs_share_a_bucket_and_a_bucket_holds_its_rank() -> None:
    assert {rank_bucket(one["rank"]) for one in KNOBS} == {8}
    assert [rank_bucket(rank) for rank in (0, 1, 7, 8, 9, 16, 17, 64, 65)] == [0, 8, 8, 8, 16, 16, 32, 64, 128]


# A trial that fails


@pytest.mark.parametrize("base", ["bytes", "bert"])
@every_packed
def test_a_trial_that_fails_is_recorded_and_leaves_no_bit_on_the_others(name: str, base: str) -> None:
    trials = [*TRIALS]
    trials[1] = replace(TRIALS[1], learning_rate=1e38, max_grad_norm=None)
    first, failed, last = run_pack(name, (0, 1, 2), base=BASES[base], task=Tokens(), trials=trials)
    assert failed.outcome.failure is not None
    assert failed.outcome.failure.startswith(f"not finite at step {failed.outcome.steps_executed + 1}: loss")
    assert failed.outcome.steps_executed < STEPS
    for k, found in ((0, first), (2, last)):
        (alone,) = run_pack(name, (k,), base=BASES[base], task=Tokens(), trials=trials)
        assert alone.outcome == found.outcome == Outcome(steps_executed=STEPS)
        assert_identical(alone, found)


class Poisoned(Tokens):
    """The second trial's loss is not a number once, after seven steps."""

    def training_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        for step, batch in enumerate(super().training_batches(seed, batch_size)):
            poison = math.nan if seed == TRIALS[1].seed and step == POISONED_AFTER else 1.0
            yield batch | {"poison": torch.full((batch_size,), poison)}

    def row_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().row_losses(model, batch) * batch["poison"]


@every_packed
def test_a_failed_trial_stays_as_it_was_before_the_step_that_failed(name: str) -> None:
    _, failed, _ = run_pack(name, (0, 1, 2), base=BASES["bytes"], task=Poisoned())
    (alone,) = run_pack(name, (1,), base=BASES["bytes"], task=Poisoned())
    assert failed.outcome == alone.outcome
    assert failed.outcome.steps_executed == POISONED_AFTER
    for key, part in alone.state_then.items():
        assert torch.equal(alone.state[key], part), key
        assert torch.equal(failed.state[key], part), key


# Rows that belong to no trial


class Positioned(nn.Module):
    """Relative positions go through the same projection as the rows, with a leading size of 1."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(12, 12)
        self.positions = nn.Parameter(torch.randn(1, 5, 12))

    def forward(self, x: Tensor) -> Tensor:
        return self.query(x) + self.query(self.positions.to(x.dtype))


@pytest.mark.parametrize("name", [name for name in PACKED if name != "head"])
def test_rows_that_are_not_trial_major_are_an_error_in_a_pack_and_work_alone(name: str) -> None:
    pack = attached(name, Positioned().double(), heads=(), configs=[knobs(name, rank=2)] * 2)
    with pytest.raises(ValueError, match=r"got 1 rows but the pack has 2 trials x 4 rows.*train it as a pack of one"):
        pack.model(inputs(2))
    base = Positioned().double()
    expected = base(inputs(1))
    alone = attached(name, base, heads=(), configs=[knobs(name, rank=2)])
    torch.testing.assert_close(alone.model(inputs(1)), expected, rtol=1e-12, atol=1e-12)


# What is refused


def left_alone(model: nn.Module) -> list[tuple[str, int, bool]]:
    """The model's modules and parameters, by identity, and what trains."""
    modules = [(path, id(module), module.training) for path, module in model.named_modules()]
    return modules + [(path, id(p), p.requires_grad) for path, p in model.named_parameters()]


@pytest.mark.parametrize("trials", [1, 2])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.SyncBatchNorm])
def test_a_model_with_batchnorm_is_refused(norm: type[nn.Module], trials: int) -> None:
    model = nn.Sequential(nn.Linear(6, 6), norm(6))
    before = left_alone(model)
    with pytest.raises(ValueError, match="1 is a BatchNorm: it mixes rows"):
        attached("lora", model, heads=(), configs=[knobs("lora", rank=1)] * trials)
    assert left_alone(model) == before


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 6), nn.Dropout(0.1), nn.Linear(6, 6))


def dropping_attention() -> nn.Module:
    return nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)})


def sequence_first() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0), 1, enable_nested_tensor=False)


class FunctionalDropout(nn.Module):
    """Dropout held as a number, as the attention of many transformers is."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.attention_dropout = nn.Linear(6, 6), 0.2


def recurrent() -> nn.Module:
    return nn.ModuleDict({"memory": nn.LSTM(6, 6), "linear": nn.Linear(6, 6)})


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (FunctionalDropout, "has dropout 0.2"),
        (recurrent, "memory is sequence-first"),
        (dropping, "1 has dropout 0.1: .* set it to 0 or train a pack of one"),
        (dropping_attention, "attention has dropout 0.1"),
        (sequence_first, "self_attn is sequence-first: its rows are not trial-major"),
    ],
)
@every_packed
def test_dependent_rows_are_refused_in_a_pack_of_two_and_allowed_alone(
    name: str, build: Callable[[], nn.Module], message: str
) -> None:
    model = build()
    before = left_alone(model)
    with pytest.raises(ValueError, match=message):
        attached(name, model, heads=(), configs=[knobs(name, rank=1)] * 2)
    assert left_alone(model) == before
    assert attached(name, model, heads=(), configs=[knobs(name, rank=1)]).pack.trials == 1


@pytest.mark.parametrize("second", ["lora", "full", "full_all"])
@pytest.mark.parametrize("first", ["lora", "full", "head", "full_all"])
def test_attaching_twice_is_refused_and_allowed_after_detach(first: str, second: str) -> None:
    variant = variant_on(first, "linear", ranks=(2,))
    with pytest.raises(ValueError, match=r"is already adapted; call detach\(\)"):
        attached(second, variant.model, configs=[knobs(second, rank=2)])
    assert attached(second, variant.detach(), configs=[knobs(second, rank=2)]).model is variant.model


@pytest.mark.parametrize("name", ALONE)
def test_a_variant_that_trains_the_whole_model_is_refused_in_a_pack_of_two(name: str) -> None:
    model = built("linear")
    before = left_alone(model)
    with pytest.raises(ValueError, match=f"{name} trains the whole model: a pack of one, not of 2 trials"):
        attached(name, model, configs=[knobs(name)] * 2)
    assert left_alone(model) == before


def test_as_many_configurations_as_trials_are_wanted() -> None:
    pack = Pack(seeds=(1, 2), total_steps=(3, 3))
    with pytest.raises(ValueError, match="1 configurations for a pack of 2 trials"):
        attach(VARIANTS["lora"].load(), built("linear"), targets=["*"], pack=pack, configs=[knobs("lora")])
    with pytest.raises(ValueError, match="got 2 seeds and 1 numbers of steps"):
        Pack(seeds=(1, 2), total_steps=(3,))


# Randomness


def state_of(name: str, seed: int, rank: int) -> dict[str, Tensor]:
    variant: Variant = attached(name, built("linear"), configs=[knobs(name, rank=rank)], seeds=[seed])
    return variant.trial_state(0)


def test_a_smaller_rank_starts_from_the_first_rows_of_a_larger_one_and_the_scale_does_not_depend_on_it() -> None:
    small, large = state_of("lora", 1, 2), state_of("lora", 1, 5)
    assert torch.equal(small["first/A"], large["first/A"][:2])
    assert not torch.equal(small["first/A"], state_of("lora", 2, 2)["first/A"])
    assert not torch.equal(small["second/A"][:, :11], small["first/A"][:, :11])


def test_all_variants_start_their_heads_alike_at_one_seed() -> None:
    heads = [state_of(name, 1, 2)["head/weight"] for name in (*PACKED, *ALONE)]
    assert all(torch.equal(head, heads[0]) for head in heads)
    assert not torch.equal(heads[0], state_of("lora", 2, 2)["head/weight"])


def test_dropout_seeds_decide_the_masks_and_nothing_of_the_start() -> None:
    def pack(dropout_seeds: tuple[int, ...]) -> Variant:
        model, configs = built("linear"), [knobs("lora", rank=2, dropout=0.5)] * 2
        pack = Pack(seeds=(1, 2), total_steps=(9, 9), rows=4, dropout_seeds=dropout_seeds)
        return attach(VARIANTS["lora"].load(), model, targets=["*"], head_modules=["head"], pack=pack, configs=configs)

    alike, own, x = pack((5, 5)), pack(()), torch.ones(2, 64, 12, dtype=torch.float64)
    masks = alike.layers["first"].dropout_mask(x)
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(own.layers["first"].dropout_mask(x), pack((1, 2)).layers["first"].dropout_mask(x))
    assert not torch.equal(own.layers["first"].dropout_mask(x)[0], masks[0])
    for trial in range(2):
        assert all(torch.equal(own.trial_state(trial)[key], part) for key, part in alike.trial_state(trial).items())
    with pytest.raises(ValueError, match="one dropout seed a trial, or none at all; got 1 for 2 trials"):
        pack((5,))


def test_dropout_masks_differ_between_steps_parts_layers_and_seeds_and_not_between_calls() -> None:
    variant = variant_on("lora", "linear", ranks=(2, 2), dropout=0.5)
    layer, x = variant.layers["first"], torch.ones(2, 64, 12, dtype=torch.float64)
    once = layer.dropout_mask(x)
    assert torch.equal(layer.dropout_mask(x), once)
    assert set(once.unique().tolist()) == {0.0, 2.0}
    assert not torch.equal(once[0], once[1])
    assert not torch.equal(variant.layers["second"].dropout_mask(x), once)
    variant.pack.micro_step = 1
    assert not torch.equal(layer.dropout_mask(x), once)
    variant.pack.micro_step, variant.pack.steps = 0, [1, 0]
    assert not torch.equal(layer.dropout_mask(x)[0], once[0])
    assert torch.equal(layer.dropout_mask(x)[1], once[1])
    variant.model.eval()
    assert layer.dropout_mask(x) is None


def test_training_again_from_the_same_seed_is_the_same_training() -> None:
    first, again = variant_on("adalora", "linear", dropout=0.2), variant_on("adalora", "linear", dropout=0.2)
    for variant in (first, again):
        torch.manual_seed(id(variant) % 1000)
        trained(variant, steps=6)
    assert all(torch.equal(part, again.trial_state(1)[key]) for key, part in first.trial_state(1).items())


@pytest.mark.parametrize("rows", [5, 13, 100, 1000, 4099])
def test_a_trials_sum_of_losses_has_the_same_bits_alone_and_in_a_pack(rows: int) -> None:
    losses = torch.rand(3, rows, generator=torch.Generator().manual_seed(rows)) * 7
    packed = sums_by_trial(losses.flatten(), 3)
    alone = [sums_by_trial(of_trial.clone(), 1)[0] for of_trial in losses]
    assert torch.equal(packed, torch.stack(alone))
