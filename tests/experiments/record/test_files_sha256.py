"""A finished run says what its files hold, and whoever reads one of them later refuses any other content."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import only_run, tiny_run

from analysis.spectra import main as spectra
from experiments.record.adapter_reading import read_adapter
from experiments.record.errors import RecordError
from experiments.record.run_dir import RunDirectory

WAY_OUT = "restore it from a copy, or move"
ADAPTER = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The runs folder of a finished run of a variant; not to change."""
    folder = tmp_path_factory.mktemp("finished")

    def found(variant: str) -> Path:
        if not (folder / variant).exists():
            assert tiny_run(folder / variant, variant=variant) == 0
        return folder / variant

    return found


@pytest.fixture
def copied(tmp_path: Path, finished: Callable[[str], Path]) -> Callable[[str], RunDirectory]:
    def copy(variant: str) -> RunDirectory:
        shutil.copytree(finished(variant), tmp_path / "runs")
        return only_run(tmp_path / "runs")

    return copy


@pytest.mark.parametrize(
    ("variant", "names"),
    [
        ("lora", {ADAPTER, "adapter_config.json"}),
        ("full", {"delta.safetensors"}),
        ("adalora", {ADAPTER, "adapter_config.json", f"adalora/{ADAPTER}", "adalora/adapter_config.json"}),
    ],
)
def test_result_json_has_the_sha256_of_every_file_with_numbers(
    finished: Callable[[str], Path], variant: str, names: set[str]
) -> None:
    run = only_run(finished(variant))
    stored = json.loads((run.path / "result.json").read_text())["files_sha256"]
    assert stored.keys() == names | {"metrics.jsonl", "predictions.parquet"}
    assert all(len(sha256) == 64 for sha256 in stored.values())
    assert "files_sha256" not in run.result(), "tables, summaries and the terminal show results only"


def remove(path: Path) -> None:
    path.unlink()


def change(path: Path) -> None:
    tensors = load_file(path)
    save_file({name: 2 * tensor for name, tensor in tensors.items()}, path)


def change_alpha(path: Path) -> None:
    path.write_text(path.read_text().replace('"lora_alpha": ', '"lora_alpha": 1'))


def put_there(path: Path) -> None:
    save_file({"matrices.0": load_file(path.with_name(ADAPTER)).popitem()[1].expand(8, 8).contiguous()}, path)


DAMAGE = [
    ("lora", ADAPTER, remove, "is missing"),
    ("lora", ADAPTER, change, "is not what the run wrote"),
    ("lora", "adapter_config.json", remove, "is missing"),
    ("lora", "adapter_config.json", change_alpha, "is not what the run wrote"),
    ("lora", "head.safetensors", lambda path: shutil.copy(path.with_name(ADAPTER), path), "is not of this run"),
    ("full", "delta.safetensors", remove, "is missing"),
    ("full", "delta.safetensors", change, "is not what the run wrote"),
]


@pytest.mark.parametrize(("variant", "name", "damage", "says"), DAMAGE)
def test_nobody_takes_a_changed_update_for_that_of_the_run(
    copied: Callable[[str], RunDirectory],
    variant: str,
    name: str,
    damage: Callable[[Path], None],
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = copied(variant)
    runs_dir, result = run.path.parents[1], (run.path / "result.json").read_text()
    damage(run.path / name)
    capsys.readouterr()
    assert tiny_run(runs_dir, "--test", variant=variant) == 2
    assert tiny_run(runs_dir, "--start-from", str(run.path), variant=variant) == 2
    assert spectra([str(run.path), "--out", str(runs_dir / "figures")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert [f"{run.path / name} {says}" in line and WAY_OUT in line for line in errors] == [True] * 3
    assert (run.path / "result.json").read_text() == result
    assert not (runs_dir / "test_reads.jsonl").exists()


def test_a_head_that_is_lost_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    save_file({"head.weight": torch.ones(2, 3)}, tmp_path / "head.safetensors")
    RunDirectory(tmp_path).finish({})
    assert read_adapter(tmp_path).others.keys() == {"head.weight"}
    (tmp_path / "head.safetensors").unlink()
    with pytest.raises(RecordError, match=r"head.safetensors is missing"):
        read_adapter(tmp_path)


def test_a_layout_in_a_sub_folder_is_checked_where_it_is_read(
    copied: Callable[[str], RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied("adalora")
    start = ["--start-from", str(run.path / "adalora")]
    assert tiny_run(run.path.parents[1], *start, variant="adalora") == 0
    change(run.path / "adalora" / ADAPTER)
    assert tiny_run(run.path.parents[1], *start, variant="adalora") == 2
    assert f"{run.path / 'adalora' / ADAPTER} is not what the run wrote" in capsys.readouterr().err
    assert tiny_run(run.path.parents[1], "--test", variant="adalora") == 0, "that sub-folder is not read for it"


def test_metrics_that_have_changed_are_not_read(copied: Callable[[str], RunDirectory]) -> None:
    run = copied("lora")
    content = (run.path / "metrics.jsonl").read_text()
    assert len(run.scores("loss")) == 3
    (run.path / "metrics.jsonl").write_text(content.replace('"step": 5', '"step": 6'))
    with pytest.raises(RecordError, match=r"metrics.jsonl is not what the run wrote.*restore it from a copy"):
        run.scores("loss")
    (run.path / "metrics.jsonl").unlink()
    with pytest.raises(RecordError, match=r"metrics.jsonl is missing"):
        run.history()


def test_a_later_test_score_changes_no_sha256_but_that_of_the_predictions(
    copied: Callable[[str], RunDirectory],
) -> None:
    run = copied("lora")
    before = json.loads((run.path / "result.json").read_text())
    assert tiny_run(run.path.parents[1], "--test") == 0
    after = json.loads((run.path / "result.json").read_text())
    name = "predictions.parquet"
    assert after["files_sha256"].pop(name) != before["files_sha256"].pop(name)
    assert after == before | {"test": after["test"]}


@pytest.mark.parametrize("content", ["", '{"score": ', "[1]", "\0\0\0"])
@pytest.mark.parametrize("name", ["result.json", "config.yaml"])
def test_a_damaged_file_of_a_finished_run_is_named_with_the_way_out(
    copied: Callable[[str], RunDirectory], name: str, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied("lora")
    (run.path / name).write_text(content)
    capsys.readouterr()
    assert tiny_run(run.path.parents[1]) == 2
    error = capsys.readouterr().err
    assert str(run.path / name) in error
    assert WAY_OUT in error


def test_a_result_that_lacks_a_key_names_the_file_and_the_key(
    copied: Callable[[str], RunDirectory], capsys: pytest.CaptureFixture[str]
) -> None:
    run = copied("lora")
    (run.path / "result.json").write_text('{"files_sha256": {}}')
    with pytest.raises(RecordError, match=r"result.json has no 'score'.*restore it from a copy"):
        run.result()["score"]
    assert tiny_run(run.path.parents[1]) == 2
    assert "result.json has no" in capsys.readouterr().err


def test_an_adapter_beside_a_result_json_of_another_program_is_read(
    tmp_path: Path, finished: Callable[[str], Path]
) -> None:
    for name in (ADAPTER, "adapter_config.json"):
        (tmp_path / "peft").mkdir(exist_ok=True)
        shutil.copy(only_run(finished("lora")).path / name, tmp_path / "peft")
    (tmp_path / "peft" / "result.json").write_text("accuracy: 0.9")
    assert spectra([str(tmp_path / "peft"), "--out", str(tmp_path)]) == 0
