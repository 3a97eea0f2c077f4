"""The shipped configurations of text tasks: they name the Hub, and a folder takes its place."""

import io
import math
from pathlib import Path
from typing import Any

import pytest
from project_paths import CONFIGS
from rich.console import Console
from tiny_transformers import tiny_config

from experiments.config.loading import load
from experiments.plan import show_plan
from experiments.terminal import Display
from experiments.training.context import attached, load_task

ARCHITECTURES = {
    "trec": "bert",
    "sst2": "bert",
    "cola": "bert",
    "stories": "llama",
    "recipes/lora_roberta_base_glue": "roberta",
    "recipes/adalora_deberta_v3_base_glue": "deberta-v2",
    "recipes/lora_plus_roberta_base_glue": "roberta",
}
LAYERS = dict.fromkeys(ARCHITECTURES, 4) | {"stories": 14, "recipes/adalora_deberta_v3_base_glue": 12}  # of two blocks


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_shipped_configuration_plans_with_the_config_json_of_its_architecture_alone(
    name: str, tmp_path: Path
) -> None:
    tiny_config(ARCHITECTURES[name], max_position_embeddings=514).save_pretrained(tmp_path)
    config = load(CONFIGS / f"{name}.yaml", overrides=[f"model.name={tmp_path}"])
    told = io.StringIO()
    show_plan(config, Display(Console(file=told, width=200)))
    task = load_task(config)
    assert len(attached(config, task, task.architecture()).layers) == LAYERS[name]
    assert "trainable parameters: " in told.getvalue()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_shipped_configuration_names_a_model_and_a_data_set_of_the_hub(name: str) -> None:
    config = load(CONFIGS / f"{name}.yaml")
    assert config.model is not None
    assert config.model.name.count("/") == 1
    task = load_task(config)
    path = task.config.path or task.knobs["path"]  # type: ignore[attr-defined]
    assert path.count("/") == 1
    assert not path.startswith(("/", "."))


def test_a_task_that_needs_a_model_takes_its_place_from_no_config_hash(tmp_path: Path) -> None:
    places = [["model.name=a/b", "task.path=c/d"], ["model.name=e/f", "task.path=g/h", "model.revision=x"]]
    config_hashes = {load(CONFIGS / "trec.yaml", overrides=overrides).config_hash(base="w") for overrides in places}
    assert len(config_hashes) == 1
    own = [
        [f"task.forgetting={{path: {path}, windows: {windows}}}"] for path, windows in (("a", 8), ("b", 8), ("a", 9))
    ]
    first, moved, other = (load(CONFIGS / "stories.yaml", overrides=overrides).config_hash() for overrides in own)
    assert first == moved != other
    assert load(CONFIGS / "trec.yaml", overrides=["model.pooling=auto"]).config_hash(base="w") not in config_hashes


@pytest.mark.parametrize(
    ("name", "training_rows", "epochs"),
    [
        ("trec", 2048, 3),
        ("sst2", 2048, 3),
        ("cola", 4096, 3),
        ("recipes/lora_roberta_base_glue", 7696, 80),
        ("recipes/adalora_deberta_v3_base_glue", 7696, 25),
        ("recipes/lora_plus_roberta_base_glue", 353_432, 3),
    ],
)
def test_the_steps_of_a_configuration_are_the_epochs_that_it_speaks_of(
    name: str, training_rows: int, epochs: int
) -> None:
    training = load(CONFIGS / f"{name}.yaml").training
    assert training.steps == math.ceil(epochs * training_rows / training.batch_size)


@pytest.mark.parametrize(
    ("recipe", "architecture"),
    [("lora_roberta_base_glue", "roberta"), ("adalora_deberta_v3_base_glue", "deberta-v2")],
)
def test_a_recipe_plans_on_every_task_of_its_table(recipe: str, architecture: str, tmp_path: Path) -> None:
    tiny_config(architecture, max_position_embeddings=514).save_pretrained(tmp_path)
    for task in ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb"):
        asked = [
            f"model.name={tmp_path}",
            f"task.preset=glue/{task}",
            "learning_rate=5e-4",
            "batch_size=16",
            "steps=100",
        ]
        told = io.StringIO()
        show_plan(load(CONFIGS / "recipes" / f"{recipe}.yaml", overrides=asked), Display(Console(file=told, width=200)))
        assert f"preset: glue/{task}" in told.getvalue()
        assert "trainable parameters: " in told.getvalue()


def test_the_adalora_recipe_has_the_budget_and_the_phases_of_the_paper(tmp_path: Path) -> None:
    tiny_config("deberta-v2", max_position_embeddings=514, num_hidden_layers=12).save_pretrained(tmp_path)
    config: Any = load(CONFIGS / "recipes" / "adalora_deberta_v3_base_glue.yaml", overrides=[f"model.name={tmp_path}"])
    variant = attached(config, task := load_task(config), task.architecture())
    assert len(variant.layers) == 6 * 12
    assert sum(layer.ranks[0] for layer in variant.layers.values()) == 144
    knobs, steps = config.variant, config.training.steps
    assert round(knobs.initial_fraction * steps) == 800
    assert round(knobs.final_fraction * steps) == pytest.approx(3500, abs=1)
    assert round(config.training.warmup_ratio * steps) == 100
    assert knobs.alpha == pytest.approx(32 * 2 / 3)
    assert task.trains_alone() is not None
