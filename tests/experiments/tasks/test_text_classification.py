"""The text_classification task from files to a record, on tiny random models."""

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from project_paths import CONFIGS
from rich.console import Console
from text_data import SENTENCES, write_labelled, write_model
from tiny_transformers import saved

from experiments.config.errors import ConfigError
from experiments.config.loading import load, resolve
from experiments.config.yaml_files import parse_yaml, yaml_text
from experiments.data.presets import PRESETS
from experiments.data.reading import DataError
from experiments.runner import execute
from experiments.tasks.text_classification import TextClassification
from experiments.tasks.text_classification_config import TextClassificationConfig
from experiments.terminal import Display
from experiments.training.context import attached, load_task
from experiments.training.evaluation import evaluate


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture
def data(tmp_path: Path) -> str:
    return write_labelled(tmp_path / "data")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.data.tokens.cache_folder", lambda: tmp_path / "cache")


def config_file(folder: Path, **task: Any) -> Path:
    task = {"name": "text_classification", "text": ["sentence"], "max_length": 32, "labels": ["0", "1"]} | task
    tree = {
        "task": task,
        "targets": ["*.query", "*.value"],
        "variant": {"name": "lora", "rank": 2},
        "training": {"steps": 4, "batch_size": 8, "threads": 1, "learning_rate": 1e-2},
        "wandb": {"mode": "disabled"},
    }
    path = folder / "c.yaml"
    path.write_text(yaml_text(tree))
    return path


def configured(folder: Path, model: str, data: str, *overrides: str, **task: Any) -> Any:
    places = [f"model.name={model}", "model.pooling=mean", f"task.path={data}"]
    return load(config_file(folder, **task), overrides=[*places, *overrides])


def test_a_run_on_files_records_data_tokenizer_and_model_by_content(tmp_path: Path, model: str, data: str) -> None:
    config = configured(tmp_path, model, data, "task.metrics=[accuracy, mcc, f1]")
    finished = execute(config, runs_dir=tmp_path / "runs", test=True, display=Display())
    result = finished.result
    assert set(result["validation"]) == {"loss", "accuracy", "mcc", "f1"} == set(result["test"])
    assert result["score"] == result["validation"]["accuracy"]
    assert result["data"]["train"] == {
        "rows": 80,
        "malformed": 0,
        "sources": [source(Path(data) / "train.tsv", rows=80)],
        "rows_by_label": {"0": 53, "1": 27},
        "truncated": 0,
        "tokens_lost": 0,
    }
    environment = json.loads((finished.folder / "environment.json").read_text())
    assert set(environment["data_sha256"]) == {"train", "validation", "test", "tokenizer", "model_settings"}
    assert environment["base_facts"] == {"model_type": "bert"}
    assert resolve(parse_yaml((finished.folder / "config.yaml").read_text())).tree() == config.tree()


def test_the_same_content_elsewhere_is_the_same_run_and_other_content_is_not(
    tmp_path: Path, model: str, data: str
) -> None:
    elsewhere = write_labelled(tmp_path / "elsewhere")
    runs = tmp_path / "runs"
    first = execute(configured(tmp_path, model, data), runs_dir=runs, test=False, display=Display())
    again = execute(configured(tmp_path, model, elsewhere), runs_dir=runs, test=False, display=Display())
    assert again.found
    assert again.folder == first.folder
    train = Path(elsewhere) / "train.tsv"
    train.write_text(train.read_text().replace("the big", "a big", 1))
    other = execute(configured(tmp_path, model, elsewhere), runs_dir=runs, test=False, display=Display())
    assert not other.found
    assert other.folder != first.folder


def test_scores_are_those_of_the_model_on_every_row_of_the_split(tmp_path: Path, model: str, data: str) -> None:
    config = configured(tmp_path, model, data, "task.metrics=[accuracy, mcc]")
    task = load_task(config)
    assert isinstance(task, TextClassification)
    variant = attached(config, task, task.base_model())
    (found,) = evaluate(variant, task, "validation", config.training.precision)
    tokenizer, examples = task.base.tokenizer, task.data.splits["validation"]
    labels = task.data.targets("validation")
    variant.pack.rows = 1
    with torch.no_grad():
        logits = torch.cat([variant.model(**tokenizer(t, return_tensors="pt", return_token_type_ids=False)).logits
                            for (t,) in examples.texts])  # fmt: skip
    assert found["loss"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits, labels)), rel=1e-5)
    assert found["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))


def test_a_number_is_predicted_with_squared_error_and_both_correlations(tmp_path: Path, model: str) -> None:
    folder = tmp_path / "numbers"
    folder.mkdir()
    for name, part in {"train": SENTENCES[:64], "dev": SENTENCES[64:90], "test": SENTENCES[90:]}.items():
        lines = [f'"{s}","{t}",{len(s) / 10}' for s, t in zip(part, reversed(part), strict=True)]
        (folder / f"{name}.csv").write_text("one,two,score\n" + "\n".join(lines) + "\n")
    config = configured(tmp_path, model, str(folder), text=["one", "two"], label="score", labels=None, regression=True)
    task = load_task(config)
    variant = attached(config, task, task.base_model())
    (found,) = evaluate(variant, task, "validation", config.training.precision)
    assert {"loss", "pearson"} <= set(found)
    batches = list(task.evaluation_batches("validation"))
    with torch.no_grad():
        variant.pack.rows = len(batches[0]["labels"])
        rows = task.row_quantities(variant.model, batches[0])
    whole = task.split_metrics(rows, task.row_counts(batches[0]))
    assert whole["pearson"] == pytest.approx(found["pearson"])
    assert -1 <= whole["spearman"] <= 1
    assert whole["loss"] == pytest.approx(float((rows["prediction"] - rows["label"]).square().mean()), rel=1e-5)
    pair = task.base.tokenizer.decode(batches[0]["input_ids"][0])
    assert pair.count("[SEP]") == 2


def source(path: Path, *, rows: int, malformed: int = 0) -> dict[str, Any]:
    """What a result says of a file with a header and a line a row."""
    lines = {"all": 1 + rows + malformed, "header": 1, "of rows": rows, "malformed": malformed, "empty": 0}
    return {"place": str(path), "rows": rows, "left_out": malformed, "lines": lines}


def test_what_is_wrong_with_the_data_is_known_before_a_record_is_begun(tmp_path: Path, model: str, data: str) -> None:
    with (Path(data) / "dev.tsv").open("a") as file:
        file.write("a cat sings\t7\n")
    config = configured(tmp_path, model, data)
    with pytest.raises(DataError, match=r"dev.tsv line 18: unknown label '7'"):
        execute(config, runs_dir=tmp_path / "runs", test=False, display=Display())
    assert not (tmp_path / "runs" / "single").exists()
    skipping = configured(tmp_path, model, data, "task.skip_malformed=true")
    done = execute(skipping, runs_dir=tmp_path / "runs", test=False, display=Display())
    assert done.result["data"]["validation"] == {
        "rows": 16,
        "malformed": 1,
        "sources": [source(Path(data) / "dev.tsv", rows=16, malformed=1)],
        "rows_by_label": {"0": 11, "1": 5},
        "truncated": 0,
        "tokens_lost": 0,
    }


def test_texts_that_are_cut_are_counted_and_texts_longer_than_the_model_refused(
    tmp_path: Path, model: str, data: str
) -> None:
    task = load_task(configured(tmp_path, model, data, max_length=8))
    cut = sum(len(sentence.split()) + 2 > 8 for (sentence,) in task.data.splits["train"].texts)  # type: ignore[attr-defined]
    lost = sum(max(0, len(sentence.split()) + 2 - 8) for (sentence,) in task.data.splits["train"].texts)  # type: ignore[attr-defined]
    facts = task.data_facts()["train"]
    assert (facts["truncated"], facts["tokens_lost"]) == (cut, lost)
    assert lost > cut > 0
    with pytest.raises(DataError, match="rows of 128 tokens are longer than the 64 places"):
        load_task(configured(tmp_path, model, data, max_length=128)).architecture()


def test_a_run_says_what_it_read_and_how_much_of_it_is_cut(tmp_path: Path, model: str, data: str) -> None:
    said = io.StringIO()
    config = configured(tmp_path, model, data, max_length=8)
    execute(config, runs_dir=tmp_path / "runs", test=False, display=Display(Console(file=said, width=400)))
    train = next(line for line in said.getvalue().splitlines() if line.startswith("train: "))
    assert "rows 80; left out 0; labels 0: 53, 1: 27; read from train.tsv (81 lines: 1 header, 80 rows)" in train
    assert train.endswith("tokens 586; longest 11; cut at 8 tokens 53 rows (66.2%), 105 tokens (15.2%)")


def test_what_only_checks_the_data_is_no_part_of_a_config_hash(tmp_path: Path, model: str, data: str) -> None:
    checks = [[], ["task.suspicious_labels=warn"], ["task.allow_overlap=true"]]
    configs = [configured(tmp_path, model, data, *own) for own in checks]
    assert len({config.config_hash(base="w") for config in configs}) == 1
    knobs = "name train validation test split_seed train_rows format encoding skip_malformed preset text label labels "
    knobs += "regression metrics header quoted max_length"
    assert configs[0].hashed_config()["task"].keys() == set(knobs.split())


def test_positions_that_roberta_gives_to_no_token_do_not_count(tmp_path: Path, data: str) -> None:
    saved(tmp_path / "roberta", "roberta", "AutoModel", max_position_embeddings=32)
    with pytest.raises(DataError, match="rows of 32 tokens are longer than the 31 places"):
        load_task(configured(tmp_path, str(tmp_path / "roberta"), data, max_length=32)).architecture()


def test_a_text_task_without_a_model_and_another_task_with_one_are_errors(tmp_path: Path, data: str) -> None:
    with pytest.raises(ConfigError, match=r"model: missing; give the base model, e\.g\. model.name=FOLDER"):
        load(config_file(tmp_path), overrides=[f"task.path={data}"])
    with pytest.raises(ConfigError, match="model: task 'bytes' brings its own base model"):
        load(CONFIGS / "bytes.yaml", overrides=["model.name=x"])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"preset": "glue/colla"}, "preset: 'glue/colla' is not known"),
        ({"path": None}, "path: missing"),
        ({"path": "x", "text": ["a", 1], "label": "1"}, "label: '1' is a column of the text too"),
        ({"path": "x", "metrics": ["pearson"]}, "pearson is not for labels"),
        ({"path": "x", "regression": True, "metrics": ["mcc"]}, "mcc is not for regression"),
    ],
)
def test_knobs_that_do_not_fit_together_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextClassificationConfig(**knobs)


def test_presets_name_a_hub_data_set_and_yield_to_a_folder_and_to_knobs(tmp_path: Path) -> None:
    hub = TextClassificationConfig(preset="glue/cola").knobs()  # type: ignore[call-arg]
    assert (hub["path"], hub["subset"], hub["text"], hub["metrics"]) == (
        "nyu-mll/glue",
        "cola",
        ["sentence"],
        ["mcc", "accuracy"],
    )
    own = TextClassificationConfig(preset="glue/cola", path=str(tmp_path), metrics=["accuracy"]).knobs()  # type: ignore[call-arg]
    assert (own["path"], own["text"], own["label"], own["metrics"]) == (str(tmp_path), ["3"], "1", ["accuracy"])
    other = TextClassificationConfig(preset="glue/cola", path="some/other").knobs()  # type: ignore[call-arg]
    assert (other["path"], other["subset"]) == ("some/other", None)
    assert all(TextClassificationConfig(preset=name).knobs()["path"] for name in PRESETS)  # type: ignore[call-arg]


REAL = os.environ.get("LORA_STUDIES_DATA", "")


@pytest.mark.skipif(
    not REAL, reason="LORA_STUDIES_DATA names no folder with trec, sst2_sentences, glue_cola, glue_mrpc"
)
@pytest.mark.parametrize(
    ("preset", "folder", "sizes"),
    [
        ("trec/fine", "trec", (4899, 544, 499)),
        ("trec/coarse", "trec", (4900, 544, 499)),
        ("sst2_sentences", "sst2_sentences", (6920, 872, 1821)),
        ("glue/cola", "glue_cola", (7696, 855, 1043)),
        ("glue/mrpc", "glue_mrpc", (3667, 408, 1725)),
    ],
)
def test_the_benchmark_files_that_circulate_are_read_whole(preset: str, folder: str, sizes: tuple[int, ...]) -> None:
    config = TextClassificationConfig(preset=preset, path=f"{REAL}/{folder}", skip_malformed=True)  # type: ignore[call-arg]
    splits = TextClassification(config).data.splits
    assert tuple(len(splits[split].labels) for split in ("train", "validation", "test")) == sizes
    assert sum(part.malformed for part in splits.values()) == (preset == "trec/fine")
