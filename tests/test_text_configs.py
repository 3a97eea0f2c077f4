"""The shipped configurations of text tasks: they name the Hub, and a folder takes its place."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from experiments.configuration import load
from experiments.display import Display
from experiments.plan import show_plan
from experiments.runner import attached, load_task
from tests.tiny_transformers import settings

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
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
    settings(ARCHITECTURES[name], max_position_embeddings=514).save_pretrained(tmp_path)
    config = load(CONFIGS / f"{name}.yaml", settings=[f"model.name={tmp_path}"])
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


def test_a_task_that_needs_a_model_takes_its_place_from_no_identity(tmp_path: Path) -> None:
    places = [["model.name=a/b", "task.path=c/d"], ["model.name=e/f", "task.path=g/h", "model.revision=x"]]
    identities = {load(CONFIGS / "trec.yaml", settings=settings).identity(base="w") for settings in places}
    assert len(identities) == 1
    own = [
        [f"task.forgetting={{path: {path}, windows: {windows}}}"] for path, windows in (("a", 8), ("b", 8), ("a", 9))
    ]
    first, moved, other = (load(CONFIGS / "stories.yaml", settings=settings).identity() for settings in own)
    assert first == moved != other
    assert load(CONFIGS / "trec.yaml", settings=["model.pooling=auto"]).identity(base="w") not in identities
