"""Seeds apart: initialisation, order of the data and dropout each have a seed of their own where a run asks for it."""

import json
from pathlib import Path
from typing import Any

import pytest
from project_paths import CONFIGS

from experiments.config.errors import ConfigError
from experiments.config.loading import load
from experiments.config.seed import seed_parts
from experiments.record.run_dir import run_dir_name
from experiments.run import main
from experiments.training.context import TrainingContext, attached_pack
from experiments.training.hyperparameters import trial_hyperparameters

PLANTED = CONFIGS / "planted.yaml"


def seeded(*overrides: str, seed: int | None = 5) -> Any:
    return load(PLANTED, seed=seed, overrides=overrides).seed


def test_a_part_that_is_set_leaves_the_others_at_the_number() -> None:
    assert seeded("seed.init=3").model_dump() == {"init": 3, "data": 5, "dropout": 5}
    assert seeded("seed.data=1", "seed.dropout=2").model_dump() == {"init": 5, "data": 1, "dropout": 2}


def test_three_equal_seeds_are_the_number_and_the_same_run() -> None:
    assert seeded("seed={init: 7, data: 7, dropout: 7}") == 7
    number, parts = (
        load(PLANTED, seed=7),
        load(PLANTED, seed=5, overrides=[f"seed.{p}=7" for p in ("init", "data", "dropout")]),
    )
    assert number.config_hash() == parts.config_hash()
    assert number.tree() == parts.tree()


def test_seeds_apart_are_another_run_with_a_name_of_its_own() -> None:
    apart = load(PLANTED, seed=5, overrides=["seed.init=3"])
    assert apart.config_hash() != load(PLANTED, seed=5).config_hash()
    assert "-s5-init3-" in run_dir_name(apart, rank_total=None, config_hash="0")
    assert type(apart).model_validate(apart.tree()).seed == apart.seed


@pytest.mark.parametrize("given", ["{init: 3, data: 1, dropout: -1}", "{init: 1, data: 1, drop: 1}", "x"])
def test_seeds_that_are_none_are_errors_that_name_the_key(given: str) -> None:
    with pytest.raises(ConfigError, match="seed"):
        seeded(f"seed={given}")


def drawn(part: str, trials: list[int]) -> list[dict[str, Any]]:
    """What each trial of one pack draws, when its seeds are 0 but for one part."""
    base = load(CONFIGS / "bytes.yaml", overrides=["variant.dropout=0.5", "rank=2", "pad_rank_to=8"])
    configs = [
        base.model_copy(update={"seed": seed_parts(base.seed).model_copy(update={part: seed})}) for seed in trials
    ]
    context = TrainingContext(configs[0])
    context.load()
    variant = attached_pack(configs, context.task, context.base)
    try:
        layer = next(iter(variant.layers.values()))
        layer.train()
        mask = layer.dropout_mask(layer.new_tensor(8, layer.base.d_in).detach() + 1)
        assert mask is not None
        state = [variant.trial_state(slot) for slot in range(len(trials))]
        found = []
        for slot, config in enumerate(configs):
            batch = next(context.task.training_batches(trial_hyperparameters(config).seed, 4))
            first = next(iter(batch.values()))
            found.append({"init": state[slot], "data": first, "dropout": mask[slot]})
        return found
    finally:
        variant.detach()


def alike(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return all(alike(a[name], b[name]) for name in a)
    return bool((a == b).all())


@pytest.mark.parametrize("part", ["init", "data", "dropout"])
def test_each_seed_moves_its_own_draws_and_no_others(part: str) -> None:
    first, other = drawn(part, [0, 1])
    assert {name: alike(first[name], other[name]) for name in first} == {
        name: name != part for name in ("init", "data", "dropout")
    }


def test_a_run_says_its_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--config", str(PLANTED), "--set", "steps=2", "--set", "seed.init=3", "--wandb", "disabled"]
    assert main([*asked, "--runs-dir", str(tmp_path)]) == 0
    (result,) = tmp_path.rglob("result.json")
    assert json.loads(result.read_text())["seed"] == {"init": 3, "data": 0, "dropout": 0}
    assert "seed 0-init3" in capsys.readouterr().out
