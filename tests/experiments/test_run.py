"""One run end to end, as a user starts it: the command, the record, the second time, and what goes wrong."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import yaml
from forked_python import run_python
from project_paths import CONFIGS, ROOT
from safetensors.torch import load_file
from wandb_reading import read_offline_run

from analysis.spectra_tables import spectrum_tables
from experiments.config.loading import load
from experiments.record.run_dir import RunDirectory
from experiments.run import main
from experiments.runner import execute
from experiments.terminal import Display
from lora_variants import VARIANTS

QUICK = ["--set", "steps=12", "--set", "evaluate_every=5", "--set", "task.evaluation_rows=64"]
PLANTED = ["--config", str(CONFIGS / "planted.yaml"), *QUICK]


def run(folder: Path, *arguments: str, script: str = "experiments/run.py") -> subprocess.CompletedProcess[str]:
    """The command, from a folder that is not the project's and without an account."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(folder), "COLUMNS": "100"}
    return run_python([sys.executable, ROOT / script, *arguments], cwd=folder, env=environment)


def only_run(folder: Path, study: str = "single") -> Path:
    (found,) = (path for path in (folder / "runs" / study).iterdir() if path.is_dir())
    return found


def recorded(tmp_path: Path, variant: str, *overrides: str) -> RunDirectory:
    """A quick run of a variant on `planted`, in this process."""
    overrides = ("steps=12", "evaluate_every=5", "task.evaluation_rows=64", "wandb.mode=disabled", *overrides)
    config = load(CONFIGS / "planted.yaml", variant=variant, overrides=overrides)
    return RunDirectory(execute(config, runs_dir=tmp_path / "runs", test=False, display=Display()).folder)


@pytest.fixture(scope="module")
def adalora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one finished command."""
    folder = tmp_path_factory.mktemp("adalora")
    done = run(folder, *PLANTED, "--variant", "adalora", "--rank", "4")
    assert done.returncode == 0, done.stderr
    (folder / "printed").write_text(done.stdout)
    return folder


def test_one_command_leaves_the_whole_record(adalora: Path) -> None:
    files = {path.name for path in only_run(adalora).iterdir()}
    assert files == {
        "config.yaml", "environment.json", "metrics.jsonl", "adapter_model.safetensors", "adapter_config.json",
        "adalora", "predictions.parquet", "result.json", "README.md", "wandb",
    }  # fmt: skip


def test_the_table_says_score_parameters_ranks_and_where_the_record_is(adalora: Path) -> None:
    printed = (adalora / "printed").read_text()
    result = RunDirectory(only_run(adalora)).result()
    assert f"{result['score']:.4f}" in printed
    assert f"{result['trainable_parameters']:,}" in printed
    assert "4 in 1 layer" in printed
    assert "(test)" not in printed
    assert str(only_run(adalora)) in printed.replace("\n", "")


def test_the_wandb_run_equals_the_record_on_disk(adalora: Path) -> None:
    record = RunDirectory(only_run(adalora))
    mirrored = read_offline_run(record.path)
    config = yaml.safe_load((record.path / "config.yaml").read_text())
    assert mirrored.config == config
    assert (mirrored.group, mirrored.name, mirrored.exit_code) == ("single", record.path.name, 0)
    rows = [{k: v for k, v in row.items() if k != "step"} for row in record.history()]
    theirs = [
        {k: v for k, v in row.items() if "/" in k and not k.startswith(("spectra", "ranks"))}
        for row in mirrored.history
    ]
    assert [row for row in theirs if row] == [{k: pytest.approx(v) for k, v in row.items()} for row in rows]
    assert mirrored.summary["score"] == pytest.approx(record.result()["score"])
    assert not [key for key in mirrored.summary if "sha256" in key]
    spectra = spectrum_tables([record.path]).values
    table = [(matrix, index + 1, sigma) for matrix, index, sigma in mirrored.tables["spectra"].rows]
    assert table == [*spectra[["matrix", "index", "sigma"]].itertuples(index=False, name=None)]
    (artifact,) = (found for found in mirrored.artifacts.values() if found.type == "adapter")
    assert set(artifact.files) == {"adapter_model.safetensors", "adapter_config.json"}


def test_adalora_ends_on_its_budget_and_its_record_shows_every_rank_over_time(adalora: Path) -> None:
    record = RunDirectory(only_run(adalora))
    ranks = [row["rank/matrices.0"] for row in record.history() if "rank/matrices.0" in row]
    assert ranks[0] == 6
    assert ranks[-1] == record.result()["ranks_total"] == 4
    assert ranks == sorted(ranks, reverse=True)


def test_the_same_command_finds_the_run_finished_and_test_reads_go_into_the_ledger(adalora: Path) -> None:
    before = (only_run(adalora) / "adapter_model.safetensors").stat().st_mtime_ns
    again = run(adalora, *PLANTED, "--variant", "adalora", "--rank", "4", "--test")
    assert again.returncode == 0, again.stderr
    assert "already finished" in again.stdout
    assert "(test)" in again.stdout
    assert (only_run(adalora) / "adapter_model.safetensors").stat().st_mtime_ns == before
    (row,) = [json.loads(line) for line in (adalora / "runs" / "test_reads.jsonl").read_text().splitlines()]
    environment = json.loads((only_run(adalora) / "environment.json").read_text())
    assert row["data"] == environment["data_sha256"]["test"]
    assert row["run"] == only_run(adalora).name


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_test_read_later_scores_what_the_run_itself_would_have_read(tmp_path: Path, variant: str) -> None:
    overrides = ["steps=12", "task.evaluation_rows=64", "wandb.mode=disabled"]
    config = load(CONFIGS / "planted.yaml", variant=variant, overrides=overrides)
    scores = []
    for folder, reads in ((tmp_path / "at-once", [True]), (tmp_path / "later", [False, True])):
        for test in reads:
            finished = execute(config, runs_dir=folder, test=test, display=Display())
            assert ("test" in finished.result) == test
        scores.append(finished.result["test"]["squared_error"])
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_feeding_the_resolved_configuration_back_gives_the_same_run(tmp_path: Path, variant: str) -> None:
    first = recorded(tmp_path / "a", variant)
    config = load(first.path / "config.yaml")
    again = RunDirectory(execute(config, runs_dir=tmp_path / "b", test=False, display=Display()).folder)
    assert again.path.name == first.path.name
    assert again.history() == first.history()
    for path in first.path.glob("*.safetensors"):
        ours, theirs = load_file(path), load_file(again.path / path.name)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_run_whose_loss_is_not_finite_fails_and_is_never_a_score(tmp_path: Path) -> None:
    done = run(tmp_path, *PLANTED, "--set", "learning_rate=1e30", "--wandb", "disabled")
    assert done.returncode == 1
    assert "not finite" in done.stderr
    record = only_run(tmp_path)
    assert "not finite" in (record / "error.txt").read_text()
    assert not (record / "result.json").exists()
    assert run(tmp_path, *PLANTED, "--set", "learning_rate=1e30", "--wandb", "disabled").returncode == 1


def test_ctrl_c_finishes_the_step_writes_a_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    slow = [*PLANTED[:2], "--set", "steps=100000", "--set", "task.evaluation_rows=64", "--wandb", "disabled"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "experiments" / "run.py"), *slow]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("runs/single/*/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "with a checkpoint; the same command goes on from there" in errors
    assert "Traceback" not in errors
    assert not (only_run(tmp_path) / "error.txt").exists()
    assert not RunDirectory(only_run(tmp_path)).finished


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--variant", "adalor"], "did you mean 'adalora'"),
        (["--variant", "full", "--rank", "4"], "has no rank"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--set", "rank=1000"], "above min(d_out, d_in) = 64"),
        (["--set", 'targets=["*.key"]'], "the model has: matrices.0"),
        (["--set", 'rank={"*.key": 2}'], "the targets are: matrices.0"),
        (["--set", "device=cuda"], "not available"),
        (["--ran", "4"], "unrecognized arguments"),
        (["--set", "study=.."], "study: "),
        (["--set", "stepps=4"], "did you mean 'training.steps'"),
        (["--set", "alpha=.inf"], "finite number"),
        (["--wandb", "never"], "'auto', 'online', 'offline' or 'disabled'"),
    ],
)
def test_a_faulty_request_is_refused_before_anything_is_written(
    tmp_path: Path, arguments: list[str], says: str
) -> None:
    if "device=cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    done = run(tmp_path, *PLANTED, *arguments)
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_plan_shows_layers_ranks_and_parameters_and_writes_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, *PLANTED, "--rank", "4", "--plan")
    assert done.returncode == 0, done.stderr
    assert "matrices.0" in done.stdout
    assert "512 (12.50% of the base's 4,096)" in done.stdout
    assert not list(tmp_path.glob("runs"))


def test_a_rank_beyond_break_even_warns_with_both_parameter_counts(tmp_path: Path) -> None:
    done = run(tmp_path, *PLANTED, "--rank", "32", "--plan")
    assert "their adapters have 4,096 parameters, the matrices themselves 4,096" in " ".join(done.stdout.split())


def test_the_spectra_command_reads_the_run(adalora: Path) -> None:
    done = run(adalora, str(only_run(adalora)), script="analysis/spectra.py")
    assert done.returncode == 0, done.stderr
    assert "matrices.0" in done.stdout
    assert (adalora / "figures" / "spectra.png").stat().st_size > 10_000


def test_a_finished_run_with_another_configuration_in_its_folder_is_refused(tmp_path: Path) -> None:
    record = recorded(tmp_path, "lora")
    text = (record.path / "config.yaml").read_text()
    (record.path / "config.yaml").write_text(text.replace("\nseed: 0", "\nseed: 7"))
    with pytest.raises(ValueError, match="holds a run whose seed differ"):
        recorded(tmp_path, "lora")


def test_a_score_that_is_not_finite_is_a_failure_and_no_result(tmp_path: Path) -> None:
    done = run(tmp_path, *PLANTED, "--set", "steps=1", "--set", "learning_rate=1e25", "--wandb", "disabled")
    assert done.returncode == 1
    assert "not finite on the validation split" in done.stderr
    assert not (only_run(tmp_path) / "result.json").exists()
    assert not (only_run(tmp_path) / "adapter_model.safetensors").exists()
    spectra = run(tmp_path, str(only_run(tmp_path)), script="analysis/spectra.py")
    assert spectra.returncode == 2
    assert "no result.json" in spectra.stderr


def test_the_test_score_is_shown_only_to_who_asks_for_it(tmp_path: Path) -> None:
    quiet = [*PLANTED, "--wandb", "disabled"]
    assert "(test)" in run(tmp_path, *quiet, "--test").stdout
    assert "(test)" not in run(tmp_path, *quiet).stdout
    assert len((tmp_path / "runs" / "test_reads.jsonl").read_text().splitlines()) == 1


def test_a_reader_who_goes_away_costs_no_run(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "experiments" / "run.py"), *PLANTED, "--wandb", "disabled"]
    done = subprocess.run(f"{shlex.join(command)} | true", shell=True, cwd=tmp_path, capture_output=True, timeout=60)
    assert done.stderr == b""
    assert RunDirectory(only_run(tmp_path)).finished


def test_two_processes_never_train_one_run(tmp_path: Path) -> None:
    first = recorded(tmp_path, "lora")
    (first.path / "result.json").unlink()
    with first.locked(), pytest.raises(ValueError, match="another process is training this run now"):
        recorded(tmp_path, "lora")
    assert recorded(tmp_path, "lora").finished


@pytest.mark.parametrize("place", ["a file", "a file/below"])
def test_a_runs_folder_that_cannot_be_is_an_error_before_anything_is_computed(tmp_path: Path, place: str) -> None:
    (tmp_path / "a file").write_text("")
    done = run(tmp_path, *PLANTED, "--runs-dir", place)
    assert done.returncode == 2
    assert "a file" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_can_be_printed_where_greek_letters_cannot(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "experiments" / "run.py"), "--help"]
    done = subprocess.run(command, env=os.environ | {"PYTHONIOENCODING": "cp1252"}, capture_output=True, check=True)
    assert b"rslora" in done.stdout


def test_a_metric_that_is_not_finite_is_null_on_disk_and_nan_when_read_back(tmp_path: Path) -> None:
    folder = RunDirectory(tmp_path)
    folder.metrics.begin()
    folder.log({"step": 1, "validation/loss": float("inf")})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 1, "validation/loss": None}
    (row,) = folder.history()
    assert math.isnan(row["validation/loss"])


def test_a_run_may_be_carried_out_in_a_thread(tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(recorded, tmp_path, "lora").result().finished


def test_the_live_line_ends_with_the_last_loss(adalora: Path) -> None:
    last = [row["train/task_loss"] for row in RunDirectory(only_run(adalora)).history() if "train/task_loss" in row][-1]
    assert f"loss {last:.4f}" in (adalora / "printed").read_text()


def test_an_interruption_outside_of_training_promises_no_checkpoint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.runner.execute", interrupted)
    assert main(["--rank", "2"]) == 130
    assert "from the last checkpoint, or from the start without one" in capsys.readouterr().err
