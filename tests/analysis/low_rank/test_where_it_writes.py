"""What cannot be written is seen before anything is scored, and a ledger that was lost on the way is told."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.hypothesis import FILES, main
from analysis.low_rank import truncated_scores
from analysis.low_rank.truncated_scores import FILE
from experiments.record.ledger import LEDGER


@pytest.fixture
def unscored(with_null: Path, tmp_path: Path) -> Path:
    """The study with no truncation scored."""
    shutil.copytree(with_null.parent, tmp_path / "runs")
    return tmp_path / "runs" / with_null.name


def a_file(out: Path) -> str:
    out.write_text("mine")
    return f"{out} is no folder, so nothing can be written to {out}; name another"


def below_a_file(out: Path) -> str:
    out.parent.write_text("mine")
    return f"{out.parent} is no folder, so nothing can be written to {out}; name another"


def a_link_to_nowhere(out: Path) -> str:
    out.parent.mkdir()
    out.symlink_to(out.parent / "nowhere")
    return f"{out} is no folder, so nothing can be written to {out}; name another"


def a_folder_for_a_file(out: Path) -> str:
    (out / "retention.png").mkdir(parents=True)
    return f"{out / 'retention.png'} is a folder where a file is to be written; name another"


@pytest.mark.parametrize("make", [a_file, below_a_file, a_link_to_nowhere, a_folder_for_a_file])
def test_a_place_that_takes_no_files_is_refused_before_anything_is_scored(
    unscored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[Path], str]
) -> None:
    out = tmp_path / "out" if make is a_file else tmp_path / "deep" / "out"
    told = make(out)
    ledger = (unscored.parent / LEDGER).read_bytes()
    assert main([str(unscored), "--out", str(out)]) == 2
    assert capsys.readouterr().err == f"error: {told} folder with --out\n"
    assert not (unscored / FILE).exists()
    assert (unscored.parent / LEDGER).read_bytes() == ledger


def test_a_folder_without_permission_is_refused_in_words_and_nothing_is_left(
    unscored: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(unscored), "--out", "/proc/a/b"]) == 2  # not even root may
    told = capsys.readouterr().err
    assert told.startswith("error: nothing can be written to /proc/a/b (")
    assert told.endswith("); name another folder with --out\n")
    assert not (unscored / FILE).exists()


def test_a_study_that_takes_no_scores_is_refused_before_the_test_split_is_read(
    unscored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(folder: Path, *_: object, way_out: str) -> None:
        raise PermissionError(f"{folder}: {way_out}")

    monkeypatch.setattr(truncated_scores, "refuse_unwritable", refuse)
    ledger = (unscored.parent / LEDGER).read_bytes()
    assert main([str(unscored), "--out", str(tmp_path / "out")]) == 2
    assert f"{unscored}: scores are kept there: copy the study to another folder" in capsys.readouterr().err
    assert (unscored.parent / LEDGER).read_bytes() == ledger


def test_what_is_written_is_what_was_looked_at_and_a_whole_ledger_is_not_spoken_of(
    unscored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(unscored), "--out", str(tmp_path / "new" / "out")]) == 0
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == sorted(FILES)
    task = json.loads((tmp_path / "new" / "out" / "hypothesis.json").read_text())["tasks"][0]
    assert task["test_reads_missing_of"] == []
    assert "reads of the test split" not in capsys.readouterr().out


def test_a_study_that_moved_without_its_ledger_says_that_there_were_more_reads(
    unscored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unscored.rename(moved := tmp_path / "moved")
    assert main([str(moved), "--out", str(tmp_path / "out")]) == 0
    task = json.loads((tmp_path / "out" / "hypothesis.json").read_text())["tasks"][0]
    assert len(set(task["test_reads_missing_of"])) == 18
    printed = capsys.readouterr().out
    told = f"{tmp_path / LEDGER} notes {task['test_reads']} reads of the test split, and none of 18 of the 18 runs"
    assert told in printed
    assert "there were more" in printed


def test_a_damaged_ledger_is_refused_before_anything_is_scored(
    unscored: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (unscored.parent / LEDGER).open("a") as ledger:
        ledger.write("[1]\n{}\n")
    assert main([str(unscored), "--out", str(tmp_path / "out")]) == 2
    assert "no read of a test split" in capsys.readouterr().err
    assert not (unscored / FILE).exists()
