"""An adapter goes onto the base model that it was learned on: another one is refused, or told where it is a guess."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from project_paths import CONFIGS
from safetensors.torch import load_file, save_file
from text_data import write_labelled, write_model
from tiny_studies import start as start_study
from tiny_studies import study_file

from experiments.config.errors import ConfigError
from experiments.config.loading import load
from experiments.config.schema import RunConfig
from experiments.record.adapter_formats import CONFIG, DELTA, RunStoreError
from experiments.record.learned_on import LearnedOn, compare_with_base, read_learned_on
from experiments.record.run_dir import RunDirectory
from experiments.run import main
from experiments.runner import execute
from experiments.terminal import Display

PLANTED = CONFIGS / "planted.yaml"
QUICK = ("steps=4", "task.evaluation_rows=64", "wandb.mode=disabled", "rank=2")
OTHER = "task.problem_seed=1"  # of which W0 is another one of the same shape


def configured(*overrides: str, start: Path | None = None, variant: str = "lora") -> RunConfig:
    quick = [given for given in QUICK if variant in ("lora", "adalora") or "rank" not in given]
    return load(PLANTED, variant=variant, start_from=start, overrides=(*quick, *overrides))


def recorded(folder: Path, *overrides: str, start: Path | None = None, variant: str = "lora") -> Path:
    config = configured(*overrides, start=start, variant=variant)
    return execute(config, runs_dir=folder / "runs", test=False, display=Display()).folder


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A finished run of a variant."""
    folder = tmp_path_factory.mktemp("earlier")
    return lambda variant: recorded(folder, variant=variant)


@pytest.mark.parametrize("variant", ["lora", "adalora", "full", "full_all"])
def test_what_was_learned_on_another_base_is_refused_before_anything_is_written(
    tmp_path: Path, earlier: Callable[[str], Path], variant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    source = earlier(variant)
    layouts = [source, source / "adalora"] if variant == "adalora" else [source]
    overrides = [part for override in (OTHER, *QUICK[:-1]) for part in ("--set", override)]
    for path in layouts:
        asked = ["--config", str(PLANTED), "--variant", "full_all", "--start-from", str(path), *overrides]
        asked += ["--runs-dir", str(tmp_path / "runs")]
        assert main(asked) == 2
        printed = capsys.readouterr().err
        theirs = RunDirectory(source).environment()["base_sha256"]
        assert (
            f"{path}: an adapter fits the weights W0 that it was learned on, here those of sha256 {theirs[:12]}"
            in printed
        )
        assert "say start.other_base=true" in printed
        assert not list((tmp_path / "runs").glob("*/*/*"))
        assert main([*asked, "--set", "start.other_base=true"]) == 0
        capsys.readouterr()
        for run in (tmp_path / "runs" / "single").iterdir():
            run.rename(tmp_path / run.name)


def test_insisting_is_no_part_of_what_a_run_is_and_a_finished_run_is_found_without(
    tmp_path: Path, earlier: Callable[[str], Path]
) -> None:
    source = earlier("lora")
    insisting = configured(OTHER, "start.other_base=true", start=source)
    config = configured(OTHER, start=source)
    assert insisting.config_hash(base="b") == config.config_hash(base="b")
    first = execute(insisting, runs_dir=tmp_path, test=False, display=Display())
    again = execute(config, runs_dir=tmp_path, test=False, display=Display())
    assert (again.found, again.folder) == (True, first.folder)


def test_a_study_refuses_an_arm_of_another_base_before_its_workers_start(
    tmp_path: Path, earlier: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[object] = []
    monkeypatch.setattr("experiments.studies.launch.WorkerPool", started.append)
    arms = [{"variant": "lora", "rank": 4}, {"variant": "lora", "rank": 4, "start.path": str(earlier("lora"))}]
    settings = {"training.steps": 4, "task.evaluation_rows": 64, "wandb.mode": "disabled", OTHER.partition("=")[0]: 1}
    done = start_study(study_file(tmp_path, arms=arms, set=settings), tmp_path / "runs")
    assert isinstance(done.error, ConfigError)
    assert "say start.other_base=true" in str(done.error)
    assert not started


def peft(folder: Path, **config: Any) -> Path:
    """A folder of PEFT that fits the planted task's model."""
    folder.mkdir()
    prefix = "base_model.model.matrices.0"
    factors = {f"{prefix}.lora_A.weight": torch.ones(2, 64), f"{prefix}.lora_B.weight": torch.ones(64, 2)}
    save_file(factors, folder / "adapter_model.safetensors")
    (folder / CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **config}))
    return folder


def test_a_fingerprint_in_adapter_config_is_compared_where_there_is_no_run_around_it(tmp_path: Path) -> None:
    path = peft(tmp_path / "peft", base_sha256="0123456789abcdef", base_model_name_or_path="theirs")
    with pytest.raises(RunStoreError, match=r"here those of sha256 0123456789ab \(theirs\)"):
        recorded(tmp_path, start=path)
    moved = recorded(tmp_path)
    (moved / CONFIG).write_text(json.dumps(json.loads((moved / CONFIG).read_text()) | {"base_sha256": "0" * 64}))
    result = json.loads((moved / "result.json").read_text())
    del result["files_sha256"]  # as a run has none that was recorded before they were
    (moved / "result.json").write_text(json.dumps(result))
    recorded(tmp_path, "seed=1", start=moved)  # its environment.json comes first


@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_a_base_of_another_name_is_told_and_trained_on(
    tmp_path: Path, plan: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = peft(tmp_path / "peft", base_model_name_or_path="org/their-model")
    asked = ["--config", str(PLANTED), "--start-from", str(path), "--runs-dir", str(tmp_path / "runs"), *plan]
    asked += [part for override in QUICK for part in ("--set", override)]
    assert main(asked) == 0
    said = "learned on 'org/their-model', and the base model here is that of the task planted"
    assert said in " ".join("".join(capsys.readouterr()).split())
    assert main([*asked, "--set", "start.other_base=true"]) == 0
    assert "their-model'" not in " ".join("".join(capsys.readouterr()).split())


@pytest.mark.parametrize(
    ("name", "is_same"),
    [
        ("FacebookAI/roberta-base", True),
        ("roberta-base", True),
        ("/home/someone/models/RoBERTa-base/", True),
        (r"C:\models\roberta-base", True),
        ("/cache/hub/models--FacebookAI--roberta-base/snapshots/e2da8e2f811d", True),
        ("/cache/hub/models--roberta-base/snapshots/e2da8e2f811d", True),
        ("FacebookAI/roberta-large", False),
        ("roberta-base-mnli", False),
        ("", True),
        (None, True),
        (7, True),
    ],
)
def test_names_of_a_base_are_compared_by_their_last_part(tmp_path: Path, name: object, is_same: bool) -> None:
    path = peft(tmp_path / "peft", base_model_name_or_path=name)
    config = load(
        CONFIGS / "recipes" / "lora_roberta_base_glue.yaml", start_from=path, overrides=["task.path=/nowhere"]
    )
    assert bool(compare_with_base(config, has_head=False)) != is_same


def test_a_head_learned_with_another_pooling_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.data.tokens.cache_folder", lambda: tmp_path / "cache")
    model, data = write_model(tmp_path / "bert", "bert"), write_labelled(tmp_path / "data")
    tree = {
        "task": {
            "name": "text_classification",
            "text": ["sentence"],
            "max_length": 32,
            "labels": ["0", "1"],
            "path": data,
        },
        "model": {"name": model, "pooling": "mean"},
        "targets": ["*.query"],
        "variant": {"name": "lora", "rank": 2},
        "training": {"steps": 1, "batch_size": 8, "threads": 1, "learning_rate": 1e-2},
        "wandb": {"mode": "disabled"},
    }
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree))
    mean = execute(load(tmp_path / "c.yaml"), runs_dir=tmp_path, test=False, display=Display()).folder
    assert read_learned_on(mean).pooling == "mean"
    same = load(tmp_path / "c.yaml", start_from=mean, overrides=["seed=1"])
    execute(same, runs_dir=tmp_path, test=False, display=Display())
    config = load(tmp_path / "c.yaml", start_from=mean, overrides=["model.pooling=auto"])
    with pytest.raises(
        RunStoreError, match=r"its head was learned with pooling 'mean', and this run pools with 'auto'"
    ):
        execute(config, runs_dir=tmp_path, test=False, display=Display())
    assert compare_with_base(config, has_head=False) == []


def test_what_is_known_of_a_base_is_read_of_any_folder_that_can_be_started_from(tmp_path: Path) -> None:
    nothing = LearnedOn(None, None, None)
    assert read_learned_on(peft(tmp_path / "peft")) == nothing
    other_method = peft(tmp_path / "ia3", peft_type="IA3", base_model_name_or_path="x", pooling=None)
    save_file({"matrices.0": torch.ones(64, 64)}, other_method / DELTA)
    assert read_learned_on(other_method) == read_learned_on(other_method / DELTA) == LearnedOn(None, "x", "auto")
    torch.save(load_file(tmp_path / "peft" / "adapter_model.safetensors"), tmp_path / "lora.pt")
    assert read_learned_on(tmp_path / "lora.pt") == nothing


def test_the_layout_of_an_unfinished_run_is_refused_as_the_run_is(tmp_path: Path) -> None:
    run = recorded(tmp_path, variant="adalora")
    (run / "result.json").unlink()
    with pytest.raises(RunStoreError, match="a run is read once it is finished"):
        recorded(tmp_path / "after", start=run / "adalora")


def test_an_environment_that_cannot_be_read_is_refused_by_name(tmp_path: Path) -> None:
    run = recorded(tmp_path)
    (run / "environment.json").write_text("{torn")
    with pytest.raises(RunStoreError, match=r"environment\.json is JSON; .* is not"):
        recorded(tmp_path / "after", start=run)
