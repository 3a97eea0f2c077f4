"""The example that asks how much another W0 moves a score: bases that differ, seeds of their own, and the shares."""

import runpy
from pathlib import Path

import pytest
from project_paths import ROOT

from experiments.record.run_dir import RunDirectory

TINY = ["steps=2", "evaluate_every=0", "task.pretraining_steps=1", "task.context=8", "wandb.mode=disabled"]


@pytest.mark.slow
def test_each_of_four_bases_is_adapted_with_four_seeds_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.argv", ["another_w0.py", *TINY])
    runpy.run_path(str(ROOT / "examples" / "another_w0.py"), run_name="__main__")
    seeds: dict[str, set[int]] = {}
    for path in (tmp_path / "runs" / "another_w0").glob("lora-*"):
        run = RunDirectory(path)
        seeds.setdefault(run.environment()["base_sha256"], set()).add(run.config_tree()["seed"])
    assert sorted(map(sorted, seeds.values())) == [[4 * base + i for i in range(4)] for base in range(4)]
    assert "share of W0 in the variance: " in capsys.readouterr().out
