"""AdaLoRA against a dense reference written from the paper's equations, against PEFT, and against its own claims."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import train
from peft import AdaLoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from experiments.tasks.task import Batch, Split, Task, TaskConfig
from experiments.training.hyperparameters import SharedHyperparameters, TrialHyperparameters
from experiments.training.optimizer import AdamW
from lora_variants.adalora.adalora import AdaLoRA
from lora_variants.adalora.budget import budget, highest_triplets, smooth
from lora_variants.adalora.config import AdaLoRAConfig, last_pruning
from lora_variants.adalora.layer import AdaLoRALayer
from lora_variants.adalora.orthogonality import distance_from_orthonormal
from lora_variants.frozen_model.linear_map import LinearMap
from lora_variants.interface.attach import attach
from lora_variants.interface.pack import Pack
from lora_variants.interface.rng import stream

RATE = 1e-2
ROWS = 8  # a power of two: the loop's mean over rows is then exact in any precision
Watch = Callable[[AdaLoRA, int, dict[str, list[float]]], None]


class Chain(nn.Module):
    """Three matrices with tanh between them, and a layer that no input ever reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 10, bias=False), nn.Linear(10, 8, bias=False)
        self.third, self.unused = nn.Linear(8, 6, bias=False), nn.Linear(9, 9, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(torch.tanh(self.second(torch.tanh(self.first(x)))))


USED = ("first", "second", "third")


class Regression(Task):
    """A fixed random linear map to learn, in float64."""

    score_name: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__(TaskConfig(name="regression"))
        self.truth = torch.randn(12, 6, generator=stream(0, "truth"), dtype=torch.float64)

    def data_sha256(self) -> dict[str, str]:
        return {}

    def architecture(self) -> nn.Module:
        return Chain()

    def base_model(self, report: Any = None) -> nn.Module:
        torch.manual_seed(0)
        return Chain().double()

    def training_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        generator = stream(seed, "data")
        while True:
            x = torch.randn(batch_size, 12, generator=generator, dtype=torch.float64)
            yield {"x": x, "y": torch.tanh(x @ self.truth)}

    def evaluation_batches(self, split: Split) -> Iterator[Batch]:
        yield next(self.training_batches(99, ROWS))

    def row_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return (model(batch["x"]) - batch["y"]).square().sum(dim=1)

    def row_counts(self, batch: Batch) -> Tensor:
        return torch.ones(len(batch["x"]), dtype=torch.float64)

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        return dict(means)


def attached(configs: Sequence[AdaLoRAConfig], *, steps: int, targets: Sequence[str] = USED) -> AdaLoRA:
    pack = Pack(seeds=tuple(range(5, 5 + len(configs))), total_steps=(steps,) * len(configs), rows=ROWS)
    variant = attach(AdaLoRA, Regression().base_model(), targets=targets, pack=pack, configs=configs)
    assert isinstance(variant, AdaLoRA)
    return variant


def trained(
    variant: AdaLoRA, *, rate: float = 2e-2, weight_decay: float = 0.0, max_grad_norm: float | None = 1.0, watch: Watch
) -> None:
    """Train to the end; `watch` looks on after every step."""
    (steps,) = set(variant.pack.total_steps)
    options = {
        "learning_rate": rate,
        "weight_decay": weight_decay,
        "max_grad_norm": max_grad_norm,
        "lr_schedule": "constant",
    }
    outcomes = train(
        variant,
        Regression(),
        [TrialHyperparameters(seed=seed, **options) for seed in variant.pack.seeds],
        SharedHyperparameters(steps=steps, batch_size=ROWS),
        on_step=lambda step, metrics: watch(variant, step, metrics),
    )
    assert [outcome.failure for outcome in outcomes] == [None] * variant.pack.trials


def unwatched(variant: AdaLoRA, step: int, metrics: dict[str, list[float]]) -> None:
    pass


def alive(variant: AdaLoRA, trial: int = 0) -> dict[str, list[bool]]:
    return {name: layer.parts(trial)["alive"].tolist() for name, layer in variant.layers.items()}


def left(variant: AdaLoRA, trial: int = 0) -> int:
    return sum(ranks[trial] for ranks in variant.ranks_alive().values())


class Reference:
    """One trial of AdaLoRA in dense matrices and plain loops, equation by equation."""

    def __init__(self, variant: AdaLoRA, trial: int, *, scales: dict[str, float]) -> None:
        self.config, self.total = variant.configs[trial], variant.pack.total_steps[trial]
        model, tensors = Regression().base_model(), variant.trial_state(trial)
        self.scales, self.W0 = scales, {name: getattr(model, name).weight.detach() for name in USED}
        self.weights = {
            (name, key): tensors[f"{name}/{key}"].clone().requires_grad_()
            for name in scales
            for key in ("P", "Lambda", "Q")
        }
        self.mean = {key: np.zeros(weight.shape) for key, weight in self.weights.items()}
        self.spread = {key: np.zeros(weight.shape) for key, weight in self.weights.items()}
        self.alive = {name: [True] * len(self.weights[name, "Lambda"]) for name in scales}

    def loss(self, batch: Batch) -> Tensor:
        x = batch["x"]
        for name in USED:
            W = self.W0[name]
            if name in self.scales:
                P, Lambda, Q = (self.weights[name, key] for key in ("P", "Lambda", "Q"))
                W = W + self.scales[name] * P @ torch.diag(Lambda) @ Q
            x = x @ W.T if name == "third" else torch.tanh(x @ W.T)
        return ((x - batch["y"]) ** 2).sum() / len(x)

    def penalty(self) -> Tensor:
        """γ R: equation 4, or the mean of norms of the authors' code."""
        squares = []
        for name in self.scales:
            P, Q = self.weights[name, "P"], self.weights[name, "Q"]
            eye = torch.eye(len(Q), dtype=torch.float64)
            squares += [((P.T @ P - eye) ** 2).sum(), ((Q @ Q.T - eye) ** 2).sum()]
        if self.config.orthogonality_norm == "squared_sum":
            return self.config.orthogonality * sum(squares)
        return self.config.orthogonality * sum(square.sqrt() for square in squares) / len(squares)

    def observe(self) -> None:
        """Equations 8 to 10: I = |w ∇L|, its smoothed mean, and the smoothed distance from that mean."""
        beta1, beta2 = self.config.beta1, self.config.beta2
        for key, weight in self.weights.items():
            sensitivity = np.abs(weight.detach().numpy() * weight.grad.numpy())
            self.mean[key] = beta1 * self.mean[key] + (1 - beta1) * sensitivity
            self.spread[key] = beta2 * self.spread[key] + (1 - beta2) * np.abs(sensitivity - self.mean[key])

    def score(self, name: str, i: int) -> float:
        s = {key: self.mean[name, key] * self.spread[name, key] for key in ("P", "Lambda", "Q")}
        over_outputs = [s["P"][j, i] for j in range(s["P"].shape[0])]
        over_inputs = [s["Q"][i, j] for j in range(s["Q"].shape[1])]
        return s["Lambda"][i] + sum(over_outputs) / len(over_outputs) + sum(over_inputs) / len(over_inputs)

    def prune(self, step: int, targets: dict[str, int]) -> None:
        """Equations 6 and 14, with the schedule of the authors' code."""
        first, last = round(self.config.initial_fraction * self.total), self.last
        if step == last or (step < last and step % self.config.prune_every == 0):
            b0, bT = sum(len(kept) for kept in self.alive.values()), sum(targets.values())
            passed = min(1.0, max(0.0, (step - first) / (last - first)))
            kept = math.floor(bT + (b0 - bT) * (1 - passed) ** 3)
            triplets = [(name, i) for name in self.alive for i in range(len(self.alive[name]))]
            best = sorted(triplets, key=lambda triplet: -self.score(*triplet))[:kept]
            self.alive = {name: [(name, i) in best for i in range(len(self.alive[name]))] for name in self.alive}
        elif step < last:
            return
        for name, kept_here in self.alive.items():
            self.weights[name, "Lambda"].detach()[~torch.tensor(kept_here)] = 0.0

    @property
    def last(self) -> int:
        return self.total - round(self.config.final_fraction * self.total)


def train_reference(
    reference: Reference, targets: dict[str, int], *, seed: int, rate: float, weight_decay: float, max_grad_norm: float
) -> Iterator[tuple[float, float]]:
    """Yields the task loss and the penalty of every step, after the step."""
    vectors = [weight for (_, key), weight in reference.weights.items() if key == "Lambda"]
    matrices = [weight for (_, key), weight in reference.weights.items() if key != "Lambda"]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate)
    batches = Regression().training_batches(seed, ROWS)
    for step in range(1, reference.total + 1):
        optimizer.zero_grad()
        loss, penalty = reference.loss(next(batches)), reference.penalty()
        (loss + penalty).backward()
        torch.nn.utils.clip_grad_norm_(reference.weights.values(), max_grad_norm)
        needed = step <= reference.last  # the authors' code keeps no scores after the last pruning
        if needed and reference.config.sensitivity_at == "before_step":
            reference.observe()
        optimizer.step()
        if needed and reference.config.sensitivity_at == "after_step":
            reference.observe()
        reference.prune(step, targets)
        yield float(loss.detach()), float(penalty.detach())


def test_every_score_and_every_kept_triplet_is_that_of_the_papers_equations() -> None:
    """Three trials of one pack, 40 steps: both sensitivities, both norms, ranks by layer, one layer at rank 0."""
    per_layer: list[dict[str, int]] = [
        {"first": 2, "second": 3, "third": 1},
        {"first": 2, "second": 2, "third": 2},
        {"first": 3, "third": 2},
    ]
    configs = [
        AdaLoRAConfig(rank=per_layer[0], alpha_per_rank=2.0, prune_every=3),
        AdaLoRAConfig(
            rank=2, alpha=5.0, prune_every=1, sensitivity_at="after_step", orthogonality_norm="squared_sum",
            orthogonality=0.02, beta1=0.7, beta2=0.9, initial_fraction=0.2, final_fraction=0.25, initial_rank=5,
        ),
        AdaLoRAConfig(rank=per_layer[2], alpha=3.0, prune_every=4, final_fraction=0.0),
    ]  # fmt: skip
    scales = [dict.fromkeys(USED, 2.0), dict.fromkeys(USED, 2.5), {"first": 1.0, "third": 1.5}]
    options = {"rate": 2e-2, "weight_decay": 0.1, "max_grad_norm": 0.5}
    variant = attached(configs, steps=40)
    references = [Reference(variant, k, scales=scales[k]) for k in range(3)]
    running = [
        train_reference(reference, per_layer[k], seed=variant.pack.seeds[k], **options)
        for k, reference in enumerate(references)
    ]

    def compare(variant: AdaLoRA, step: int, metrics: dict[str, list[float]]) -> None:
        for k, reference in enumerate(references):
            loss, penalty = next(running[k])
            assert metrics["train/task_loss"][k] == pytest.approx(loss, rel=1e-10)
            assert metrics["train/penalty"][k] == pytest.approx(penalty, rel=1e-10)
            ours = variant.trial_state(k)
            for (name, key), weight in reference.weights.items():
                expected = {
                    key: weight.detach().numpy(),
                    f"{key}_sensitivity": reference.mean[name, key],
                    f"{key}_uncertainty": reference.spread[name, key],
                }
                for tensor, values in expected.items():
                    np.testing.assert_allclose(
                        ours[f"{name}/{tensor}"].numpy(), values, rtol=1e-8, atol=1e-10 * np.abs(values).max(),
                        err_msg=f"step {step}, trial {k}, {name}/{tensor}",
                    )  # fmt: skip
            assert {name: kept for name, kept in alive(variant, k).items() if kept} == reference.alive, (step, k)

    trained(variant, **options, watch=compare)
    for k, reference in enumerate(references):
        assert sum(map(sum, reference.alive.values())) == sum(per_layer[k].values())


class PeftSide:
    """PEFT's AdaLoRA from our initial tensors, with a scale that makes it the same function."""

    def __init__(self, variant: AdaLoRA, model: nn.Module, config: AdaLoraConfig) -> None:
        self.model = get_peft_model(model, config).double().base_model  # only the inner model adds the penalty
        self.allocator = self.model.rankallocator
        self.pairs = []
        for path, layer in variant.layers.items():
            for key, theirs in (("P", "lora_B"), ("Lambda", "lora_E"), ("Q", "lora_A")):
                name = f"{path}.{theirs}.default"
                self.pairs.append((layer, key, name, self.model.model.get_parameter(name)))
                self.pairs[-1][-1].detach().copy_(layer.parts(0)[key].view_as(self.pairs[-1][-1]))
        self.optimizer = torch.optim.AdamW([pair[-1] for pair in self.pairs], lr=RATE, weight_decay=0.0)

    def step(self, batch: Batch, step: int, last: int) -> tuple[float, dict[str, list[bool]] | None]:
        """One step in the authors' order: the loss with penalty, and the kept triplets where it pruned."""
        loss = self.model(**batch).loss
        loss.backward()
        self.optimizer.step()
        kept = None
        if step < last:
            kept = self.allocator.update_and_allocate(self.model.model, step)[1]
        elif step == last:  # on its own it would choose from the scores of the step before
            self.allocator.update_ipt(self.model.model)
            kept = self.final = self.allocator.mask_to_budget(self.model.model, self.allocator.target_bgt)
        else:
            self.allocator.mask_using_rank_pattern(self.model.model, self.final)
        self.optimizer.zero_grad()
        return float(loss.detach()), kept

    def assert_equal_weights_and_moments(self, *, moments: bool) -> None:
        for layer, key, name, parameter in self.pairs:
            parts = layer.parts(0)
            torch.testing.assert_close(parts[key].view_as(parameter), parameter.detach(), rtol=0, atol=1e-9)
            if moments:
                for moment, theirs in (
                    ("sensitivity", self.allocator.exp_avg_ipt),
                    ("uncertainty", self.allocator.exp_avg_unc),
                ):
                    values = theirs[name].detach()
                    mine = parts[f"{key}_{moment}"].view_as(values)
                    torch.testing.assert_close(mine, values, rtol=1e-8, atol=1e-10 * float(values.max()))


def bert() -> nn.Module:
    torch.manual_seed(0)
    widths = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    quiet = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "initializer_range": 0.3}
    return BertForSequenceClassification(BertConfig(vocab_size=40, num_labels=3, **widths, **quiet)).double()


def test_scores_and_kept_triplets_are_those_of_the_authors_code_in_peft() -> None:
    """Each trains on its own; after every step weights, moments, penalised loss and kept triplets are the same."""
    steps, first, last, every, initial, target, gamma = 30, 3, 18, 2, 4, 2, 0.3
    config = AdaLoRAConfig(
        rank=target, initial_rank=initial, alpha=6.0, orthogonality=gamma, sensitivity_at="after_step",
        prune_every=every, initial_fraction=first / steps, final_fraction=(steps - last) / steps,
    )  # fmt: skip
    pack = Pack(seeds=(3,), total_steps=(steps,), rows=4)
    variant = attach(AdaLoRA, bert(), targets=["*self.query", "*self.value"], pack=pack, configs=[config])
    assert isinstance(variant, AdaLoRA)
    alpha = 6.0 / target * (initial + 1e-5)  # PEFT divides by the initial rank and 1e-5
    theirs = PeftSide(variant, bert(), AdaLoraConfig(
        init_r=initial, target_r=target, tinit=first, tfinal=steps - last, deltaT=every, total_step=steps,
        orth_reg_weight=gamma, target_modules=["query", "value"], lora_alpha=alpha,
    ))  # fmt: skip
    one = torch.ones(1, dtype=torch.float64)
    optimizer = AdamW(variant.parameter_groups(RATE * one, 0 * one), trials=1)
    generator, prunings = torch.Generator().manual_seed(1), 0
    for step in range(1, steps + 1):
        tokens, labels = (torch.randint(n, size, generator=generator) for n, size in ((40, (4, 6)), (3, (4,))))
        batch = {"input_ids": tokens, "labels": labels}
        penalty = variant.penalty()
        loss = variant.model(**batch).loss + penalty.sum()
        loss.backward()
        variant.before_step()
        optimizer.step(one, one.bool())
        pack.steps[0] += 1
        variant.after_step()
        optimizer.zero_gradients()

        their_loss, kept = theirs.step(batch, step, last)
        assert float(loss.detach()) == pytest.approx(their_loss, rel=1e-10)
        theirs.assert_equal_weights_and_moments(moments=step <= last)
        whole = {"initial": 4 * initial, "target": 4 * target}
        assert budget(step, first=first, last=last, **whole) == theirs.allocator.budget_schedule(step)[0]
        if kept is not None:
            ours = {f"{name}.lora_E.default": flags for name, flags in alive(variant).items()}
            assert ours == kept, step
            prunings += left(variant) < whole["initial"]
    assert prunings == len([4, 6, 8, 10, 12, 14, 16, 18])
    assert left(variant) == whole["target"]


fractions = st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)).filter(lambda pair: sum(pair) <= 1)


@settings(deadline=None)
@given(fractions, st.integers(1, 300), st.integers(1, 50), st.integers(0, 50))
def test_the_budget_falls_as_a_cubic_from_the_initial_to_the_target_total(
    shares: tuple[float, float], total: int, target: int, more: int
) -> None:
    config = AdaLoRAConfig(initial_fraction=shares[0], final_fraction=shares[1])
    initial = target + more
    first, last = round(shares[0] * total), max(1, total - round(shares[1] * total))
    assert last == last_pruning(total, config)
    b = [budget(t, first=first, last=last, initial=initial, target=target) for t in range(total + 1)]
    assert b[0] == initial
    assert b[last:] == [target] * (total + 1 - last)
    assert all(sooner >= later for sooner, later in pairwise(b))
    assert b[: min(first + 1, last)] == [initial] * min(first + 1, last)
    for t in range(first, last):
        cubic = target + more * ((last - t) / (last - first)) ** 3
        assert cubic - 1 - 1e-9 < b[t] <= cubic + 1e-9


def test_the_budget_counts_the_final_phase_from_the_end() -> None:
    last = last_pruning(1000, AdaLoRAConfig(initial_fraction=0.1, final_fraction=0.3))
    b = [budget(t, first=100, last=last, initial=96, target=64) for t in (0, 100, 101, 400, 699, 700, 1000)]
    assert b == [96, 96, 95, 68, 64, 64, 64]


@settings(max_examples=25, deadline=None)
@given(
    fractions,
    st.sampled_from([1, 2, 3, 4, 7, 11]),
    st.integers(1, 6),
    st.fixed_dictionaries({name: st.integers(0, 3) for name in USED}),
    st.sampled_from([None, 3, 5]),
)
def test_exactly_the_target_total_is_left_at_the_end_of_any_run(
    shares: tuple[float, float], steps: int, every: int, ranks: dict[str, int], initial: int | None
) -> None:
    config = AdaLoRAConfig(
        rank=ranks, initial_rank=initial, initial_fraction=shares[0], final_fraction=shares[1], prune_every=every
    )
    variant = attached([config, AdaLoRAConfig(rank=1)], steps=steps)  # the other keeps layers of rank 0 in the model
    trained(variant, watch=unwatched)
    assert left(variant, 0) == sum(ranks.values())
    assert left(variant, 1) == 3
    for name, layer in variant.layers.items():
        parts = layer.parts(0)
        assert not parts["Lambda"][~parts["alive"]].any(), name
        assert ranks[name] or variant.ranks_alive()[name][0] == 0


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_final_phase_as_long_as_the_run_prunes_once_after_the_first_step(steps: int) -> None:
    variant = attached([AdaLoRAConfig(rank=2, initial_fraction=0.0, final_fraction=0.99)], steps=steps)
    totals: list[int] = []
    trained(variant, watch=lambda variant, step, metrics: totals.append(left(variant)))
    assert totals == [6] * steps


def test_with_the_initial_rank_equal_to_the_rank_nothing_is_ever_pruned() -> None:
    variant = attached([AdaLoRAConfig(rank=3, initial_rank=3, prune_every=1)], steps=12)

    def everything_is_there(variant: AdaLoRA, step: int, metrics: dict[str, list[float]]) -> None:
        assert variant.ranks_alive() == {name: [3] for name in USED}
        assert all(bool(layer.parts(0)["Lambda"].all()) for layer in variant.layers.values())

    trained(variant, watch=everything_is_there)


score_lists = st.lists(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), max_size=6), min_size=1, max_size=5)


@settings(deadline=None)
@given(score_lists, st.data())
def test_ties_never_prune_below_or_above_the_budget(scores: list[list[float]], data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, sum(map(len, scores))))
    chosen = highest_triplets([torch.tensor(layer, dtype=torch.float64) for layer in scores], kept)
    assert [len(layer) for layer in chosen] == [len(layer) for layer in scores]
    assert sum(int(layer.sum()) for layer in chosen) == kept
    flags = torch.cat(chosen)
    values = torch.tensor([score for layer in scores for score in layer], dtype=torch.float64)
    if 0 < kept < len(values):
        assert values[flags].min() >= values[~flags].max()


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5), st.data())
def test_equal_scores_are_kept_layer_by_layer_in_turn(lengths: list[int], data: st.DataObject) -> None:
    kept = data.draw(st.integers(0, sum(lengths)))
    chosen = highest_triplets([torch.zeros(length) for length in lengths], kept)
    in_turn = sorted((place, layer) for layer, length in enumerate(lengths) for place in range(length))[:kept]
    assert {(int(i), layer) for layer, flags in enumerate(chosen) for i in torch.nonzero(flags)} == set(in_turn)


def test_scores_that_are_all_zero_keep_exactly_the_budget_spread_over_the_layers() -> None:
    """Nothing is learned without a penalty and with Λ = 0 held: every score is 0 in a real run."""
    variant = attached([AdaLoRAConfig(rank=2, initial_rank=5, orthogonality=0.0, prune_every=1)], steps=10)
    totals: list[int] = []

    def spread_over_layers(variant: AdaLoRA, step: int, metrics: dict[str, list[float]]) -> None:
        assert not any(layer.scores(0).any() for layer in variant.layers.values())
        ranks = [ranks[0] for ranks in variant.ranks_alive().values()]
        assert max(ranks) - min(ranks) <= 1
        totals.append(sum(ranks))

    trained(variant, rate=0.0, watch=spread_over_layers)
    expected = [budget(t, first=1, last=6, initial=15, target=6) for t in range(1, 11)]
    assert totals == expected
    assert len(set(totals)) > 3


def by_hand(variant: AdaLoRA, trial: int, *, squared: bool) -> float:
    """γ R of one trial, its own ranks only."""
    norms = []
    for layer in variant.layers.values():
        parts = {key: part.numpy() for key, part in layer.parts(trial).items()}
        if layer.ranks[trial] == 0:
            continue
        for gram in (parts["P"].T @ parts["P"], parts["Q"] @ parts["Q"].T):
            norms.append(np.linalg.norm(gram - np.eye(len(gram))))
    gamma = variant.configs[trial].orthogonality
    return gamma * float(np.sum(np.square(norms)) if squared else np.mean(norms) if norms else 0.0)


def test_the_penalty_is_the_mean_of_norms_or_the_sum_of_squares_over_a_trials_own_matrices() -> None:
    configs = [
        AdaLoRAConfig(rank=3, orthogonality=0.1),
        AdaLoRAConfig(rank={"first": 2}, orthogonality=0.5),
        AdaLoRAConfig(rank=0, orthogonality=0.5),
        AdaLoRAConfig(rank=3, orthogonality=0.1, orthogonality_norm="squared_sum"),
        AdaLoRAConfig(rank={"second": 1, "third": 2}, orthogonality=0.3, orthogonality_norm="squared_sum"),
        AdaLoRAConfig(rank=3, orthogonality=0.0),
    ]
    variant = attached(configs, steps=6)
    squared = [False, False, False, True, True, False]

    def compare() -> None:
        penalty = variant.penalty()
        expected = [by_hand(variant, k, squared=form) for k, form in enumerate(squared)]
        assert penalty.tolist() == pytest.approx(expected, rel=1e-12)

    compare()
    penalty = variant.penalty()
    penalty.sum().backward()
    for layer in variant.layers.values():
        for key in ("P", "Q"):
            gradient = getattr(layer, key).grad
            assert torch.isfinite(gradient).all()
            for trial in range(len(configs)):
                part = layer.parts(trial)[key]
                padding = torch.ones(gradient.shape[1:], dtype=torch.bool)
                padding[tuple(slice(size) for size in part.shape)] = False
                assert not gradient[trial][padding].any()
                assert bool(gradient[trial].any()) == (layer.ranks[trial] > 0 and configs[trial].orthogonality > 0)
    trained(variant, watch=lambda variant, step, metrics: compare())
    assert variant.penalty().requires_grad


class Directions(NamedTuple):
    """P, Q and the diagonal of I of some layers, for a pack of trials."""

    lefts: list[Tensor]
    rights: list[Tensor]
    within: list[Tensor]

    def distance(self, squared: Sequence[bool]) -> Tensor:
        return distance_from_orthonormal(*self, torch.tensor(squared))

    def plain_distance(self, squared: Sequence[bool]) -> Tensor:
        """The same from the definition, with autograd's own gradient."""
        total = torch.zeros(len(squared), dtype=self.within[0].dtype)
        for P, Q, within in zip(*self, strict=True):
            for gram in (P.mT @ P - torch.diag_embed(within), Q @ Q.mT - torch.diag_embed(within)):
                norms = torch.linalg.vector_norm(gram, dim=(1, 2))
                total = total + torch.where(torch.tensor(squared), norms.square(), norms)
        return total

    def gradients(self, distance: Tensor, upstream: Sequence[float]) -> list[Tensor]:
        return list(torch.autograd.grad(distance, [*self.lefts, *self.rights], distance.new_tensor(upstream)))

    def of_trials(self, *trials: int) -> "Directions":
        """Some of the trials as a pack of their own; layers that are padding alone are not there."""
        kept = [i for i, within in enumerate(self.within) if within[list(trials)].any()]
        return Directions(*([own[i].detach()[list(trials)].requires_grad_() for i in kept] for own in self))


def directions(*shapes: tuple[int, int, int], ranks: Sequence[Sequence[int]], dtype: torch.dtype) -> Directions:
    """Random P and Q of shapes (d_out, r, d_in), each trial's zero from its rank on; ranks are by layer and trial."""
    made, generator = Directions([], [], []), torch.Generator().manual_seed(0)
    for (d_out, r, d_in), by_trial in zip(shapes, ranks, strict=True):
        within = (torch.arange(r) < torch.tensor(by_trial)[:, None]).to(dtype)
        P, Q = (torch.randn(len(by_trial), d, r, generator=generator, dtype=torch.float64).to(dtype) * within[:, None]
                for d in (d_out, d_in))  # fmt: skip
        made.lefts.append((0.3 * P).requires_grad_())
        made.rights.append((0.3 * Q).mT.contiguous().requires_grad_())
        made.within.append(within)
    return made


ODD = ((7, 3, 5), (9, 4, 6), (7, 3, 5), (5, 3, 7))
ODD_RANKS = ((3, 2, 0), (4, 1, 0), (3, 3, 0), (2, 0, 3))


@pytest.mark.parametrize("squared", [(False, False, False), (True, True, True), (True, False, False)])
def test_the_closed_form_of_the_penaltys_gradient_is_autograds(squared: Sequence[bool]) -> None:
    """Layers of like and unlike shapes, ranks below the padding, layers of rank 0, a pruned triplet that is zero."""
    given = directions(*ODD, ranks=ODD_RANKS, dtype=torch.float64)
    with torch.no_grad():
        given.lefts[1][0, :, 2], given.rights[1][0, 2] = 0.0, 0.0
    ours, theirs = given.distance(squared), given.plain_distance(squared)
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)
    upstream = (0.7, -1.3, 2.0)
    for mine, other in zip(given.gradients(ours, upstream), given.gradients(theirs, upstream), strict=True):
        torch.testing.assert_close(mine, torch.nan_to_num(other), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("squared", [False, True])
def test_the_penaltys_gradient_is_that_of_finite_differences(squared: bool) -> None:
    given = directions(*ODD, ranks=((3, 2), (4, 1), (3, 3), (2, 1)), dtype=torch.float64)

    def function(*matrices: Tensor) -> Tensor:
        half = len(matrices) // 2
        return Directions([*matrices[:half]], [*matrices[half:]], given.within).distance((squared, not squared))

    assert torch.autograd.gradcheck(function, (*given.lefts, *given.rights))


@pytest.mark.parametrize("squared", [False, True])
def test_orthonormal_directions_have_a_gradient_of_zero(squared: bool) -> None:
    given = directions((8, 3, 6), (8, 3, 6), ranks=((3, 2, 0), (3, 3, 0)), dtype=torch.float64)
    with torch.no_grad():
        for P, Q in zip(given.lefts, given.rights, strict=True):
            P[0], Q[0] = torch.eye(8, 3), torch.eye(3, 6)
    distance = given.distance((squared,) * 3)
    assert distance[[0, 2]].tolist() == [0.0, 0.0]
    for gradient in given.gradients(distance, (1.0, 1.0, 1.0)):
        assert torch.equal(gradient[[0, 2]], torch.zeros_like(gradient[[0, 2]]))
        assert torch.isfinite(gradient).all()
        assert gradient[1].any()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_trials_distance_and_gradient_have_the_same_bits_alone_and_in_a_pack(threads: int) -> None:
    """Also where neighbours have layers that this trial does not."""
    shapes = [(64, 8, 64), (256, 8, 64), (64, 8, 64), (64, 32, 128), (64, 8, 256), (64, 8, 64), (128, 32, 128)]
    ranks = [(0, 8, 3), (5, 6, 8), (8, 8, 8), (0, 24, 20), (7, 0, 8), (8, 4, 6), (24, 32, 17)]
    squared, upstream = (False, True, False), (0.1, 0.02, 0.3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        packed = directions(*shapes, ranks=ranks, dtype=torch.float32)
        distance = packed.distance(squared)
        there = packed.gradients(distance, upstream)
        for k in range(3):
            alone = packed.of_trials(k)
            own = alone.distance(squared[k : k + 1])
            assert torch.equal(own[0], distance[k])
            mine = iter(alone.gradients(own, upstream[k : k + 1]))
            for gradient, by_trial in zip(there, (*ranks, *ranks), strict=True):
                assert not gradient[k].any() if by_trial[k] == 0 else torch.equal(next(mine)[0], gradient[k])
    finally:
        torch.set_num_threads(before)


def test_under_autocast_the_penalty_keeps_the_precision_of_the_weights() -> None:
    given = directions(*ODD, ranks=ODD_RANKS, dtype=torch.float32)
    expected = given.distance((False, True, False))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = given.distance((False, True, False))
    assert torch.equal(found, expected)
    pairs = (given.gradients(distance, (1.0, 1.0, 1.0)) for distance in (found, expected))
    assert all(torch.equal(mine, other) for mine, other in zip(*pairs, strict=True))


def test_the_penaltys_gradient_adds_to_what_is_there_in_the_loss_or_apart() -> None:
    """Also twice through one graph."""
    x = torch.randn(ROWS, 12, generator=stream(1), dtype=torch.float64)

    def found(*, together: bool) -> list[Tensor]:
        variant = attached([AdaLoRAConfig(rank=2)], steps=5)
        for layer in variant.layers.values():
            nn.init.ones_(layer.Lambda)
        loss, penalty = variant.model(x).square().sum(), variant.penalty()
        if together:
            (loss + 2 * penalty.sum()).backward()
        else:
            loss.backward()
            penalty.sum().backward(retain_graph=True)
            penalty.sum().backward()
        return [getattr(layer, key).grad for layer in variant.layers.values() for key in ("P", "Lambda", "Q")]

    for mine, other in zip(found(together=True), found(together=False), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("chosen", [(True, True, True), (True, False, True)])
def test_sensitivities_are_smoothed_as_written_and_to_the_same_bits_alone_and_in_a_pack(chosen: Sequence[bool]) -> None:
    generator = torch.Generator().manual_seed(0)
    weights, gradients, means, spreads = (
        [torch.randn(3, *shape, generator=generator) for shape in ((64, 8), (8, 128), (64, 8))] for _ in range(4)
    )
    gradients[0][1] = math.nan if not chosen[1] else 1.0
    betas = torch.tensor([0.85, 0.4, 0.7]), torch.tensor([0.9, 0.85, 0.2])
    now, then = [mean.clone() for mean in means], [spread.clone() for spread in spreads]
    smooth(weights, gradients, now, then, betas=betas, chosen=torch.tensor(chosen))
    for k, is_chosen in enumerate(chosen):
        own = [[tensor[k : k + 1].clone() for tensor in tensors] for tensors in (weights, gradients, means, spreads)]
        smooth(*own, betas=(betas[0][[k]], betas[1][[k]]), chosen=torch.tensor([is_chosen]))
        for i, (w, g, mean, spread) in enumerate(zip(weights, gradients, means, spreads, strict=True)):
            assert torch.equal(now[i][k], own[2][i][0] if is_chosen else mean[k])
            assert torch.equal(then[i][k], own[3][i][0] if is_chosen else spread[k])
            if is_chosen:
                beta1, beta2 = float(betas[0][k]), float(betas[1][k])
                smoothed = beta1 * mean[k] + (1 - beta1) * (w[k] * g[k]).abs()
                torch.testing.assert_close(now[i][k], smoothed)
                distance = ((w[k] * g[k]).abs() - smoothed).abs()
                torch.testing.assert_close(then[i][k], beta2 * spread[k] + (1 - beta2) * distance)


def test_without_orthogonality_the_penalty_is_zero_and_has_no_gradient() -> None:
    penalty = attached([AdaLoRAConfig(rank=2, orthogonality=0.0)], steps=2).penalty()
    assert penalty.tolist() == [0.0]
    assert not penalty.requires_grad


def test_a_pruned_triplet_can_come_back_between_prunings_but_not_in_the_final_phase() -> None:
    config = AdaLoRAConfig(rank=2, initial_rank=5, prune_every=3, initial_fraction=0.0, final_fraction=0.3)
    variant = attached([config], steps=60)
    history: list[dict[str, list[bool]]] = []
    moving_again = 0

    def snapshot(variant: AdaLoRA, step: int, metrics: dict[str, list[float]]) -> None:
        nonlocal moving_again
        history.append(alive(variant))
        for layer in variant.layers.values():
            parts = layer.parts(0)
            dead_but_moving = bool(parts["Lambda"][~parts["alive"]].any())
            moving_again += dead_but_moving
            assert not (dead_but_moving and (step >= 42 or step % 3 == 0)), step

    trained(variant, watch=snapshot)
    flat = [np.concatenate(list(kept.values())) for kept in history]
    revived = [step for step, (before, after) in enumerate(pairwise(flat), start=2) if (after & ~before).any()]
    assert moving_again
    assert revived
    assert all(step <= 42 and step % 3 == 0 for step in revived)
    assert all(kept == history[41] for kept in history[41:])


def test_between_two_prunings_the_update_reported_is_the_one_the_model_computes() -> None:
    variant = attached([AdaLoRAConfig(rank=2, initial_rank=5, prune_every=4, initial_fraction=0.0)], steps=30)
    x = torch.randn(ROWS, 12, generator=stream(1), dtype=torch.float64)

    @torch.no_grad()
    def same_output(variant: AdaLoRA, step: int, metrics: dict[str, list[float]]) -> None:
        adapted = variant.model(x)
        torch.testing.assert_close(variant.merge()(x), adapted, rtol=1e-12, atol=1e-12)
        variant.unmerge()

    trained(variant, watch=same_output)
    for update, ranks in zip(variant.deltas(0).values(), variant.ranks_alive().values(), strict=True):
        assert update.right.shape[0] == ranks[0]


def test_the_ranks_alive_follow_the_budget_step_by_step_to_the_target() -> None:
    config = AdaLoRAConfig(rank={"first": 1, "second": 2, "third": 3}, prune_every=3)
    variant = attached([config], steps=50)
    totals: list[int] = []
    trained(variant, watch=lambda variant, step, metrics: totals.append(left(variant)))
    expected = [2 + 3 + 5]
    for step in range(1, 51):
        prunes = step <= 30 and step % 3 == 0
        now = budget(step, first=5, last=30, initial=10, target=6) if prunes else expected[-1]
        expected.append(now)
    assert totals == expected[1:]
    assert totals[-1] == 6


@pytest.mark.parametrize("gamma", [0.0, 0.1])
@pytest.mark.parametrize("when", ["before_step", "after_step"])
def test_a_layer_that_no_input_reaches_keeps_nothing_and_stops_nothing(gamma: float, when: str) -> None:
    config = AdaLoRAConfig(rank=2, initial_rank=4, orthogonality=gamma, sensitivity_at=when)
    variant = attached([config], steps=20, targets=(*USED, "unused"))
    trained(variant, watch=unwatched)
    assert left(variant) == 8
    assert not variant.layers["unused"].parts(0)["Lambda"].any()
    assert gamma or variant.ranks_alive()["unused"] == [0]


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40))
def test_the_default_initial_rank_is_one_and_a_half_times_the_rank_where_that_fits(
    rank: int, d_out: int, d_in: int
) -> None:
    rank = min(rank, d_out, d_in)
    found = AdaLoRAConfig(rank=rank).initial_rank_at(rank, LinearMap(nn.Linear(d_in, d_out)))
    assert found == min(-(-3 * rank // 2), d_out, d_in)


def test_a_layer_of_rank_0_starts_at_rank_0_whatever_the_initial_rank() -> None:
    config = AdaLoRAConfig(rank={"first": 2, "second": 0}, initial_rank=4)
    variant = attached([config], steps=4)
    assert list(variant.layers) == ["first"]
    assert variant.ranks_alive() == {"first": [4]}


def test_the_scale_is_that_of_the_target_rank_and_stays_while_ranks_fall() -> None:
    variant = attached([AdaLoRAConfig(rank={"first": 1, "second": 2, "third": 3}, alpha=6.0, prune_every=1)], steps=20)
    seen: list[dict[str, list[float]]] = []
    trained(variant, watch=lambda variant, step, metrics: seen.append(variant.scales()))
    assert seen == [{"first": [6.0], "second": [3.0], "third": [2.0]}] * 20


def test_the_start_is_the_base_model_and_directions_of_deviation_two_hundredths() -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(300, 200, bias=False)).double()
    x = torch.randn(3, 300, dtype=torch.float64)
    before = wide(x)
    pack = Pack(seeds=(1,), total_steps=(5,), rows=3)
    variant = attach(AdaLoRA, wide, targets=["0"], pack=pack, configs=[AdaLoRAConfig(rank=16)])
    layer = variant.layers["0"]
    assert isinstance(layer, AdaLoRALayer)
    assert torch.equal(wide(x), before)
    for key in ("P", "Q"):
        assert float(layer.parts(0)[key].std()) == pytest.approx(0.02, rel=0.05)


def test_a_trial_that_stopped_stays_as_it_was_while_the_others_go_on() -> None:
    """Its scores hold no NaN, and no pruning touches it."""
    configs = [AdaLoRAConfig(rank=2, prune_every=2, sensitivity_at=when) for when in ("before_step", "after_step")]

    class Poisoned(Regression):
        def training_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
            for i, batch in enumerate(super().training_batches(seed, batch_size)):
                yield batch | {"y": batch["y"] * (float("nan") if seed != 5 and i >= 8 else 1.0)}

    variant = attached([configs[0], *configs], steps=40)
    states: list[dict[int, dict[str, Tensor]]] = []
    trials = [TrialHyperparameters(seed=seed, learning_rate=2e-2) for seed in variant.pack.seeds]
    train(
        variant, Poisoned(), trials, SharedHyperparameters(steps=40, batch_size=ROWS),
        on_step=lambda step, metrics: states.append({k: variant.trial_state(k) for k in (1, 2)}),
    )  # fmt: skip
    assert len(states) == 40
    assert left(variant, 0) == 6
    assert left(variant, 1) > 6
    for k in (1, 2):
        assert all(torch.equal(states[7][k][key], values) for key, values in states[-1][k].items())
