"""The configuration: three layers, strict types, every error at once."""

from pathlib import Path

import pytest
from project_paths import CONFIGS

from experiments.config.errors import ConfigError
from experiments.config.loading import load, resolve
from experiments.config.retired_keys import RETIRED_KEYS, rename_retired
from experiments.config.yaml_files import parse_yaml, yaml_text

BYTES = CONFIGS / "bytes.yaml"


def errors(*overrides: str, **layers: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as error:
        load(layers.pop("path", BYTES), overrides=overrides, **layers)  # type: ignore[arg-type]
    return error.value.errors


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.name)
@pytest.mark.parametrize("variant", ["head", "full", "full_all", "lora", "rslora", "adalora", "lora_plus"])
def test_a_resolved_configuration_reads_back_as_itself(path: Path, variant: str) -> None:
    config = load(path, variant=variant, overrides=["study=s"])
    assert resolve(parse_yaml(yaml_text(config.tree()))).tree() == config.tree()


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("task: {name: planted}\ntargets: ['*']\nvariant: {name: lora, rank: 2}\ntraining: {steps: 7}\n")
    config = load(path, overrides=["variant.alpha=3", "steps=9"])
    assert (config.variant.rank, config.variant.alpha, config.training.steps) == (2, 3.0, 9)  # type: ignore[attr-defined]
    assert load(path).training.steps == 7
    assert load(path).training.batch_size == 4


def test_every_error_is_reported_at_once_with_path_value_and_nearest_key() -> None:
    found = errors("rank=yes", "lerning_rate=1", "training.step=3", "training.warmup_ratio=2", "variant.rnk=2")
    text = "\n".join(found)
    assert len(found) == 5
    assert "variant.rank: must be a whole number or a map of keys to values, got True" in text
    assert "lerning_rate: unknown key (did you mean 'training.learning_rate'?)" in text
    assert "training.step: unknown key (did you mean 'steps'?)" in text
    assert "training.warmup_ratio: must be below 1, got 2" in text
    assert "variant.rnk: unknown key (did you mean 'rank'?)" in text


@pytest.mark.parametrize("variant", ["full", "full_all", "head"])
def test_a_rank_for_a_variant_without_one_is_an_error_that_says_so(variant: str) -> None:
    (error,) = errors(variant=variant, rank=4)
    assert error.startswith(f"variant.rank: '{variant}' has no rank")


def test_a_misspelt_variant_names_the_nearest() -> None:
    assert "did you mean 'adalora'?" in errors(variant="adalor")[0]


def test_numbers_with_an_exponent_are_numbers() -> None:
    assert load(BYTES, overrides=["learning_rate=3e-4"]).learning_rate == 3e-4
    assert parse_yaml("[1e3, 2E-4, 1.5e+2, -3e-1]") == [1e3, 2e-4, 1.5e2, -0.3]
    assert parse_yaml("e3") == "e3"


def test_ranks_by_layer_come_through_the_command_line() -> None:
    config = load(BYTES, overrides=['rank={"*.query": 8, "layers.0.*": 0}'])
    assert config.variant.rank == {"*.query": 8, "layers.0.*": 0}  # type: ignore[attr-defined]


def test_a_map_of_learning_rates_gives_each_variant_that_it_names_its_own() -> None:
    rates = "training.learning_rate={lora: 1e-3, full: 2e-4}"
    assert load(BYTES, variant="full", overrides=[rates]).learning_rate == 2e-4
    assert "no such variant (did you mean 'lora'?)" in errors("training.learning_rate={lora: 1, lorra: 1}")[0]


@pytest.mark.parametrize(
    ("variant", "factor"), [("full", 0.4), ("full_all", 0.4), ("rslora", 1), ("adalora", 1), ("lora_plus", 0.25)]
)
def test_a_variant_that_the_map_does_not_name_learns_at_its_factor_of_loras_rate(variant: str, factor: float) -> None:
    for rate in (1e-3, 7e-2):
        overrides = [f"training.learning_rate={{lora: {rate}, head: 1}}"]
        assert load(BYTES, variant=variant, overrides=overrides).learning_rate == rate * factor
    assert load(BYTES, variant=variant, overrides=["learning_rate=3e-4"]).learning_rate == 3e-4


def test_a_map_that_says_nothing_of_a_variants_rate_is_an_error_with_the_way_out() -> None:
    told = "training.learning_rate: has no rate for variant "
    assert errors("training.learning_rate={lora: 1}", variant="head") == (
        f"{told}'head', which has no factor of LoRA's rate; add head or give a number",
    )
    assert errors("training.learning_rate={full: 1}", variant="lora_plus") == (
        f"{told}'lora_plus' and none for 'lora', of which lora_plus takes 0.25 times; add lora_plus or give a number",
    )
    assert errors("training.learning_rate={full: 1}", variant="lora") == (f"{told}'lora'; add lora or give a number",)


# What each shipped file resolves to; a rate that moves makes other runs of the same command.
EVERY = ("head", "full", "full_all", "lora", "rslora", "adalora", "lora_plus")
RATES = {
    "bytes": (5e-3, 2e-3, 2e-3, 5e-3, 5e-3, 5e-3, 1.25e-3),
    "cola": (1e-2, 1e-3, 1e-4, 3e-3, 1.5e-3, 3e-3, 1e-3),
    "digits": (5e-2, 2e-3, 1e-3, 6e-3, 1.2e-2, 6e-3, 3e-3),
    "planted": (1e-2, 3e-3, 3e-3, 1e-2, 1e-2, 1e-2, 3e-3),
    "sst2": (1e-2, 3e-4, 1e-4, 3e-3, 1.5e-3, 3e-3, 3e-4),
    "stories": (5e-3, 2e-3, 2e-3, 5e-3, 5e-3, 5e-3, 1.25e-3),
    "trec": (1e-2, 3e-4, 1e-4, 3e-3, 1.5e-3, 3e-3, 3e-4),
    "recipes/adalora_deberta_v3_base_glue": (5e-4,) * 7,
    "recipes/lora_plus_roberta_base_glue": (5e-5,) * 7,
    "recipes/lora_roberta_base_glue": (4e-4,) * 7,
}


def test_every_shipped_file_gives_every_variant_exactly_this_rate() -> None:
    files = [path for path in CONFIGS.glob("**/*.yaml") if path.parent.name != "studies"]
    found = {str(path.relative_to(CONFIGS).with_suffix("")): path for path in files}
    assert {
        name: tuple(load(path, variant=variant).learning_rate for variant in EVERY) for name, path in found.items()
    } == RATES


def test_alpha_and_alpha_per_rank_exclude_each_other() -> None:
    assert "give alpha or alpha_per_rank, not both" in errors("alpha=3", "alpha_per_rank=2")[0]


def test_a_knob_of_several_sections_asks_for_its_path() -> None:
    assert "name: stands for task.name and variant.name; give the whole path" in errors("name=x")


def test_an_earlier_key_is_answered_with_its_new_name_however_it_is_given(tmp_path: Path) -> None:
    for earlier, now in RETIRED_KEYS["training"].items():
        found = errors(f"{earlier}=1", f"training.{earlier}=1")
        assert sorted(found) == sorted(
            f"{path}: {earlier} is called {now}" for path in (f"training.{earlier}", earlier)
        )
    path = tmp_path / "c.yaml"
    path.write_text(BYTES.read_text().replace("  batch_size:", "  rows:"))
    assert errors(path=path) == ("training.rows: rows is called batch_size",)


def test_a_tree_of_earlier_keys_becomes_one_of_new_keys() -> None:
    earlier = {"task": {"rows": 1}, "training": {"rows": 2, "steps": 3}, "seconds": {"besides": 4.0}, "rows": 5}
    now = {"task": {"rows": 1}, "training": {"batch_size": 2, "steps": 3}, "seconds": {"overhead": 4.0}, "rows": 5}
    assert rename_retired(earlier) == now
    assert rename_retired(now) == now
    study = {"protocol": {"tuning": {"multipliers": [1, 2]}, "multipliers": 3}}
    assert rename_retired(study)["protocol"] == {"tuning": {"learning_rate_multipliers": [1, 2]}, "multipliers": 3}


def test_a_missing_file_a_list_and_a_doubled_key_are_errors(tmp_path: Path) -> None:
    assert "cannot be read" in errors(path=tmp_path / "nowhere.yaml")[0]
    path = tmp_path / "c.yaml"
    path.write_text("- a\n")
    assert "a configuration is a map" in errors(path=path)[0]
    path.write_text("seed: 1\nseed: 2\n")
    assert "duplicate key 'seed'" in errors(path=path)[0]


def test_the_config_hash_changes_with_what_the_result_depends_on_and_not_with_wandb() -> None:
    config = load(BYTES)
    same = load(BYTES, overrides=["wandb.mode=disabled"])
    other = load(BYTES, seed=1)
    assert config.config_hash(base="b") == same.config_hash(base="b")
    assert len({config.config_hash(base="b"), other.config_hash(base="b"), config.config_hash(base="c")}) == 3


def test_two_16_bit_types_that_do_not_compute_together_are_an_error() -> None:
    trec = CONFIGS / "trec.yaml"
    with pytest.raises(ConfigError, match=r"model.dtype=float16 and training.precision=bfloat16 are two 16-bit types"):
        load(trec, overrides=["model.dtype=float16", "precision=bfloat16"])
    assert load(trec, overrides=["model.dtype=float16", "precision=float16"]).training.precision == "float16"
