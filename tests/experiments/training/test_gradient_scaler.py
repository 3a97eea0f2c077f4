"""Float16: every trial of a pack is scaled as torch's GradScaler would scale it alone, and skips steps by itself."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from models import ALONE, PACKED, Regression, attached, built, knobs, train
from project_paths import CONFIGS
from torch import Tensor, nn

from experiments.config.loading import load
from experiments.record.run_dir import RunDirectory
from experiments.runner import execute
from experiments.tasks.task import Batch
from experiments.terminal import Display
from experiments.training import gradient_scaler
from experiments.training.checkpoint import Checkpoints, Holder
from experiments.training.gradient_scaler import GROWTH_INTERVAL, INITIAL_SCALE, SMALLEST_SCALE, GradientScaler
from experiments.training.hyperparameters import SharedHyperparameters, TrialHyperparameters
from experiments.training.interruption import Interrupted
from experiments.training.loop import compute_gradients
from experiments.training.optimizer import AdamW, schedule_factor
from experiments.training.trial import Outcome
from lora_variants.interface.variant import Variant

STEPS, ROWS, SEEDS = 16, 8, (3, 4)
OVERFLOWS = (
    1e4  # times a loss of about one: its gradient is beyond float16 at the first scale, not at a sixteenth of it
)
ADAPTER: dict[str, Any] = {"rank": 4, "initial_rank": 6, "prune_every": 1, "initial_fraction": 0.0}

every_variant = pytest.mark.parametrize("name", [*PACKED, *ALONE])
every_device = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])

Factors = Mapping[int, Mapping[int, float]]


class Amplified(Regression):
    """The loss of the trial of a seed is multiplied by a factor, at some steps: {seed: {step: factor}}."""

    def __init__(self, factors: Factors) -> None:
        super().__init__(torch.float32)
        self.factors = factors

    def training_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        for step, batch in enumerate(super().training_batches(seed, batch_size)):
            factor = self.factors.get(seed, {}).get(step, 1.0)
            yield batch | {"factor": torch.full((batch_size,), factor)}

    def row_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return super().row_losses(model, batch) * batch["factor"]


def pack_of(
    name: str, seeds: Sequence[int] = SEEDS, *, kind: str = "linear", device: str = "cpu", **wanted: Any
) -> Variant:
    configs = [knobs(name, **(ADAPTER | wanted))] * (1 if name in ALONE else len(seeds))
    model = built(kind).float().to(device)
    return attached(name, model, configs=configs, seeds=seeds[: len(configs)], steps=STEPS, rows=ROWS)


@dataclass
class Watching:
    """Checkpoints in memory: what every trial is before the first step and after every one."""

    states: list[list[dict[str, Tensor]]] = field(default_factory=list)
    scales: list[list[float]] = field(default_factory=list)
    skipped: list[list[int]] = field(default_factory=list)

    def restore(self, holders: Mapping[str, Holder]) -> int:
        self._note(holders)
        return 0

    def after_step(self, step: int, holders: Mapping[str, Holder], *, seconds: float) -> None:
        self._note(holders)

    def _note(self, holders: Mapping[str, Holder]) -> None:
        variant, optimizer, scaler = (holders.get(name) for name in ("variant", "optimizer", "scaler"))
        assert isinstance(variant, Variant)
        assert isinstance(optimizer, AdamW)
        trials = range(variant.pack.trials)
        self.states.append([variant.trial_state(k) | optimizer.trial_state(k) for k in trials])
        if isinstance(scaler, GradientScaler):
            self.scales.append(scaler.scale.tolist())
            self.skipped.append(scaler.skipped.tolist())


@dataclass
class Run:
    """What training did: outcomes, metrics of every step, and states before the first step and after each."""

    outcomes: list[Outcome]
    metrics: list[dict[str, list[float]]]
    seen: Watching


def run(variant: Variant, factors: Factors, *, precision: str = "float16", max_grad_norm: float | None = 1.0) -> Run:
    trials = [
        TrialHyperparameters(seed=s, learning_rate=1e-2, weight_decay=0.1, max_grad_norm=max_grad_norm, warmup_steps=2)
        for s in variant.pack.seeds
    ]
    heard: list[dict[str, list[float]]] = []
    seen = Watching()
    outcomes = train(
        variant,
        Amplified(factors),
        trials,
        SharedHyperparameters(steps=STEPS, batch_size=ROWS, precision=precision),
        on_step=lambda step, metrics: heard.append(metrics),
        checkpoints=seen,
    )
    return Run(outcomes, heard, seen)


def unequal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {key for key in one if not torch.equal(one[key], other[key])}


# Torch's own


def torchs_run(variant: Variant, factors: Factors) -> tuple[list[float], list[bool]]:
    """A pack of one trained by torch.amp.GradScaler and torch.optim.AdamW; scales and which steps were skipped."""
    task, (seed,) = Amplified(factors), variant.pack.seeds
    groups = variant.parameter_groups(torch.tensor([1e-2]), torch.tensor([0.1]))
    optimizer = torch.optim.AdamW(
        [{"params": [*g.parameters], "peak": float(g.rates), "weight_decay": float(g.weight_decay)} for g in groups]
    )
    scaler = torch.amp.GradScaler("cpu", growth_interval=gradient_scaler.GROWTH_INTERVAL)
    parameters = [p for group in groups for p in group.parameters]
    scales, skipped = [], []
    for step, batch in zip(range(STEPS), task.training_batches(seed, ROWS), strict=False):
        with torch.autocast("cpu", dtype=torch.float16):
            loss = task.row_losses(variant.model.train(), batch).sum() / task.row_counts(batch).sum()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        penalty = variant.penalty()
        if penalty.requires_grad:
            penalty.sum().backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * schedule_factor("linear", step, total=STEPS, warmup=2)
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        scales.append(scaler.get_scale())
        skipped.append(scales[-1] < before)
    return scales, skipped


@pytest.mark.parametrize("name", ["lora", "lora_plus", "adalora", "full", "full_all"])
def test_a_pack_of_one_is_scaled_and_steps_as_by_torchs_gradscaler_and_adamw(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradient_scaler, "GROWTH_INTERVAL", 3)
    factors = {3: {0: OVERFLOWS, 1: OVERFLOWS, 2: OVERFLOWS, 6: math.inf, 10: math.nan, 14: 1e6}}
    ours, theirs = (pack_of(name, (3,), initial_rank=4, orthogonality=0.1) for _ in range(2))
    found = run(ours, factors)
    scales, skipped = torchs_run(theirs, factors)
    assert (sum(skipped), len(set(scales))) == (6, 3)
    assert [metrics["train/loss_scale"] for metrics in found.metrics] == [[scale] for scale in scales]
    assert [count for (count,) in found.seen.skipped] == [sum(skipped[:step]) for step in range(STEPS + 1)]
    for key, part in theirs.trained_tensors(0).items():
        torch.testing.assert_close(ours.trained_tensors(0)[key], part, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("interval", [1, 3, 2000])
def test_each_trials_scale_moves_as_torch_moves_one_scale(interval: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_scaler, "GROWTH_INTERVAL", interval)
    trials, generator = 4, torch.Generator().manual_seed(interval)
    scaler = GradientScaler([], trials=trials)
    scales = [torch.full((), 2.0**16) for _ in range(trials)]
    trackers = [torch.zeros((), dtype=torch.int32) for _ in range(trials)]
    chances = torch.tensor([0.0, 0.1, 0.3, 0.55])
    everyone = torch.ones(trials, dtype=torch.bool)
    for _ in range(300 if interval < 2000 else 4001):
        finite = torch.rand(trials, generator=generator) >= chances * (scaler.scale > SMALLEST_SCALE)
        assert scaler.update(finite, everyone).all()
        for k in range(trials):
            torch._amp_update_scale_(scales[k], trackers[k], (~finite[k]).float(), 2.0, 0.5, interval)
        assert scaler.scale.tolist() == torch.stack(scales).tolist()
        assert scaler.good_steps.tolist() == torch.stack(trackers).tolist()
    assert scaler.scale[0] == {1: 2.0**127, 3: 2.0**116, 2000: 2.0**18}[interval]


def test_the_first_scale_and_the_steps_to_its_growth_are_torchs_own() -> None:
    theirs = torch.amp.GradScaler("cpu")
    assert (theirs.get_scale(), theirs.get_growth_interval()) == (INITIAL_SCALE, GROWTH_INTERVAL)


# The gradient


def test_with_a_scale_of_its_own_each_trials_gradient_is_that_of_task_and_penalty_to_the_bit() -> None:
    shared, found = SharedHyperparameters(steps=STEPS, batch_size=ROWS, gradient_accumulation_steps=2), []
    for scaled in (False, True):
        variant = pack_of("adalora", orthogonality=0.1)
        task = Amplified({})
        groups = variant.parameter_groups(torch.ones(2), torch.zeros(2))
        scaler = GradientScaler(groups, trials=2)
        scaler.scale = torch.tensor([2.0**16, 2.0**-3])
        batches = [next(task.training_batches(seed, ROWS)) for seed in SEEDS]
        losses, penalties = compute_gradients(variant, task, batches, shared, scaler if scaled else None)
        assert float(penalties.min()) > 0
        gradients = {name: p.grad for name, p in variant.model.named_parameters() if p.grad is not None}
        found.append(gradients | {"losses": losses, "penalties": penalties})
    assert len(found[0]) == 10
    assert not unequal(*found)


def test_a_gradient_too_small_for_float16_survives_by_its_scale() -> None:
    variant, faint = pack_of("full"), {seed: dict.fromkeys(range(STEPS), 1e-7) for seed in SEEDS}
    groups = variant.parameter_groups(torch.ones(2), torch.zeros(2))
    batches = [next(Amplified(faint).training_batches(seed, ROWS)) for seed in SEEDS]
    norms = {}
    for precision in ("float32", "float16"):
        for scaler in (None, GradientScaler(groups, trials=2)):
            compute_gradients(
                variant, Amplified(faint), batches, SharedHyperparameters(1, ROWS, precision=precision), scaler
            )
            norms[precision, scaler is not None] = AdamW(groups, trials=2).gradient_norms()
            variant.model.zero_grad()
    torch.testing.assert_close(norms["float16", True], norms["float32", False], rtol=1e-2, atol=0)
    assert float((norms["float16", False] / norms["float32", False]).max()) < 0.9


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_in_any_other_precision_there_is_no_scaler(precision: str) -> None:
    found = run(pack_of("lora"), {}, precision=precision)
    assert found.seen.scales == []
    assert {name for metrics in found.metrics for name in metrics} == {
        "train/task_loss",
        "train/penalty",
        "train/gradient_norm",
        "train/learning_rate",
    }


# A step that is skipped


@every_device
@every_variant
def test_a_step_whose_gradient_overflows_changes_nothing_of_its_trial_and_counts(name: str, device: str) -> None:
    overflowing = {0, 4, 5}
    variant = pack_of(name, device=device, initial_rank=4, sensitivity_at="after_step")
    found = run(variant, {SEEDS[0]: dict.fromkeys(overflowing, OVERFLOWS)})
    for step in range(STEPS):
        changed = unequal(found.seen.states[step][0], found.seen.states[step + 1][0])
        assert (not changed) == (step in overflowing), (step, changed)
        assert found.metrics[step]["train/learning_rate"][0] == 1e-2 * schedule_factor(
            "linear", step, total=STEPS, warmup=2
        )
        assert math.isfinite(found.metrics[step]["train/task_loss"][0])
        assert math.isfinite(found.metrics[step]["train/gradient_norm"][0]) == (step not in overflowing)
    assert found.outcomes[0] == Outcome(steps_executed=STEPS)
    assert variant.pack.steps[0] == STEPS
    assert found.seen.states[-1][0]["steps"] == STEPS - len(overflowing)
    assert found.seen.skipped[-1][0] == len(overflowing)
    assert found.seen.scales[-1][0] == 2.0 ** (16 - len(overflowing))


@every_device
@pytest.mark.parametrize("name", PACKED)
def test_a_trial_that_overflows_leaves_no_bit_on_the_other(name: str, device: str) -> None:
    calm, disturbed = (
        run(pack_of(name, device=device), {SEEDS[0]: dict.fromkeys(steps, factor)})
        for steps, factor in (((), 1.0), ((1, 7), OVERFLOWS))
    )
    assert disturbed.seen.skipped[-1] == [2, 0]
    assert disturbed.seen.scales[-1] == [2.0**14, 2.0**16]
    for before, after in zip(calm.seen.states, disturbed.seen.states, strict=True):
        assert not unequal(before[1], after[1])
    assert unequal(calm.seen.states[-1][0], disturbed.seen.states[-1][0])


@every_device
@pytest.mark.parametrize("kind", ["linear", "attention", "conv1d_slices"])
@pytest.mark.parametrize("name", PACKED)
def test_a_trial_is_the_same_alone_and_packed_to_rounding_whatever_is_skipped(
    name: str, kind: str, device: str
) -> None:
    factors = {SEEDS[0]: {1: OVERFLOWS}, SEEDS[1]: {0: OVERFLOWS, 9: math.nan}}
    packed = run(pack_of(name, kind=kind, device=device), factors)
    for k, seed in enumerate(SEEDS):
        alone = run(pack_of(name, (seed,), kind=kind, device=device), factors)
        assert [scale[k] for scale in packed.seen.scales] == [scale for (scale,) in alone.seen.scales]
        found, expected = (
            torch.tensor([metrics["train/task_loss"][place] for metrics in of.metrics])
            for of, place in ((packed, k), (alone, 0))
        )
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-3, equal_nan=True)


@every_device
@every_variant
def test_its_losses_are_close_to_those_of_float32(name: str, device: str) -> None:
    narrow, wide = (
        torch.tensor([m["train/task_loss"] for m in run(pack_of(name, device=device), {}, precision=precision).metrics])
        for precision in ("float16", "float32")
    )
    assert not torch.equal(narrow, wide)
    torch.testing.assert_close(narrow, wide, rtol=1e-2, atol=0)


# AdaLoRA's budget


@pytest.mark.parametrize("skipped", [{0, 1, 2}, {9}, {10, 11, 12, 13, 14, 15}, {15}, set(range(16))])
@pytest.mark.parametrize("final_fraction", [0.4, 0.0])
@pytest.mark.parametrize("when", ["before_step", "after_step"])
def test_adalora_keeps_its_budget_at_every_step_that_is_skipped(
    when: str, final_fraction: float, skipped: set[int]
) -> None:
    counts = []
    for steps in (set(), skipped):
        variant = pack_of("adalora", (3,), sensitivity_at=when, final_fraction=final_fraction)
        found = run(variant, {3: dict.fromkeys(steps, math.inf)})
        assert found.outcomes == [Outcome(steps_executed=STEPS)]
        alive = [
            sum(int(part.sum()) for key, part in of[0].items() if key.endswith("/alive")) for of in found.seen.states
        ]
        counts.append(alive)
    assert counts[0] == counts[1]
    assert counts[0][0] == 12
    assert counts[0][-1] == 8
    assert sum(ranks[0] for ranks in variant.ranks_alive().values()) == 8
    for state in found.seen.states:
        assert all(bool(part.isfinite().all()) for part in state[0].values())


@pytest.mark.parametrize("when", ["before_step", "after_step"])
def test_adalora_takes_no_sensitivity_from_a_step_that_is_skipped(when: str) -> None:
    found = run(pack_of("adalora", sensitivity_at=when), {SEEDS[0]: {4: OVERFLOWS}})
    before, after = found.seen.states[4][0], found.seen.states[5][0]
    kept = {key for key in before if key.endswith(("_sensitivity", "_uncertainty"))}
    assert len(kept) == 12
    assert not kept & unequal(before, after)
    assert kept <= unequal(after, found.seen.states[6][0])


# A trial that fails


@every_variant
def test_a_trial_that_no_scale_helps_fails_as_it_was_and_the_other_goes_on(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradient_scaler, "GROWTH_INTERVAL", 2)
    monkeypatch.setattr(gradient_scaler, "SMALLEST_SCALE", 2.0**13)
    variant = pack_of(name)
    found = run(variant, {SEEDS[0]: dict.fromkeys(range(4, 11), math.inf)})
    failed = found.outcomes[0]
    assert failed.failure is not None
    assert failed.failure.startswith("not finite at step 10: loss inf, gradient norm nan")
    assert failed.steps_executed == variant.pack.steps[0] == 9
    last = found.seen.states[min(STEPS, len(found.seen.states) - 1)][0]
    assert not unequal(found.seen.states[9][0], last)
    if name not in ALONE:
        assert found.outcomes[1] == Outcome(steps_executed=STEPS)
        calm = run(pack_of(name), {})
        assert not unequal(calm.seen.states[-1][1], found.seen.states[-1][1])
        assert [scale for scale, _ in found.seen.scales[9:]] == [2.0**13] * (STEPS - 8)
        assert all(math.isnan(of["train/loss_scale"][0]) for of in found.metrics[9:])  # it reports nothing any more


def test_a_scale_falls_to_float16s_smallest_normal_number_before_its_trial_is_given_up() -> None:
    scaler, never, running = GradientScaler([], trials=1), torch.tensor([False]), torch.tensor([True])
    assert [scaler.update(never, running).item() for _ in range(32)] == [True] * 30 + [False] * 2
    assert float(scaler.scale) == torch.finfo(torch.float16).smallest_normal
    assert scaler.skipped.tolist() == [30]


# The record


class StopAt(Checkpoints):
    """A checkpoint at one step, and a stop."""

    at = 0

    def after_step(self, step: int, holders: Mapping[str, Holder], *, seconds: float, now: bool = False) -> None:
        super().after_step(step, holders, seconds=seconds, now=step == self.at)
        if step == self.at:
            raise Interrupted


@pytest.mark.parametrize("at", [1, 5, 6, 9])
@every_variant
def test_a_resumed_run_has_its_scale_and_count_again_and_ends_bit_identical(
    tmp_path: Path, name: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gradient_scaler, "GROWTH_INTERVAL", 4)
    (tmp_path / "metrics.jsonl").touch()
    task, heard = Amplified({3: {0: OVERFLOWS, 1: OVERFLOWS, 5: OVERFLOWS, 11: math.inf}}), {}

    def go(variant: Variant, which: str, checkpoints: Checkpoints | None) -> None:
        trials = [TrialHyperparameters(seed=3, learning_rate=1e-2)]
        listener = heard.setdefault(which, []).append
        shared = SharedHyperparameters(steps=STEPS, batch_size=ROWS, precision="float16")
        train(variant, task, trials, shared, on_step=lambda _, m: listener(m), checkpoints=checkpoints)

    whole, cut, resumed = (pack_of(name, (3,), dropout=0.1) for _ in range(3))
    go(whole, "whole", None)
    stopping = StopAt(RunDirectory(tmp_path), config_hash="a run", every=0)
    stopping.at = at
    with pytest.raises(Interrupted):
        go(cut, "cut", stopping)
    go(resumed, "cut", Checkpoints(RunDirectory(tmp_path), config_hash="a run", every=0))
    assert len({metrics["train/loss_scale"][0] for metrics in heard["whole"]}) >= 3
    assert str(heard["cut"]) == str(heard["whole"])
    assert not unequal(whole.trial_state(0), resumed.trial_state(0))


def test_a_run_in_float16_records_its_scale_and_how_many_steps_it_skipped(tmp_path: Path) -> None:
    overrides = ("steps=6", "precision=float16", "task.evaluation_rows=64", "wandb.mode=disabled", "device=cpu")
    config = load(CONFIGS / "planted.yaml", overrides=overrides)
    folder = RunDirectory(execute(config, runs_dir=tmp_path, test=False, display=Display()).folder)
    steps = [row for row in folder.history() if "train/task_loss" in row]
    assert [(row["train/loss_scale"], row["train/steps_skipped"]) for row in steps] == [(2.0**16, 0)] * 6


def test_float16_on_mps_is_refused_with_the_way_out_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    config = load(CONFIGS / "planted.yaml", overrides=("precision=float16", "device=mps"))
    with pytest.raises(ValueError, match=r"float16 is not supported on MPS; use bfloat16 or float32"):
        execute(config, runs_dir=tmp_path / "runs", test=False, display=Display())
    assert not (tmp_path / "runs").exists()
