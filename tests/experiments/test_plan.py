"""The plan of a run: what it shows, and that it refuses what the run would refuse, in the same words."""

import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from project_paths import CONFIGS
from rich.console import Console
from safetensors.torch import load_file, save_file
from text_data import write_labelled, write_model

from experiments.config.loading import load
from experiments.config.yaml_files import yaml_text
from experiments.plan import show_plan
from experiments.run import main
from experiments.runner import execute
from experiments.terminal import Display
from experiments.training.context import load_task

TRAINING = {"steps": 2, "batch_size": 8, "threads": 1, "learning_rate": 1e-2}
TASK = {"name": "text_classification", "text": ["sentence"], "labels": ["0", "1"], "max_length": 8}
LINES = {"name": "language_modeling", "layout": "lines", "context": 16}
TINY_PLANTED = ["steps=2", "evaluate_every=0", "task.evaluation_rows=64", "wandb.mode=disabled"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def written(folder: Path, task: dict[str, Any], *, kind: str = "bert", model: dict[str, Any] | None = None) -> Path:
    """A configuration on the files data/ and model/ of the folder, with the model written."""
    write_model(folder / "model", kind)
    pooling = {"pooling": "mean"} if kind == "bert" else {}
    tree: dict[str, Any] = {"task": {"path": str(folder / "data")} | task, "training": TRAINING}
    tree |= {"model": {"name": str(folder / "model")} | pooling | (model or {}), "targets": ["all-linear"]}
    path = folder / "c.yaml"
    path.write_text(yaml_text(tree | {"variant": {"name": "lora", "rank": 2}, "wandb": {"mode": "disabled"}}))
    return path


def classification(folder: Path, **task: Any) -> Path:
    write_labelled(folder / "data")
    return written(folder, TASK | task)


def plan(config: Any, runs_dir: Path = Path("runs")) -> str:
    said = io.StringIO()
    show_plan(config, Display(Console(file=said, width=200)), runs_dir=runs_dir)
    return said.getvalue()


def cells(said: str, split: str) -> list[str]:
    """The row of a split in the table of the data."""
    (row,) = (line for line in said.splitlines() if line.startswith(f"│ {split} "))
    return [cell.strip() for cell in row.strip("│").split("│")][1:]


def no_tokenizer(folder: Path) -> None:
    for file in (folder / "model").glob("tokenizer*"):
        file.unlink()


def no_weights(folder: Path) -> None:
    (folder / "model" / "model.safetensors").unlink()


def a_weight_less(folder: Path) -> None:
    file = folder / "model" / "model.safetensors"
    tensors = load_file(file)
    del tensors[next(name for name in tensors if "query.weight" in name)]
    save_file(tensors, file, metadata={"format": "pt"})


def other_width(folder: Path) -> None:
    file = folder / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"intermediate_size": 48}))


def a_wrong_label(folder: Path) -> None:
    with (folder / "data" / "dev.tsv").open("a") as file:
        file.write("a cat\t7\n")


def no_runs_folder(folder: Path) -> None:
    (folder / "runs").write_text("")


def unknown_mode(folder: Path) -> None:
    os.environ["WANDB_MODE"] = "sometimes"


@pytest.mark.parametrize(
    "spoil",
    [no_tokenizer, no_weights, a_weight_less, other_width, a_wrong_label, no_runs_folder, unknown_mode],
    ids=lambda spoil: spoil.__name__,
)
def test_what_a_run_refuses_before_its_first_step_its_plan_refuses_in_the_same_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")  # put back at the end
    config = load(classification(tmp_path), overrides=["wandb.mode=auto"])
    spoil(tmp_path)
    with pytest.raises((ValueError, OSError)) as planned:
        plan(config, tmp_path / "runs")
    with pytest.raises((ValueError, OSError)) as ran:
        execute(config, runs_dir=tmp_path / "runs", test=False, display=Display.silent())
    assert (str(planned.value), type(planned.value)) == (str(ran.value), type(ran.value))


def test_a_device_that_is_not_there_is_refused_by_the_plan_too() -> None:
    config = load(CONFIGS / "planted.yaml", overrides=["training.device=mps"])
    with pytest.raises(ValueError, match=r"training\.device: 'mps' is not available"):
        plan(config)


def test_the_plan_shows_rows_labels_and_what_is_cut_and_leaves_no_file(tmp_path: Path) -> None:
    config = load(classification(tmp_path))
    before = set(tmp_path.rglob("*"))
    said = plan(config, tmp_path / "runs")
    assert "cut at 8 tokens" in said
    assert "train is read from train.tsv (81 lines: 1 header, 80 rows)" in said
    cut = "53 rows (66.2%), 105 tokens (15.2%)"
    assert cells(said, "train") == ["80", "0", "0: 53, 1: 27", "586", "11", cut]
    assert cells(said, "test")[:3] == ["12", "0", "0: 8, 1: 4"]
    assert set(tmp_path.rglob("*")) == before


def test_the_plan_counts_what_the_record_counts(tmp_path: Path) -> None:
    path = classification(tmp_path)
    a_wrong_label(tmp_path)
    config = load(path, overrides=["task.skip_malformed=true"])
    said = plan(config, tmp_path / "runs")
    done = execute(config, runs_dir=tmp_path / "runs", test=False, display=Display.silent())
    for split in ("train", "validation", "test"):
        facts, (rows, left_out, *_, cut) = done.result["data"][split], cells(said, split)
        assert (facts["rows"], facts["malformed"]) == (int(rows), int(left_out))
        assert facts["truncated"] == (0 if cut == "none" else int(cut.partition(" ")[0]))
    assert f"run directory: {done.folder}" in said
    assert f"this run has already finished: {done.folder}" in plan(config, tmp_path / "runs")


def test_the_plan_of_a_language_model_counts_lines_and_the_tokens_that_are_cut(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for split, animal in {"train": "cat", "valid": "dog", "test": "bird"}.items():
        (tmp_path / "data" / f"{split}.txt").write_text(f"a {animal} is bad\n" * 3 + f"a {animal} " * 10 + "\n")
    config = load(written(tmp_path, LINES, kind="llama"), overrides=["task.evaluation_rows=2"])
    said = plan(config)
    assert "train is read from train.txt (4 lines)" in said
    assert "cut at 17 tokens" in said
    assert cells(said, "train") == ["4", "4 of 4", "0", "35", "22", "1 row (25.0%), 5 tokens (12.5%)"]
    assert cells(said, "validation")[1] == "2 of 4 (task.evaluation_rows)"
    facts = load_task(config).data_facts()["train"]
    assert (facts["truncated"], facts["tokens_lost"]) == (1, 5)


@pytest.mark.parametrize(
    ("name", "train", "validation"),
    [
        ("planted", ["drawn afresh at every step", "64"], ["8,192", "64"]),
        ("digits", ["448", "5: 87, 6: 89, 7: 86, 8: 87, 9: 99"], ["224", "5: 42, 6: 48, 7: 46, 8: 44, 9: 44"]),
    ],
)
def test_the_plan_of_a_task_that_brings_its_data_says_what_they_are(
    name: str, train: list[str], validation: list[str]
) -> None:
    said = plan(load(CONFIGS / f"{name}.yaml"))
    assert (cells(said, "train"), cells(said, "validation")) == (train, validation)


def test_a_built_in_base_that_is_not_in_the_cache_is_not_pretrained_for_a_plan(tmp_path: Path) -> None:
    said = plan(load(CONFIGS / "bytes.yaml", overrides=["task.pretraining_steps=1"]))
    assert "not checked: the base model is pretrained when a run starts" in said
    assert cells(said, "train")[1:] == ["drawn at random", "65"]
    assert not (tmp_path / "cache").exists()


def test_a_base_that_takes_long_to_load_is_not_loaded_and_that_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.plan.MOST_BYTES_LOADED", 1000)
    config = load(classification(tmp_path))
    said = plan(config)
    assert "not checked: W0 has 0.0 GiB: whether all weights of the model are in its files" in said
    no_weights(tmp_path)
    with pytest.raises(ValueError, match="has no weights in model"):
        plan(config)


def test_names_of_the_hub_that_are_not_in_the_cache_are_said_and_nothing_is_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(*_: object, local_files_only: bool, **__: object) -> str:
        assert local_files_only
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    path = classification(tmp_path)
    said = plan(load(path, overrides=["model.name=some/model"]))
    assert "not checked: model.name: 'some/model' is no folder here and not whole in the cache" in said
    assert cells(said, "train") == ["80", "0", "0: 53, 1: 27"]
    said = plan(load(path, overrides=["task.path=some/data"]))
    assert "trainable parameters" in said
    assert "not checked: task.path: 'some/data' is no file or folder here; as a data set of the Hub" in said
    a_wrong_label(tmp_path)
    with pytest.raises(ValueError, match=r"dev\.tsv line 18: unknown label '7'"):
        plan(load(path, overrides=["model.name=some/model"]))


def test_a_model_of_the_hub_whose_settings_alone_are_in_the_cache_plans_its_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path / "model"))
    path = classification(tmp_path)
    no_weights(tmp_path)
    said = plan(load(path, overrides=["model.name=some/model"]))
    assert "trainable parameters" in said
    assert cells(said, "train")[-1] == "53 rows (66.2%), 105 tokens (15.2%)"
    assert "not checked: model.name: 'some/model' is no folder here and not whole in the cache" in said


def test_the_command_names_what_is_wrong_with_each_split_in_a_line_of_its_own_and_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = classification(tmp_path)
    (tmp_path / "data" / "train.tsv").write_text("text\tlabel\na cat\t1\n")
    (tmp_path / "data" / "dev.tsv").write_bytes(b"\0")
    a_wrong = "sentence\tlabel\na cat\t1\na dog\tno\n"
    (tmp_path / "data" / "test.tsv").write_text(a_wrong)
    for arguments in (["--plan"], []):
        assert main(["--config", str(path), "--runs-dir", str(tmp_path / "runs"), *arguments]) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(errors) == 3
        assert "dev.tsv is not text" in errors[0]
        assert "train.tsv has no column 'sentence' (task.text); it has" in errors[1]
        assert "1 of 2 rows is malformed" in errors[2]
    assert not (tmp_path / "runs").exists()


def test_a_finished_run_of_another_configuration_in_its_place_is_refused_by_the_plan_too(tmp_path: Path) -> None:
    config = load(CONFIGS / "planted.yaml", overrides=TINY_PLANTED)
    folder = execute(config, runs_dir=tmp_path / "runs", test=False, display=Display.silent()).folder
    text = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(text.replace("batch_size: 256", "batch_size: 128"))
    with pytest.raises(ValueError, match="holds a run whose training differ"):
        plan(config, tmp_path / "runs")
