"""A run that was written before keys were renamed: it is read like any other, and trained again only with notice."""

import shutil
from pathlib import Path

import pytest
from project_paths import CONFIGS, ROOT
from tiny_studies import start, study_file

from analysis.spectra import main as spectra
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


@pytest.mark.slow
def test_a_study_says_how_many_runs_in_its_folder_are_of_earlier_keys(tmp_path: Path) -> None:
    shutil.copytree(EARLIER, tmp_path / "runs" / "tiny" / EARLIER.name)
    said = "1 finished runs of earlier key names in"
    assert said in start(study_file(tmp_path), tmp_path / "runs").said
    assert said not in start(study_file(tmp_path), tmp_path / "runs").said  # nothing is left to train
