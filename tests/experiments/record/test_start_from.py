"""`run.py --start-from`: a run that begins where another ended, and what is refused before anything is trained."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from forked_python import run_python
from project_paths import CONFIGS, ROOT
from safetensors.torch import load_file

from experiments.config.loading import load
from experiments.packed_runs import execute_in_packs
from experiments.record.run_dir import RunDirectory
from experiments.run import main
from experiments.runner import execute
from experiments.tasks.planted import Planted
from experiments.terminal import Display
from experiments.training.checkpoint import Checkpoints, Holder
from experiments.training.interruption import Interrupted
from experiments.training.trial import TrialRun

PLANTED = CONFIGS / "planted.yaml"
QUICK = ("steps=12", "task.evaluation_rows=64", "wandb.mode=disabled", "checkpoint_every=4")
ADAPTERS = ("lora", "rslora", "lora_plus", "adalora")


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "experiments" / "run.py", "--config", PLANTED, *arguments]
    overrides = [part for override in QUICK for part in ("--set", override)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HOME": str(folder), "COLUMNS": "100"}
    return run_python([*command, *overrides], cwd=folder, env=environment)


def recorded(folder: Path, variant: str, *overrides: str, start: Path | None = None) -> RunDirectory:
    config = load(PLANTED, variant=variant, start_from=start, overrides=(*QUICK, *overrides))
    return RunDirectory(execute(config, runs_dir=folder / "runs", test=False, display=Display()).folder)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of LoRA, rank 4."""
    return recorded(tmp_path_factory.mktemp("earlier"), "lora", "rank=4").path


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunDirectory]:
    """A run of a variant that has learned something; one for all tests."""

    @cache
    def run_of(variant: str) -> RunDirectory:
        rank = ["rank=4"] if variant in ADAPTERS else []
        return recorded(tmp_path_factory.mktemp(variant), variant, "steps=200", *rank)

    return run_of


@pytest.mark.parametrize("variant", [*ADAPTERS, "full", "full_all"])
@pytest.mark.parametrize("source", ["lora", "adalora", "full"])
def test_before_its_first_step_a_run_scores_what_the_run_it_starts_from_scored(
    tmp_path: Path, learned: Callable[[str], RunDirectory], source: str, variant: str
) -> None:
    before = learned(source)
    score = before.result()["score"]
    rank = ["rank=64"] if variant in ADAPTERS and source == "full" else ["rank=8"] if variant in ADAPTERS else []
    for start in (before.path, before.path / "adalora") if source == "adalora" else (before.path,):
        after = recorded(tmp_path, variant, "steps=0", *rank, start=start)
        assert after.result()["score"] == pytest.approx(score, rel=1e-5, abs=1e-7)
    untouched = recorded(tmp_path, variant, "steps=0", *rank)
    assert untouched.result()["score"] > 1.1 * score


def test_the_command_starts_from_a_relative_path_and_its_record_says_from_what(tmp_path: Path, earlier: Path) -> None:
    (tmp_path / "earlier").symlink_to(earlier)
    planned = run(tmp_path, "--rank", "4", "--start-from", "earlier", "--plan")
    assert planned.returncode == 0, planned.stderr
    assert not (tmp_path / "runs").exists()
    done = run(tmp_path, "--rank", "4", "--start-from", "earlier")
    assert done.returncode == 0, done.stderr
    (record,) = (path for path in (tmp_path / "runs" / "single").iterdir() if path.is_dir())
    start_sha256 = json.loads((record / "environment.json").read_text())["start_sha256"]
    assert f"starts from 1 update of {earlier} (sha256 {start_sha256[:12]})" in " ".join(planned.stdout.split())
    config = yaml.safe_load((record / "config.yaml").read_text())
    assert config["start"] == {"path": str(earlier), "alpha": None, "other_base": False}
    assert RunDirectory(record).result()["score"] < RunDirectory(earlier).result()["score"]
    assert "already finished" in run(tmp_path, "--rank", "4", "--start-from", "earlier").stdout
    again = execute(load(record / "config.yaml"), runs_dir=tmp_path / "again", test=False, display=Display())
    assert again.folder.name == record.name
    for path in record.glob("*.safetensors"):
        theirs = load_file(again.folder / path.name)
        assert all(torch.equal(tensor, theirs[key]) for key, tensor in load_file(path).items())


def test_what_a_run_is_depends_on_what_its_start_holds_and_not_on_where_it_lies(tmp_path: Path, earlier: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in earlier.iterdir():
        (moved / path.name).write_bytes(path.read_bytes())
    first, second = (recorded(tmp_path, "lora", "rank=4", start=path) for path in (earlier, moved))
    assert first.path == second.path
    names = {recorded(tmp_path, "lora", "rank=4", start=path).path.name for path in (None, first.path, earlier)}
    assert len(names) == 3


class StopAfter(Checkpoints):
    """Checkpoints that stop the run after its fifth step."""

    def after_step(self, step: int, holders: Mapping[str, Holder], *, seconds: float, now: bool = False) -> None:
        super().after_step(step, holders, seconds=seconds, now=step == 5)
        if step == 5:
            raise Interrupted


@pytest.mark.parametrize("variant", ["lora", "adalora", "full"])
def test_a_resumed_run_goes_on_from_its_checkpoint_and_not_from_its_start(
    tmp_path: Path, earlier: Path, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rank = ["rank=4"] if variant in ADAPTERS else []
    whole = recorded(tmp_path / "whole", variant, *rank, start=earlier)
    with monkeypatch.context() as patched:
        patched.setattr("experiments.training.trial.Checkpoints", StopAfter)
        with pytest.raises(Interrupted):
            recorded(tmp_path / "cut", variant, *rank, start=earlier)
    resumed = recorded(tmp_path / "cut", variant, *rank, start=earlier)
    assert resumed.result()["resumed_from"] == [5]
    assert resumed.history() == whole.history()
    for path in whole.path.glob("*.safetensors"):
        assert path.read_bytes() == (resumed.path / path.name).read_bytes()


def broken(folder: Path, earlier: Path, name: str, content: bytes | None) -> Path:
    """A copy of a run with one file changed or missing; only the adapter in it, where that is of the adapter."""
    folder.mkdir()
    of_adapter = name.startswith("adapter")
    for path in earlier.glob("adapter*" if of_adapter else "*"):
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize("plan", [[], ["--plan"]])
def test_a_faulty_start_is_one_clear_line_and_exit_code_2_and_nothing_is_written(
    tmp_path: Path,
    earlier: Path,
    plan: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Planted, "base_model", lambda *_: pytest.fail("the base model was made for nothing"))
    torn = broken(tmp_path / "torn", earlier, "adapter_model.safetensors", b"torn")
    bare = broken(tmp_path / "bare", earlier, "adapter_config.json", None)
    unfinished = broken(tmp_path / "unfinished", earlier, "result.json", None)
    torch.save({"matrices.0.lora_A": torch.ones(2, 64), "matrices.0.lora_B": torch.ones(64, 2)}, tmp_path / "lora.pt")
    dora = json.dumps(json.loads((earlier / "adapter_config.json").read_text()) | {"use_dora": True}).encode()
    errors: list[tuple[list[str], str]] = [
        (["--start-from", "nowhere"], "nowhere does not exist: check the path"),
        (["--start-from", str(torn)], "a safetensors file must be whole"),
        (["--start-from", str(bare)], "adapter_config.json is missing"),
        (["--start-from", str(unfinished)], "a run is read once it is finished"),
        (["--start-from", "lora.pt"], "give the alpha that it was trained with"),
        (["--start-from", str(broken(tmp_path / "dora", earlier, "adapter_config.json", dora))], "made with DoRA"),
        (["--start-from", str(earlier), "--rank", "2"], 'set rank={"*": 2, "matrices.0": 4}'),
        (["--start-from", str(earlier), "--variant", "head"], "updates of matrices.0, which this run does not adapt"),
        (["--start-from", str(earlier), "--set", "task.matrices=[{d_in: 32}]"], "is 64 x 64, this model's is 64 x 32"),
        (["--set", "start.alpha=2"], "start.path: missing"),
        (["--set", "start={path: x, pth: y}"], "start.pth: unknown key (did you mean 'path'?)"),
    ]
    for arguments, says in errors:
        assert main(["--config", str(PLANTED), *arguments, *plan]) == 2
        printed = capsys.readouterr()
        assert says in printed.err
        note = "head in place of the file's lora: rank=4 dropped\n" if "head" in arguments else ""
        assert (printed.out, printed.err.count("\n")) == (note, 1)
    assert not (tmp_path / "runs").exists()


def test_a_bare_alpha_is_the_variant_s(earlier: Path) -> None:
    config = load(PLANTED, start_from=earlier, overrides=["alpha=3"])
    assert (config.variant.alpha, config.start and config.start.alpha) == (3.0, None)  # type: ignore[attr-defined]
    assert load(PLANTED, start_from=earlier, overrides=["start.alpha=3"]).start.alpha == 3.0  # type: ignore[union-attr]


def test_a_run_that_leaves_its_pack_before_its_first_step_begins_from_its_start_all_the_same(
    tmp_path: Path, earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = [load(PLANTED, variant="lora", rank=4, seed=seed, start_from=earlier, overrides=QUICK) for seed in (0, 1)]
    alone = execute(configs[1], runs_dir=tmp_path / "alone", test=False, display=Display.silent())

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(TrialRun, "conclude", killed)  # after the last checkpoint
        with pytest.raises(KeyboardInterrupt):
            execute(configs[0], runs_dir=tmp_path / "packed", test=False, display=Display.silent())
    packed = execute_in_packs(configs, pack=2, runs_dir=tmp_path / "packed", test=False, display=Display.silent())
    assert packed[1]["score"] == alone.result["score"]
