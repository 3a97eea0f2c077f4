"""A run that was written before keys were renamed: it is read like any other, and trained again only with notice."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from project_paths import CONFIGS, ROOT
from safetensors.torch import save_file
from tiny_studies import start, study_file

from analysis.spectra import main as spectra
from experiments.record.adapter_reading import read_adapter
from experiments.record.errors import RecordError
from experiments.record.run_dir import RunDirectory
from experiments.run import main

[EARLIER] = (ROOT / "tests" / "run_of_earlier_keys").iterdir()
SAME_RUN = [
    "--config", str(CONFIGS / "planted.yaml"), "--variant", "lora", "--rank", "1",
    "--set", "task.matrices=[{d_out: 8, d_in: 8, rank: 2}]", "--set", "steps=20", "--set", "batch_size=8",
    "--set", "task.evaluation_rows=64", "--set", "evaluate_every=0", "--set", "wandb.mode=disabled",
]  # fmt: skip
NOTICE = "written with earlier key names; the run is trained again"


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    shutil.copytree(EARLIER, tmp_path / "single" / EARLIER.name)
    return tmp_path


def test_it_has_the_results_and_the_configuration_of_the_new_keys() -> None:
    run = RunDirectory(EARLIER)
    assert set(run.result()["seconds"]) == {"training", "overhead"}
    assert run.config_tree()["training"]["batch_size"] == 8
    assert "rows:" in (EARLIER / "config.yaml").read_text()


def test_its_spectrum_is_drawn(tmp_path: Path) -> None:
    assert spectra([str(EARLIER), "--out", str(tmp_path)]) == 0
    assert (tmp_path / "spectra.csv").is_file()


def test_another_run_starts_from_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SAME_RUN, "--start-from", str(EARLIER), "--runs-dir", str(tmp_path)]) == 0
    assert f"starts from 1 update of {EARLIER}" in capsys.readouterr().out


def test_the_same_run_says_where_it_is_and_is_trained_again(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SAME_RUN, "--runs-dir", str(runs_dir)]) == 0
    earlier = runs_dir / "single" / EARLIER.name
    assert f"{earlier} is this run, {NOTICE}" in capsys.readouterr().out
    [trained] = [path for path in (runs_dir / "single").glob("lora-*") if path != earlier]
    ours, theirs = RunDirectory(trained).result(), RunDirectory(earlier).result()
    assert ours["score"] == pytest.approx(theirs["score"], rel=1e-5)
    assert ours.keys() == theirs.keys()
    assert main([*SAME_RUN, "--runs-dir", str(runs_dir)]) == 0
    assert NOTICE not in capsys.readouterr().out


@pytest.mark.parametrize("other", [["--set", "weight_decay=0.1"], ["--set", "task.noise=0.5"], []])
def test_another_run_of_that_name_is_not_taken_for_it(
    runs_dir: Path, capsys: pytest.CaptureFixture[str], other: list[str]
) -> None:
    if not other:  # the same configuration over other data
        environment = runs_dir / "single" / EARLIER.name / "environment.json"
        environment.write_text(environment.read_text().replace('"train": "c3a7', '"train": "0000'))
    assert main([*SAME_RUN, *other, "--runs-dir", str(runs_dir)]) == 0
    assert NOTICE not in capsys.readouterr().out


def test_an_unfinished_run_of_earlier_keys_is_not_mentioned(runs_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs_dir / "single" / EARLIER.name / "result.json").unlink()
    assert main([*SAME_RUN, "--runs-dir", str(runs_dir)]) == 0
    assert NOTICE not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config.yaml", "environment.json"])
@pytest.mark.parametrize("content", ["a: [1", "[1, 2", "null", ""])
def test_a_directory_that_cannot_be_read_is_no_earlier_run_and_stops_none(
    runs_dir: Path, capsys: pytest.CaptureFixture[str], name: str, content: str
) -> None:
    (runs_dir / "single" / EARLIER.name / name).write_text(content)
    assert main([*SAME_RUN, "--runs-dir", str(runs_dir)]) == 0
    assert NOTICE not in capsys.readouterr().out


def test_that_its_files_cannot_be_checked_is_said_once_wherever_one_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = f"{EARLIER} was written by an earlier version: its result.json has no files_sha256"
    assert main([*SAME_RUN, "--start-from", str(EARLIER), "--runs-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count(said) == 1
    assert spectra([str(EARLIER), str(EARLIER), "--out", str(tmp_path)]) == 0
    assert " ".join(capsys.readouterr().out.split()).count(said) == 1


def earlier_version(runs_dir: Path) -> RunDirectory:
    """A finished run as it was before there was a sha256 of its files."""
    assert main([*SAME_RUN, "--runs-dir", str(runs_dir)]) == 0
    [path] = (runs_dir / "single").glob("lora-*")
    result = json.loads((path / "result.json").read_text())
    del result["files_sha256"]
    (path / "result.json").write_text(json.dumps(result))
    return RunDirectory(path)


def test_a_run_without_sha256_gets_its_test_score_with_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = earlier_version(tmp_path)
    assert main([*SAME_RUN, "--test", "--runs-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("has no files_sha256") == 1
    assert "squared_error" in run.result()["test"]
    assert not run.has_sha256, "what its files held then is not known"


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_run_without_sha256_is_refused_where_a_file_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run = earlier_version(tmp_path)
    (run.path / name).unlink()
    capsys.readouterr()
    assert main([*SAME_RUN, "--test", "--runs-dir", str(tmp_path)]) == 2
    assert str(run.path / name) in capsys.readouterr().err
    assert "test" not in run.result()


@pytest.mark.parametrize(
    ("result", "there", "lost"),
    [
        ({"trainable_parameters": 9, "update_parameters": 0, "scales": {}}, [], "head.safetensors"),
        ({"trainable_parameters": 9, "update_parameters": 6, "scales": {}}, ["delta.safetensors"], "head.safetensors"),
        ({"trainable_parameters": 6, "update_parameters": 6, "scales": {}}, [], "delta.safetensors"),
        ({"trainable_parameters": 9, "update_parameters": 0, "scales": {"pruned to nothing": 1.0}}, [], None),
        ({"trainable_parameters": 0, "update_parameters": 0, "scales": {}}, [], None),
    ],
)
def test_what_a_run_without_sha256_must_have_left_is_known_by_what_it_trained(
    tmp_path: Path, result: dict[str, object], there: list[str], lost: str | None
) -> None:
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "result.json").write_text(json.dumps(result))
    for name in there:
        save_file({"a": torch.zeros(2, 3)}, tmp_path / name)
    if lost is None:
        assert read_adapter(tmp_path).updates == {}
    else:
        with pytest.raises(RecordError, match=f"{lost} is missing; restore it from a copy"):
            read_adapter(tmp_path)


@pytest.mark.slow
def test_a_study_says_how_many_runs_in_its_folder_are_of_earlier_keys(tmp_path: Path) -> None:
    shutil.copytree(EARLIER, tmp_path / "runs" / "tiny" / EARLIER.name)
    said = "1 finished runs of earlier key names in"
    assert said in start(study_file(tmp_path), tmp_path / "runs").said
    assert said not in start(study_file(tmp_path), tmp_path / "runs").said  # nothing is left to train
