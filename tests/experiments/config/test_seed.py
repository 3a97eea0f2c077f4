"""The seed of a run: a number, or one for each part; what is one seed is one run, and what is not has another name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from project_paths import CONFIGS

from experiments.config.errors import ConfigError
from experiments.config.loading import load, resolve
from experiments.config.schema import RunConfig
from experiments.config.seed import SeedParts, describe_seed, read_seed, seed_parts
from experiments.config.yaml_files import read_tree, yaml_text
from lora_variants.interface.config import HIGHEST_SEED

BYTES = CONFIGS / "bytes.yaml"
FEW = st.integers(0, 12)
ANY = st.integers(0, HIGHEST_SEED)
PARTS = st.fixed_dictionaries(dict.fromkeys(("init", "data", "dropout"), FEW | ANY))


def of(*overrides: str, seed: int | None = None) -> RunConfig:
    return load(BYTES, variant="lora", seed=seed, overrides=overrides)


def errors(*overrides: str) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as error:
        of(*overrides)
    return error.value.errors


def test_a_map_of_three_equal_seeds_is_the_run_with_the_number() -> None:
    number = of(seed=3)
    for overrides in (["seed={init: 3, data: 3, dropout: 3}"], ["seed.init=3", "seed.data=3", "seed.dropout=3"]):
        assert of(*overrides).tree() == number.tree()
        assert of(*overrides).config_hash() == number.config_hash()
    assert number.tree()["seed"] == 3


def test_a_number_has_the_hash_that_it_had_before_seeds_had_parts() -> None:
    assert of(seed=7).config_hash() == "8e9bd30dc8c5"
    assert of(seed=2).config_hash() == "b6d041009223"


def test_the_highest_seed_is_the_highest_number_that_a_table_holds() -> None:
    highest = int(np.iinfo(np.int64).max)
    assert of(seed=highest).seed == highest
    (told,) = errors(f"seed={highest + 1}")
    assert told.startswith("seed: ")
    assert told.endswith(f"at most {highest}")


@given(seeds=PARTS, others=PARTS)
def test_seeds_have_one_name_and_one_tree_exactly_if_they_are_one(seeds: Any, others: Any) -> None:
    first, second = read_seed(seeds), read_seed(others)
    assert (describe_seed(first) == describe_seed(second)) == (seeds == others) == (first == second)
    assert seed_parts(first).model_dump() == seeds
    assert (describe_seed(first) == str(first)) == (len(set(seeds.values())) == 1)


@given(seeds=PARTS)
def test_what_a_run_writes_of_its_seed_reads_back_as_the_same_run(seeds: Any) -> None:
    config = of(f"seed={seeds}".replace("'", ""))
    assert resolve(config.tree()) == config
    assert yaml_text(config.tree()) == yaml_text(resolve(config.tree()).tree())


def test_a_name_says_the_seed_that_most_parts_have_and_the_others() -> None:
    assert [describe_seed(read_seed(dict(zip(SeedParts.model_fields, s, strict=True)))) for s in (
        (3, 3, 3), (3, 0, 0), (0, 3, 0), (0, 0, 3), (0, 3, 3), (1, 2, 3)
    )] == ["3", "0-init3", "0-data3", "0-dropout3", "3-init0", "1-data2-dropout3"]  # fmt: skip


def test_one_part_that_is_set_leaves_the_others_at_the_number(tmp_path: Path) -> None:
    assert of("seed.init=3").seed == SeedParts(init=3, data=0, dropout=0)
    assert of("seed.init=3", seed=5).seed == SeedParts(init=3, data=5, dropout=5)
    assert of("seed.init=3", "seed.data=4", seed=5).seed == SeedParts(init=3, data=4, dropout=5)
    assert of("seed.init=3", "seed=5").seed == 5
    file = tmp_path / "run.yaml"
    file.write_text(yaml_text(read_tree(BYTES) | {"seed": {"init": 3, "data": 7}}))
    assert load(file, overrides=["seed.data=9"]).seed == SeedParts(init=3, data=9, dropout=0)
    assert load(file, seed=2).seed == 2


def test_the_parts_of_the_seed_take_no_short_name_away_from_the_variant() -> None:
    config = of("dropout=0.25", "init=gaussian")
    assert (config.tree()["variant"]["dropout"], config.tree()["variant"]["init"]) == (0.25, "gaussian")
    assert config.seed == 0


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seed.init=1.5", "seed.init: must be a whole number, got 1.5"),
        ("seed.data=-1", "seed.data: must be at least 0, got -1"),
        ("seed.int=3", "seed.int: unknown key (did you mean 'init'?); known: init, data, dropout"),
        ("seed=x", "seed: must be a whole number, got 'x'"),
        ("seed=true", "seed: must be a whole number, got True"),
        ("seed.init.x=3", "seed.init.x: seed.init is 0, which has no keys"),
        ("variant.rank.x=3", "variant.rank.x: variant.rank is 16, which has no keys"),
    ],
)
def test_what_is_no_seed_is_refused_by_its_part(override: str, told: str) -> None:
    assert [error[: len(told)] for error in errors("rank=16", override)] == [told]
