"""What each part of a run's seed decides, and that trials of one pack may differ in any of them."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import pytest
import torch
from project_paths import CONFIGS
from torch import Tensor

from experiments.config.loading import load
from experiments.config.schema import RunConfig
from experiments.packed_runs import execute_in_packs
from experiments.record.run_dir import RunDirectory
from experiments.run import main
from experiments.runner import execute
from experiments.terminal import Display
from experiments.training.batches import opening_batches
from experiments.training.context import TrainingContext
from experiments.training.hyperparameters import shared_hyperparameters, trial_hyperparameters
from experiments.training.interruption import Interrupted
from experiments.training.loop import train_pack

SEEDS = ("seed=0", "seed.init=3", "seed.data=3", "seed.dropout=3")


def quick(*overrides: str, variant: str = "lora") -> RunConfig:
    small = ("steps=12", "batch_size=8", "evaluate_every=5", "task.evaluation_rows=64", "wandb.mode=disabled")
    matrices = "task.matrices=[{d_out: 16, d_in: 8, rank: 2}, {d_out: 8, d_in: 16, rank: 2}]"
    return load(
        CONFIGS / "planted.yaml", variant=variant, rank=2, overrides=[*small, matrices, "dropout=0.3", *overrides]
    )


def drawn(config: RunConfig) -> dict[str, list[Tensor]]:
    """What a run draws: the adapters it starts from, its first batches, and its dropout masks."""
    context = TrainingContext(config)
    context.load()
    variant = context.attached([config], [None])
    batches = opening_batches(context.task, [trial_hyperparameters(config)], shared_hyperparameters(config), variant)
    first = [batch[key] for batch in islice(batches, 2) for key in sorted(batch)]
    masks = [layer.dropout_mask(torch.ones(1, 8, layer.base.d_in)) for layer in variant.layers.values()]
    state = [variant.trial_state(0)[key] for key in sorted(variant.trial_state(0))]
    return {"init": state, "data": first, "dropout": [mask for mask in masks if mask is not None]}


def test_each_part_of_the_seed_decides_what_it_is_named_for_and_nothing_else() -> None:
    whole = drawn(quick())
    assert whole["dropout"]
    for part in whole:
        other = drawn(quick(f"seed.{part}=3"))
        same = {
            key: all(torch.equal(one, two) for one, two in zip(whole[key], other[key], strict=True)) for key in whole
        }
        assert same == {key: key != part for key in whole}
        number = drawn(quick("seed=3"))
        assert all(torch.equal(one, two) for one, two in zip(other[part], number[part], strict=True))


def files(folder: Path) -> Mapping[str, bytes]:
    names = ("adapter_model.safetensors", "metrics.jsonl", "config.yaml")
    return {name: (folder / name).read_bytes() for name in names}


@pytest.mark.parametrize("variant", ["lora", "adalora"])
def test_a_run_is_bit_identical_alone_and_in_a_pack_of_runs_that_differ_in_parts_of_the_seed(
    tmp_path: Path, variant: str
) -> None:
    configs = [quick(override, variant=variant) for override in SEEDS]
    packed = execute_in_packs(configs, pack=8, runs_dir=tmp_path / "packed", test=True, display=Display.silent())
    assert len({result["score"] for result in packed}) == len(SEEDS)
    for config, result in zip(configs, packed, strict=True):
        alone = execute(config, runs_dir=tmp_path / "alone", test=True, display=Display.silent())
        assert files(alone.folder) == files(tmp_path / "packed" / "single" / alone.folder.name)
        assert (alone.result["score"], alone.result["test"]) == (result["score"], result["test"])
        assert result["seed"] == config.tree()["seed"] == RunDirectory(alone.folder).config_tree()["seed"]


def test_without_dropout_its_seed_changes_no_bit_of_what_is_learned(tmp_path: Path) -> None:
    configs = [quick("dropout=0", override) for override in SEEDS]
    learned = [
        execute_in_packs([config], pack=1, runs_dir=tmp_path, test=False, display=Display.silent())[0]["score"]
        for config in configs
    ]
    assert learned[0] == learned[3]
    assert len(set(learned)) == 3


def test_runs_in_packs_are_found_again_and_go_on_where_they_were_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [quick(f"seed.data={seed}", "checkpoint_every=4") for seed in range(5)]
    whole = execute_in_packs(configs, pack=2, runs_dir=tmp_path / "whole", test=False, display=Display.silent())
    stops = []

    def stop_in_the_second_pack(context, trials, *, interruption, on_step):  # type: ignore[no-untyped-def]
        def on_each(count: int) -> None:
            stops.append(count)
            if len(stops) == 12 + 7:
                interruption.asked = True

        return train_pack(context, trials, interruption=interruption, on_step=on_each)

    with monkeypatch.context() as patched:
        patched.setattr("experiments.packed_runs.train_pack", stop_in_the_second_pack)
        with pytest.raises(Interrupted, match="after step 7, with a checkpoint; the same command goes on from there"):
            execute_in_packs(configs, pack=2, runs_dir=tmp_path / "cut", test=False, display=Display.silent())
    display, shown = Display.silent(), list[tuple[int, int]]()
    monkeypatch.setattr(display, "report", lambda what, done, total, note="": shown.append((done, total)))
    results = execute_in_packs(configs, pack=3, runs_dir=tmp_path / "cut", test=False, display=display)
    assert shown[-1] == (3 * 12, 3 * 12)
    assert [result["score"] for result in results] == [result["score"] for result in whole]
    assert [result["resumed_from"] for result in results] == [[], [], [7], [7], []]
    again = execute_in_packs(configs, pack=1, runs_dir=tmp_path / "cut", test=False, display=Display.silent())
    assert again == results


def test_runs_that_were_killed_at_other_steps_share_no_pack_where_the_batches_of_steps_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [quick(f"seed.data={seed}", "checkpoint_every=4") for seed in range(3)]
    whole = execute_in_packs(configs, pack=3, runs_dir=tmp_path / "whole", test=False, display=Display.silent())
    monkeypatch.setattr("experiments.tasks.planted.Planted.steps_alike", False)
    packs: list[list[int]] = []

    def stop_the_first(context, trials, *, interruption, on_step):  # type: ignore[no-untyped-def]
        packs.append([trial.checkpoints.start for trial in trials])
        interruption.asked = len(packs) == 1
        return train_pack(context, trials, interruption=interruption, on_step=on_step)

    monkeypatch.setattr("experiments.packed_runs.train_pack", stop_the_first)
    with pytest.raises(Interrupted):
        execute_in_packs(configs[1:2], pack=1, runs_dir=tmp_path / "cut", test=False, display=Display.silent())
    results = execute_in_packs(configs, pack=3, runs_dir=tmp_path / "cut", test=False, display=Display.silent())
    assert packs == [[0], [0, 0], [1]]
    assert [result["score"] for result in results] == [result["score"] for result in whole]


def test_a_run_says_its_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--config", str(CONFIGS / "planted.yaml"), "--set", "steps=2", "--set", "seed.init=3"]
    assert main([*asked, "--wandb", "disabled", "--runs-dir", str(tmp_path)]) == 0
    assert "seed 0-init3" in capsys.readouterr().out
