"""Ours against PEFT: the same weights and batches give the same losses and gradients at every one of 20 steps."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from experiments.training.optimizer import AdamW
from lora_variants import VARIANTS
from lora_variants.interface.attach import attach
from lora_variants.interface.pack import Pack
from lora_variants.interface.variant import Variant

STEPS, ROWS, LENGTH, VOCABULARY, CLASSES = 20, 4, 6, 40, 3
CLOSE = 1e-10  # relative, in the norm of each tensor
RATE = 5e-3


def bert() -> nn.Module:
    torch.manual_seed(0)
    widths = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = BertConfig(vocab_size=VOCABULARY, max_position_embeddings=8, num_labels=CLASSES, **widths, **dropout)
    return BertForSequenceClassification(config).double()


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=8, n_embd=16, n_layer=2, n_head=2, **dropout)
    return GPT2LMHeadModel(config).double()


def classification_loss(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(logits, batch["label"])


def language_loss(logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["tokens"][:, 1:].flatten())


@dataclass(frozen=True)
class Kind:
    """A model, its loss, and for each layer PEFT's suffix of its name and a rank of its own."""

    build: Callable[[], nn.Module]
    loss: Callable[[Tensor, dict[str, Tensor]], Tensor]
    ranks: dict[str, int]

    def targets(self) -> list[str]:
        return [f"*.{suffix}" for suffix in self.ranks]


KINDS = {
    "bert": Kind(bert, classification_loss, {"self.query": 2, "self.value": 5, "intermediate.dense": 3}),
    "gpt2": Kind(gpt2, language_loss, {"attn.c_attn": 3, "attn.c_proj": 2, "mlp.c_fc": 5}),
}


def batches(seed: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        tokens = torch.randint(VOCABULARY, (ROWS, LENGTH), generator=generator)
        yield {"tokens": tokens, "label": torch.randint(CLASSES, (ROWS,), generator=generator)}


def ours(name: str, kind: Kind, configs: Sequence[dict[str, Any]], heads: Sequence[str] = ()) -> Variant:
    variant = VARIANTS[name].load()
    trials = [variant.config_class(**config) for config in configs]
    seeds = tuple(range(11, 11 + len(trials)))
    pack = Pack(seeds=seeds, total_steps=(STEPS,) * len(trials), rows=ROWS)
    return attach(variant, kind.build(), targets=kind.targets(), head_modules=heads, pack=pack, configs=trials)


def theirs(kind: Kind, variant: Variant, trial: int, heads: Sequence[str] = (), **config: Any) -> PeftModel:
    """PEFT's model, from the initial tensors of one of our trials."""
    config = {"target_modules": list(kind.ranks), "fan_in_fan_out": kind is KINDS["gpt2"]} | config
    model = get_peft_model(kind.build(), LoraConfig(modules_to_save=list(heads) or None, **config))
    tensors = variant.trained_tensors(trial)
    for (layer, key), parameter in by_our_names(model).items():
        parameter.detach().copy_(tensors[f"{layer}/{key}"])
    return model


def by_our_names(model: PeftModel) -> dict[tuple[str, str], nn.Parameter]:
    found = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        path = name.removeprefix("base_model.model.")
        for theirs_is, key in ((".lora_A.default.weight", "A"), (".lora_B.default.weight", "B")):
            if path.endswith(theirs_is):
                found[path.removesuffix(theirs_is), key] = parameter
        if ".modules_to_save.default." in path:
            layer, _, key = path.partition(".modules_to_save.default.")
            found[layer, key] = parameter
    return found


def assert_equal(found: Tensor, expected: Tensor, what: str) -> None:
    found, expected = found.detach(), expected.detach()
    distance = float((found - expected).norm())
    assert distance <= CLOSE * float(expected.norm()), f"{what}: {distance:.2e} of {float(expected.norm()):.2e}"


def gradients(variant: Variant, trial: int) -> dict[tuple[str, str], Tensor]:
    """Our gradients of one trial, padding left out."""
    found = {}
    for name, layer in (variant.layers | variant.heads).items():
        for key, part in layer.parts(trial).items():
            whole = getattr(layer, key).grad[trial]
            found[name, key] = whole[tuple(slice(size) for size in part.shape)]
    return found


def assert_same_training(
    kind: Kind,
    variant: Variant,
    models: Sequence[PeftModel],
    optimizers: Sequence[torch.optim.Optimizer],
    *,
    rates: Sequence[float],
    weight_decay: float = 0.0,
) -> None:
    """Train our pack and their models side by side on each trial's own batches."""
    trials = len(models)
    groups = variant.parameter_groups(
        torch.tensor(rates, dtype=torch.float64), torch.full((trials,), weight_decay, dtype=torch.float64)
    )
    optimizer = AdamW(groups, trials=trials)
    data = [batches(seed) for seed in variant.pack.seeds]
    moved = torch.zeros(trials)
    for step in range(STEPS):
        drawn = [next(source) for source in data]
        logits = variant.model(torch.cat([batch["tokens"] for batch in drawn])).logits.chunk(trials)
        losses = torch.stack([kind.loss(part, batch) for part, batch in zip(logits, drawn, strict=True)])
        losses.sum().backward()
        for trial, (model, batch) in enumerate(zip(models, drawn, strict=True)):
            loss = kind.loss(model(batch["tokens"]).logits, batch)
            loss.backward()
            where = f"step {step + 1}, trial {trial}"
            assert_equal(losses[trial].detach(), loss.detach(), f"{where}, loss")
            found = gradients(variant, trial)
            assert found.keys() == by_our_names(model).keys()
            for name, parameter in by_our_names(model).items():
                assert_equal(found[name], parameter.grad, f"{where}, gradient of {name}")
                moved[trial] += parameter.grad.abs().sum()
            optimizers[trial].step()
            optimizers[trial].zero_grad()
        optimizer.step(torch.ones(trials, dtype=torch.float64), torch.ones(trials, dtype=torch.bool))
        optimizer.zero_gradients()
    assert (moved > 0).all()
    for trial, model in enumerate(models):
        for name, update in variant.deltas(trial).items():
            expected = model.get_submodule(f"base_model.model.{name}").get_delta_weight("default")
            assert_equal(update.product(), expected.mT if kind is KINDS["gpt2"] else expected, f"ΔW of {name}")


def adamw(model: PeftModel, rate: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["lora", "rslora"])
def test_mixed_ranks_with_one_alpha_train_exactly_as_in_peft(name: str, kind: str) -> None:
    of = KINDS[kind]
    variant = ours(name, of, [{"rank": {f"*.{suffix}": rank for suffix, rank in of.ranks.items()}, "alpha": 6.0}])
    model = theirs(of, variant, 0, r=8, lora_alpha=6, rank_pattern=of.ranks, use_rslora=name == "rslora")
    assert_same_training(of, variant, [model], [adamw(model, RATE)], rates=[RATE])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["lora", "rslora"])
def test_an_alpha_per_rank_is_an_alpha_pattern_in_peft(name: str, kind: str) -> None:
    of = KINDS[kind]
    ranks = {f"*.{suffix}": rank for suffix, rank in of.ranks.items()}
    variant = ours(name, of, [{"rank": ranks, "alpha_per_rank": 1.5}])
    alphas = {suffix: 1.5 * rank for suffix, rank in of.ranks.items()}
    patterns = {"rank_pattern": of.ranks, "alpha_pattern": alphas}
    model = theirs(of, variant, 0, r=8, lora_alpha=1, use_rslora=name == "rslora", **patterns)
    assert_same_training(of, variant, [model], [adamw(model, RATE)], rates=[RATE])


def test_each_trial_of_a_pack_trains_as_a_peft_model_of_its_own() -> None:
    of = KINDS["bert"]
    configs = [{"rank": 1, "alpha": 4.0}, {"rank": 5, "alpha": 10.0}, {"rank": 3, "alpha": 1.0}]
    rates = [1e-3, 5e-3, 2e-2]
    variant = ours("lora", of, configs, heads=["classifier"])
    models = [
        theirs(of, variant, trial, heads=["classifier"], r=config["rank"], lora_alpha=config["alpha"])
        for trial, config in enumerate(configs)
    ]
    optimizers = [adamw(model, rate) for model, rate in zip(models, rates, strict=True)]
    assert_same_training(of, variant, models, optimizers, rates=rates)


@pytest.mark.parametrize("kind", KINDS)
def test_lora_plus_trains_exactly_as_with_the_optimizer_of_peft(kind: str) -> None:
    of = KINDS[kind]
    variant = ours("lora_plus", of, [{"rank": 4, "alpha": 6.0, "learning_rate_ratio": 8.0}])
    model = theirs(of, variant, 0, r=4, lora_alpha=6)
    optimizer = create_loraplus_optimizer(model, torch.optim.AdamW, lr=RATE, loraplus_lr_ratio=8.0)
    assert_same_training(of, variant, [model], [optimizer], rates=[RATE])


def test_lora_plus_with_weight_decay_and_a_head_trains_as_groups_built_by_hand() -> None:
    of = KINDS["bert"]
    decay, ratio = 0.3, 8.0
    variant = ours("lora_plus", of, [{"rank": 4, "alpha": 6.0, "learning_rate_ratio": ratio}], heads=["classifier"])
    model = theirs(of, variant, 0, heads=["classifier"], r=4, lora_alpha=6)
    groups = [
        {
            "params": [parameter],
            "lr": ratio * RATE if key == "B" else RATE,
            "weight_decay": 0.0 if key == "bias" else decay,
        }
        for (_, key), parameter in by_our_names(model).items()
    ]
    optimizer = torch.optim.AdamW(groups)
    assert_same_training(of, variant, [model], [optimizer], rates=[RATE], weight_decay=decay)
