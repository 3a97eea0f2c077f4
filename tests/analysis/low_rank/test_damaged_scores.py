"""Files of the low-rank test that are damaged or not its own: each is one error with the way out, and no verdict."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from planted_hypothesis import finished_study

from analysis.hypothesis import main


@pytest.fixture(scope="module")
def tested(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of three seeds that was tested once."""
    folder = finished_study(
        tmp_path_factory.mktemp("tested"), rank=2, arms=[{"variant": "full"}, {"variant": "lora", "rank": 4}],
        protocol={"evaluation": {"seeds": [0, 1, 2]}},
    )  # fmt: skip
    assert main([str(folder)]) == 0
    return folder


@pytest.fixture
def copy(tested: Path, tmp_path: Path) -> Path:
    shutil.copytree(tested.parent, tmp_path / "runs")
    return tmp_path / "runs" / tested.name


def rows(change: Callable[[pd.DataFrame], pd.DataFrame]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "truncations.parquet"
        change(pd.read_parquet(path)).to_parquet(path)

    return damage


def content(name: str, text: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(text)


def without_arms(folder: Path) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    del summary["hypothesis"]["arms"]
    (folder / "summary.json").write_text(json.dumps(summary))


DELETE = "delete the file: its scores are evaluated again, which reads the test split again"
AGAIN = "the same study.py command writes it again"


@pytest.mark.parametrize(
    ("damage", "told", "way_out"),
    [
        (rows(lambda t: t.rename(columns={"k": "rank"})), "truncations.parquet has no column k", DELETE),
        (rows(lambda t: pd.DataFrame({"a": [1]})), "has no column run, update_sha256", DELETE),
        (rows(lambda t: pd.concat([t, t])), "truncations.parquet has rows more than once", DELETE),
        (rows(lambda t: t.assign(loss=t["loss"].where(t.index != 5))), "has a score that is not finite", DELETE),
        (content("truncations.parquet", b""), "truncations.parquet cannot be read", DELETE),
        (content("truncations.parquet", b"PAR1 junk"), "truncations.parquet cannot be read", DELETE),
        (content("summary.json", b'{"study": "tiny"'), "summary.json cannot be read", AGAIN),
        (without_arms, "its section `hypothesis` names no arms", AGAIN),
        (lambda folder: (folder / "study.parquet").unlink(), "study.parquet cannot be read", AGAIN),
        (content("study.parquet", b"junk"), "study.parquet cannot be read", AGAIN),
    ],
)  # fmt: skip
def test_a_damaged_file_is_an_error_with_its_name_and_the_way_out(
    copy: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], object], told: str, way_out: str
) -> None:
    damage(copy)
    assert main([str(copy), "--out", str(copy.parent / "out")]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert way_out in said


def test_a_score_that_is_lost_is_evaluated_again_and_no_other(copy: Path) -> None:
    before = pd.read_parquet(copy / "truncations.parquet")
    rows(lambda table: table.drop(index=[3, 7]))(copy)
    assert main([str(copy), "--out", str(copy.parent / "out")]) == 0
    after = pd.read_parquet(copy / "truncations.parquet")
    keys = ["run", "kind", "k"]
    pd.testing.assert_frame_equal(
        after.sort_values(keys, ignore_index=True), before.sort_values(keys, ignore_index=True)
    )


def test_a_place_where_nothing_can_be_written_is_refused_before_anything_is_scored(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copy / "truncations.parquet").unlink()
    (copy.parent / "file").write_text("")
    assert main([str(copy), "--out", str(copy.parent / "file")]) == 2
    assert "is a file, not a folder; name another" in capsys.readouterr().err
    assert not (copy / "truncations.parquet").exists()


def test_what_three_seeds_cannot_test_is_said(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(copy), "--out", str(copy.parent / "out")]) == 0
    said = capsys.readouterr().out
    assert "directions that recur in other seeds: ΔW unknown; p of sign flips unknown" in said
    assert "not tested: " in said
    assert "too few seeds to say from which k on surely 0.95" in said
    assert "from k = " not in said
    (matrix,) = json.loads((copy.parent / "out" / "hypothesis.json").read_text())["tasks"][0]["reproducible"]
    assert "no p is below" in matrix["untested"]
