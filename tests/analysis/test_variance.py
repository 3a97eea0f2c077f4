"""The command that says how much of a score's variance each part of the seed has."""

from pathlib import Path

import numpy as np
import pytest
from tiny_runs import STEPS, TINY, tiny_run

from analysis.seed_design import crossed_configs, describe_design, read_levels
from analysis.stats.variance_components import variance_components
from analysis.variance import main
from experiments.config.loading import load
from experiments.config.seed import SeedParts
from experiments.record.run_dir import RunDirectory

RANK = ["--variant", "lora", "--set", "variant.rank=2"]


def variance(runs_dir: Path, *arguments: str) -> int:
    return main([*TINY, *RANK, "--runs-dir", str(runs_dir), *arguments])


def runs(folder: Path) -> list[RunDirectory]:
    return [RunDirectory(path) for path in sorted((folder / "single").iterdir()) if path.is_dir()]


def test_the_printed_shares_are_those_of_the_runs_on_disk_which_are_run_s_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert variance(tmp_path, "--vary", "init=2", "data=3", "--set", "seed=5") == 0
    printed = capsys.readouterr().out
    assert "6 runs: init 5-6 x data 5-7, dropout 5" in printed
    results = [run.result() for run in runs(tmp_path)]
    assert len(results) == 6
    scores = np.full((2, 3), np.nan)
    for result in results:
        seed = result["seed"] if isinstance(result["seed"], dict) else {"init": 5, "data": 5}
        scores[seed["init"] - 5, seed["data"] - 5] = result["score"]
    for name, found in zip(("init", "data", "rest"), variance_components(scores), strict=True):
        line = next(line for line in printed.splitlines() if line.startswith(name))
        assert line.split()[1:3] == [f"{found.variance**0.5:.3g}", f"{found.share:.2f},"]
        assert line.endswith(f"[{found.low:.2f}, {found.high:.2f}]")
    assert not (tmp_path / "test_reads.jsonl").exists()
    assert tiny_run(tmp_path / "alone", "--set", "seed=5", "--set", "seed.data=7") == 0
    (alone,) = runs(tmp_path / "alone")
    assert alone.result()["score"] == scores[0, 2]
    assert alone.path.name in {run.path.name for run in runs(tmp_path)}


def test_a_larger_design_trains_only_the_runs_that_are_new_and_the_test_split_is_read_on_request(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert variance(tmp_path, "--vary", "init=2", "data=2") == 0
    before = {run.path.name: (run.path / "metrics.jsonl").stat().st_mtime_ns for run in runs(tmp_path)}
    capsys.readouterr()
    assert variance(tmp_path, "--vary", "init=3", "data=2", "--test", "--pack", "4") == 0
    printed = capsys.readouterr().out
    assert "6 runs, 4 of them finished before; packs of 4" in printed
    assert "squared_error (validation)" in printed
    assert "squared_error (test)" in printed
    assert (
        before.items() <= {r.path.name: (r.path / "metrics.jsonl").stat().st_mtime_ns for r in runs(tmp_path)}.items()
    )
    assert len((tmp_path / "test_reads.jsonl").read_text().splitlines()) == 6


def test_the_plan_shows_the_run_and_the_design_and_trains_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert variance(tmp_path, "--plan") == 0
    printed = capsys.readouterr().out
    assert f"steps: {STEPS}" in printed
    assert "64 runs: init 0-7 x data 0-7, dropout 0" in printed
    assert not (tmp_path / "single").exists()


def test_a_design_crosses_every_seed_of_one_part_with_every_seed_of_another() -> None:
    config = load(Path(TINY[1]), variant="lora", overrides=["seed=5", "seed.data=0", "dropout=0.1"])
    levels = read_levels(["dropout=2", "init=2"], config)
    assert describe_design(config, levels) == "4 runs: dropout 5-6 x init 5-6, data 0"
    assert [each.seed for each in crossed_configs(config, levels)] == [
        SeedParts(init=init, data=0, dropout=dropout) for dropout in (5, 6) for init in (5, 6)
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--vary", "init=2", "init=2"], "--vary 'init=2': the design crosses two different parts of the seed"),
        (["--vary", "init=1", "data=2"], "--vary 'init=1': a part of the seed (init, data, dropout) and 2 to 1000"),
        (["--vary", "init=2", "order=2"], "--vary 'order=2': a part of the seed"),
        (["--vary", "init=2", "dropout=2"], "--vary 'dropout=2': nothing is dropped, its seed decides nothing"),
        (["--vary", "init=2", "data=2", "--set", f"seed={2**63 - 2}"], "leaves no 2 seeds; take a lower one"),
        (["--set", "lr=1"], "lr: unknown key (did you mean 'training.learning_rate'?)"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert variance(tmp_path, *arguments) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "single").exists()


def test_a_run_that_fails_leaves_no_table_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert variance(tmp_path, "--vary", "init=2", "data=2", "--set", "learning_rate=1e30") == 1
    captured = capsys.readouterr()
    assert captured.err.count("not finite at step") == 4
    assert "share" not in captured.out
    assert all((run.path / "error.txt").exists() for run in runs(tmp_path))
