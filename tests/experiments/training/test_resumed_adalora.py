"""AdaLoRA stopped and gone on with: it ends on its budget with the same triplets, in every phase of its schedule."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import peft
import pytest
import torch
from models import train
from torch import Tensor, nn

from experiments.config.schema import StartConfig
from experiments.record.run_dir import RunDirectory
from experiments.record.starting_point import read_start
from experiments.tasks.task import Batch, Split, Task, TaskConfig
from experiments.training.checkpoint import Checkpoints, Holder
from experiments.training.hyperparameters import SharedHyperparameters, TrialHyperparameters
from experiments.training.interruption import Interrupted
from lora_variants.adalora.adalora import AdaLoRA
from lora_variants.adalora.config import AdaLoRAConfig
from lora_variants.interface.attach import attach
from lora_variants.interface.pack import Pack
from lora_variants.interface.rng import stream

WIDTH, LAYERS, ROWS, STEPS = 24, 4, 8, 40
INITIAL, RANK = 12, 8
KNOBS = {"rank": RANK, "initial_rank": INITIAL, "prune_every": 1, "initial_fraction": 0.1, "final_fraction": 0.25}
PRUNING, FINAL = 15, 33  # steps within those two phases, which end at 30 and 40


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))


class Regression(Task):
    """Random inputs to what another random model makes of them."""

    score_name: ClassVar[str] = "loss"
    higher_is_better: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__(TaskConfig(name="regression"))
        self.truth = torch.randn(WIDTH, WIDTH, generator=stream(0, "truth")) * WIDTH**-0.5

    def data_sha256(self) -> dict[str, str]:
        return {}

    def architecture(self) -> nn.Module:
        return model()

    def base_model(self, report: Any = None) -> nn.Module:
        return model()

    def training_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        generator = stream(seed, "data")
        while True:
            x = torch.randn(batch_size, WIDTH, generator=generator)
            yield {"x": x, "y": x @ self.truth}

    def evaluation_batches(self, split: Split) -> Iterator[Batch]:
        yield next(self.training_batches(99, 64))

    def row_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return (model(batch["x"]) - batch["y"]).square().sum(dim=1)

    def row_counts(self, batch: Batch) -> Tensor:
        return torch.ones(len(batch["x"]))

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        return dict(means)


def adalora(**knobs: Any) -> AdaLoRA:
    pack = Pack(seeds=(3,), total_steps=(STEPS,), rows=ROWS)
    variant = attach(AdaLoRA, model(), targets=["*"], pack=pack, configs=[AdaLoRAConfig(**(KNOBS | knobs))])
    assert isinstance(variant, AdaLoRA)
    return variant


def train_on(variant: AdaLoRA, checkpoints: Checkpoints | None = None) -> list[int]:
    """The number of triplets that are alive after every step."""
    totals: list[int] = []
    trials, shared = (
        [TrialHyperparameters(seed=3, learning_rate=1e-2)],
        SharedHyperparameters(steps=STEPS, batch_size=ROWS),
    )

    def count(step: int, metrics: Any) -> None:
        totals.append(sum(ranks[0] for ranks in variant.ranks_alive().values()))

    (outcome,) = train(variant, Regression(), trials, shared, on_step=count, checkpoints=checkpoints)
    assert outcome.failure is None
    return totals


class StopAt(Checkpoints):
    """A checkpoint at one step, and a stop."""

    at = 0

    def after_step(self, step: int, holders: Mapping[str, Holder], *, seconds: float, now: bool = False) -> None:
        super().after_step(step, holders, seconds=seconds, now=step == self.at)
        if step == self.at:
            raise Interrupted


def stopping(folder: Path, at: int) -> StopAt:
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").touch()
    found = StopAt(RunDirectory(folder), config_hash="a run", every=0)
    found.at = at
    return found


def in_peft(folder: Path, at: int) -> tuple[int, peft.PeftModel]:
    """PEFT's AdaLoRA on the same task, saved after a step and loaded again; (triplets then, the model loaded)."""
    budget = {"init_r": INITIAL, "target_r": RANK, "total_step": STEPS, "tinit": 4, "tfinal": 10, "deltaT": 1}
    targets = [str(i) for i in range(LAYERS)]
    wrapped = peft.get_peft_model(model(), peft.AdaLoraConfig(lora_alpha=16, target_modules=targets, **budget))
    steps_in_peft(wrapped, range(at))
    wrapped.save_pretrained(folder)
    return alive_in_peft(wrapped), peft.PeftModel.from_pretrained(model(), folder, is_trainable=True)


def steps_in_peft(wrapped: peft.PeftModel, steps: range) -> None:
    batches = Regression().training_batches(3, ROWS)
    optimizer = torch.optim.AdamW([p for p in wrapped.parameters() if p.requires_grad], lr=1e-2)
    for step in steps:
        batch = next(batches)
        (wrapped(batch["x"]) - batch["y"]).square().sum(dim=1).mean().backward()
        optimizer.step()
        wrapped.base_model.update_and_allocate(step)
        optimizer.zero_grad()


def alive_in_peft(wrapped: peft.PeftModel) -> int:
    return sum(sum(pattern) for pattern in wrapped.peft_config["default"].rank_pattern.values())


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match")
@pytest.mark.parametrize("at", [PRUNING, FINAL])
def test_a_run_that_was_stopped_ends_on_its_budget_with_the_triplets_of_one_that_was_not(
    tmp_path: Path, at: int
) -> None:
    """Elsewhere a run resumed while it prunes ends far below its budget, and one in its final phase crashes."""
    whole = adalora()
    totals = train_on(whole)
    stopped = adalora()
    with pytest.raises(Interrupted):
        train_on(stopped, stopping(tmp_path / "ours", at))
    resumed = adalora()
    from_there = stopping(tmp_path / "ours", 0)
    assert from_there.start == at
    assert train_on(resumed, from_there) == totals[at:]
    assert totals[-1] == LAYERS * RANK < totals[PRUNING - 1] < LAYERS * INITIAL
    for name, value in whole.trial_state(0).items():
        assert torch.equal(value, resumed.trial_state(0)[name]), name

    alive, theirs = in_peft(tmp_path / "theirs", at)
    assert alive >= LAYERS * RANK
    if at == FINAL:
        with pytest.raises(RuntimeError, match=r"expand|size"):
            steps_in_peft(theirs, range(at, STEPS))
    else:
        steps_in_peft(theirs, range(at, STEPS))
        assert alive_in_peft(theirs) < 0.75 * LAYERS * RANK


def test_the_averages_that_triplets_are_scored_by_are_in_the_checkpoint(tmp_path: Path) -> None:
    """Elsewhere they start again from zero, and the first choice after it is one step's."""
    stopped = adalora()
    with pytest.raises(Interrupted):
        train_on(stopped, stopping(tmp_path, PRUNING))
    resumed = adalora()
    heard: list[dict[str, Tensor]] = []

    class Listening(StopAt):
        def restore(self, holders: Mapping[str, Holder]) -> int:
            start = super().restore(holders)
            heard.append(holders["variant"].trial_state(0))
            return start

    train_on(resumed, Listening(RunDirectory(tmp_path), config_hash="a run", every=0))
    kept = [name for name in heard[0] if name.endswith(("_sensitivity", "_uncertainty", "/alive"))]
    assert len(kept) == LAYERS * (3 * 2 + 1)
    for name in kept:
        assert heard[0][name].any()
        assert torch.equal(heard[0][name], stopped.trial_state(0)[name])


@pytest.mark.filterwarnings("ignore:The following rank_pattern keys did not match")
@pytest.mark.parametrize("at", [PRUNING, FINAL])
def test_a_new_run_that_starts_from_adapters_pruned_in_peft_ends_on_its_own_budget(tmp_path: Path, at: int) -> None:
    alive, _ = in_peft(tmp_path, at)
    assert LAYERS * RANK <= alive < LAYERS * INITIAL
    start = read_start(StartConfig(path=str(tmp_path)))  # type: ignore[call-arg]
    assert start is not None
    for rank in (6, 8):
        variant = adalora(rank=rank)
        start.put_into(variant)
        assert train_on(variant)[-1] == LAYERS * rank
