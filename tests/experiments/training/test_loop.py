"""Trials that come and go: a pack's neighbours, refills, failures and moves leave no trace in a trial's record."""

import time
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import pytest
from models import PACKED
from project_paths import CONFIGS

from experiments.config.loading import load
from experiments.config.schema import RunConfig
from experiments.record.run_description import describe_run
from experiments.record.run_dir import RunDirectory
from experiments.terminal import Display
from experiments.training.checkpoint import CHECKPOINT
from experiments.training.context import TrainingContext
from experiments.training.early_stopping import Rungs
from experiments.training.interruption import Interrupted, Interruption
from experiments.training.loop import train_pack
from experiments.training.trial import RunOptions, TrialRun

DIVERGES = 1e30
NO_RUNGS = Rungs()


def planned(variant: str, seed: int, rate: float, *overrides: str) -> RunConfig:
    return load(
        CONFIGS / "planted.yaml",
        variant=variant,
        seed=seed,
        overrides=[
            "task.matrices=[{d_out: 24, d_in: 16, rank: 4}, {d_out: 24, d_in: 16, rank: 2}]", "task.noise=0.1",
            "task.evaluation_rows=64", "batch_size=8", "steps=24", "evaluate_every=10", "checkpoint_every=7",
            f"learning_rate={rate}", "wandb.mode=disabled", *overrides,
        ],
    )  # fmt: skip


def knobs(variant: str, i: int) -> list[str]:
    """Trials of one bucket that differ in all that a pack may differ in."""
    if variant in ("head", "full"):
        return [f"weight_decay={0.01 * i}"]
    return [f"variant.rank={1 + i}", f"variant.dropout={0.1 * (i % 2)}", f"variant.alpha={2 + i}"]


def trials(variant: str) -> list[RunConfig]:
    rates = (1e-2, DIVERGES, 3e-3, 2e-2, 1e-2, 4e-3)
    return [planned(variant, 10 + i, rate, *knobs(variant, i % 4)) for i, rate in enumerate(rates)]


def trial_run(config: RunConfig, context: TrainingContext, runs: Path, *, rungs: Rungs = NO_RUNGS) -> TrialRun:
    plan, _ = context.plan(config)
    rank_total = sum(layer.ranks[0] for layer in plan.layers.values())
    run = describe_run(config, context, runs, rank_total=rank_total, start=None)
    options = RunOptions(test="tuned", runs_dir=runs, wandb_mode="disabled", rungs=rungs)
    return TrialRun(config, context, run, options, Display.silent())


def carried_out(configs: Sequence[RunConfig], runs: Path, size: int, interruption: Interruption) -> None:
    """All trials in packs of at most `size`; a slot that falls free is taken by the next trial."""
    context = TrainingContext(configs[0])
    context.load()
    waiting: Iterator[RunConfig] = iter(configs)
    trial_runs: list[TrialRun] = []
    while True:
        trial_runs += [trial_run(config, context, runs) for config in islice(waiting, size - len(trial_runs))]
        if not trial_runs:
            return
        trial_runs = train_pack(context, trial_runs, interruption=interruption)


def records(runs: Path) -> dict[str, RunDirectory]:
    return {path.name: RunDirectory(path) for path in (runs / "single").iterdir() if path.is_dir()}


def assert_equal_records(ours: Path, theirs: Path, expected: int) -> None:
    found, alone = records(ours), records(theirs)
    assert found.keys() == alone.keys()
    assert len(found) == expected
    assert sum(folder.finished for folder in found.values()) == expected - 1
    for name, folder in alone.items():
        assert found[name].history() == folder.history()
        assert {p.name for p in found[name].path.iterdir()} == {p.name for p in folder.path.iterdir()}
        for path in (*folder.path.glob("*.safetensors"), *folder.path.glob("predictions.parquet")):
            assert (found[name].path / path.name).read_bytes() == path.read_bytes()
        if folder.finished:
            ours_result, theirs_result = found[name].result(), folder.result()
            for key in ("score", "validation", "test", "best", "ranks", "steps", "diagnostics"):
                assert ours_result[key] == theirs_result[key]
        else:
            assert "not finite at step" in (found[name].path / "error.txt").read_text()


@pytest.mark.parametrize("variant", [name for name in PACKED if name != "head"])
def test_a_trial_leaves_the_same_record_alone_and_in_packs_whose_slots_are_refilled(
    tmp_path: Path, variant: str
) -> None:
    configs = trials(variant)
    carried_out(configs, tmp_path / "alone", 1, Interruption())
    carried_out(configs, tmp_path / "packed", 3, Interruption())
    assert_equal_records(tmp_path / "packed", tmp_path / "alone", len(configs))


class AfterSteps(Interruption):
    """Somebody asks to stop after some steps of a pack."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    @property
    def asked(self) -> bool:
        self.left -= 1
        return self.left < 0

    @asked.setter
    def asked(self, value: bool) -> None:
        pass


@pytest.mark.parametrize("stops", [(9, 14, 5), (2, 3, 5)])
def test_packs_that_are_stopped_and_formed_anew_leave_the_same_records(tmp_path: Path, stops: tuple[int, ...]) -> None:
    configs = trials("adalora")
    carried_out(configs, tmp_path / "alone", 1, Interruption())
    for size, steps in zip((3, 2, 4), stops, strict=True):
        left = [c for c in configs if not any(done(name, c) for name in finished(tmp_path / "packed"))]
        with pytest.raises(Interrupted):
            carried_out(left, tmp_path / "packed", size, AfterSteps(steps))
    left = [c for c in configs if not any(done(name, c) for name in finished(tmp_path / "packed"))]
    carried_out(left, tmp_path / "packed", 6, Interruption())
    assert_equal_records(tmp_path / "packed", tmp_path / "alone", len(configs))


def finished(runs: Path) -> list[str]:
    return [name for name, folder in records(runs).items() if folder.finished] if runs.exists() else []


def done(name: str, config: RunConfig) -> bool:
    return f"-s{config.seed}-" in name


def test_a_trial_that_goes_on_from_a_checkpoint_at_its_rung_is_scored_there_before_its_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of a step is older than the score at that step, so a kill may come between the two."""
    config = planned("lora", 10, 1e-2)
    context = TrainingContext(config)
    context.load()

    def go(runs: Path) -> RunDirectory:
        trial = trial_run(config, context, runs, rungs=Rungs({7: None, 12: None}))
        train_pack(context, [trial], interruption=Interruption())
        return trial.folder

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    whole = go(tmp_path / "whole")
    with monkeypatch.context() as patched:
        patched.setattr(TrialRun, "score", killed)
        with pytest.raises(KeyboardInterrupt):
            go(tmp_path / "killed")
    resumed = go(tmp_path / "killed")
    assert resumed.result()["resumed_from"] == [7]
    assert {7, 12} <= resumed.scores("squared_error").keys()
    assert resumed.history() == whole.history()


def test_a_pruned_trial_that_no_other_goes_on_from_leaves_no_checkpoint(tmp_path: Path) -> None:
    config = planned("lora", 10, 1e-2)
    context = TrainingContext(config)
    context.load()
    trial = trial_run(config, context, tmp_path, rungs=Rungs({7: -1.0}))
    train_pack(context, [trial], interruption=Interruption())
    assert "pruned at step 7" in (trial.folder.path / "pruned.txt").read_text()
    assert not (trial.folder.path / CHECKPOINT).exists()


def test_training_and_overhead_share_the_time_of_a_pack_whatever_its_trials_took_before(tmp_path: Path) -> None:
    configs = [planned("lora", seed, 1e-2, "steps=3") for seed in (10, 11)]
    context = TrainingContext(configs[0])
    context.load()
    trials, before = [trial_run(config, context, tmp_path) for config in configs], 3600.0
    for trial in trials:
        trial.seconds = before
    since = time.perf_counter()
    train_pack(context, trials, interruption=Interruption())
    took = time.perf_counter() - since
    assert all(trial.seconds > before and trial.overhead > 0 for trial in trials)
    assert sum(trial.seconds - before + trial.overhead for trial in trials) <= took
    for trial in trials:
        assert trial.folder.result()["seconds"] == {"training": trial.seconds, "overhead": trial.overhead}
