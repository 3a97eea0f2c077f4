"""Files of a study that are damaged or another's are one clear error: which file, what is wrong, and the way out."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pandas as pd
import pytest

from analysis.hypothesis import main
from analysis.low_rank import truncated_scores
from analysis.low_rank.family import assess_family
from analysis.low_rank.study_runs import HypothesisError, read_study
from analysis.low_rank.truncated_scores import FILE, TruncatedScores, updates_of
from experiments.record.errors import RecordError
from experiments.record.ledger import LEDGER
from experiments.terminal import Display

DELETE = "; delete it: the scores are evaluated again, and those reads of the test split are counted as well"
AGAIN = "; the study's own study.py command writes it again"


@pytest.fixture(scope="module")
def scored(with_null: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study with all its truncations scored."""
    runs = tmp_path_factory.mktemp("scored") / "runs"
    shutil.copytree(with_null.parent, runs)
    assess_family([runs / with_null.name], Display.silent())
    return runs / with_null.name


@pytest.fixture
def copy(scored: Path, tmp_path: Path) -> Path:
    """Files of its own, and the same run directories."""
    (copied := tmp_path / "runs" / scored.name).mkdir(parents=True)
    shutil.copy(scored.parent / LEDGER, copied.parent)
    for path in scored.iterdir():
        if path.is_dir():
            (copied / path.name).symlink_to(path)
        else:
            shutil.copy(path, copied)
    return copied


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(folder), "--out", str(folder.parent / "out")]) == 2
    assert not (folder.parent / "out").exists()
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    return told.removeprefix("error: ").strip()


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


BYTES: dict[str, tuple[Callable[[Path], object], str]] = {
    "junk": (lambda path: path.write_bytes(b"junk\n"), "is no whole parquet file"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "is no whole parquet file"),
    "no text": (lambda path: path.write_bytes(bytes(range(256)) * 9), "is no whole parquet file"),
    "folder": (as_folder, "cannot be read: Is a directory"),
}


@pytest.mark.parametrize("how", BYTES)
@pytest.mark.parametrize(("name", "way_out"), [(FILE, DELETE), ("study.parquet", AGAIN)])
def test_a_file_that_is_no_table_is_told(
    copy: Path, capsys: pytest.CaptureFixture[str], how: str, name: str, way_out: str
) -> None:
    damage, what = BYTES[how]
    damage(copy / name)
    told = refused(copy, capsys)
    assert told.startswith(f"{copy / name} {what}")
    assert told.endswith(way_out)


def one(column: str, value: object) -> Callable[[pd.DataFrame], pd.DataFrame]:
    """The row of the top 4 of seed 2 with another value."""

    def changed(table: pd.DataFrame) -> pd.DataFrame:
        there = (table["kind"] == "top") & (table["k"] == 4) & (table["seed"] == 2)
        return table.assign(**{column: [value if hit else old for hit, old in zip(there, table[column], strict=True)]})

    return changed


ROWS: dict[str, tuple[Callable[[pd.DataFrame], pd.DataFrame], str]] = {
    "another table": (
        lambda table: pd.DataFrame({"a": [1]}),
        "has no column run, update_sha256, base_sha256",
    ),
    "no energy": (lambda table: table.drop(columns="energy"), "has no column energy; it has: run, update_sha256"),
    "no score": (lambda table: table.drop(columns="squared_error"), "has no column squared_error; it has: run"),
    "no k": (lambda table: table.drop(columns="k"), "has no column k; it has: run, update_sha256"),
    "twice": (
        lambda table: pd.concat([table, table]),
        "is damaged, {n} of {2n} rows are there twice, first run {base}",
    ),
    "one twice": (lambda table: pd.concat([table, table[:1]]), "is damaged, 1 of {n+1} rows are there twice"),
    "nan": (one("squared_error", np.nan), "is damaged, squared_error is nan in the row of run {run}, kind top, k 4"),
    "inf": (one("squared_error", np.inf), "is damaged, squared_error is inf in the row of run {run}, kind top, k 4"),
    "energy": (one("energy", np.nan), "is damaged, energy is nan in the row of run {run}, kind top, k 4"),
    "kind": (one("kind", None), "is damaged, kind is "),
    "k": (one("k", 4.5), "is damaged, k is 4.5 in the row of run {run}, kind top, k 4.5"),
    "word": (lambda table: table.assign(squared_error="good"), "is damaged, squared_error is 'good' in the row of run"),
}


@pytest.mark.parametrize("how", ROWS)
def test_rows_that_nobody_wrote_are_told_by_run_kind_and_k(
    copy: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    change, what = ROWS[how]
    table = pd.read_parquet(copy / FILE)
    change(table).to_parquet(copy / FILE)
    told, n = refused(copy, capsys), len(table)
    of_seed = next(iter(table.loc[(table["kind"] == "top") & (table["seed"] == 2), "run"]))
    known = {"{run}": of_seed, "{base}": table["run"][0], "{n}": str(n), "{2n}": str(2 * n), "{n+1}": str(n + 1)}
    for mark, value in known.items():
        what = what.replace(mark, value)
    assert told.startswith(f"{copy / FILE} {what}")
    assert told.endswith(DELETE)


def test_bytes_that_flip_in_either_table_are_never_a_traceback(scored: Path, tmp_path: Path) -> None:
    flip, told = np.random.default_rng(0), 0
    study = read_study(scored)
    for name in (FILE, "study.parquet"):
        whole = (scored / name).read_bytes()
        for _ in range(100):
            torn = bytearray(whole)
            for at in flip.integers(len(torn), size=3):
                torn[at] ^= int(flip.integers(1, 256))
            (tmp_path / name).write_bytes(torn)
            try:
                if name == FILE:
                    truncated_scores._kept(tmp_path / name, study.score)
                else:
                    (tmp_path / "summary.json").write_bytes((scored / "summary.json").read_bytes())
                    read_study(tmp_path)
            except (RecordError, HypothesisError):
                told += 1
    assert 0 < told < 200


def test_a_score_that_is_not_finite_is_told_where_it_comes_up_and_is_not_kept(
    copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = len(pd.read_parquet(copy / FILE))
    table = pd.read_parquet(copy / FILE)
    table[~((table["kind"] == "shared") & (table["seed"] == 3))].to_parquet(copy / FILE)
    score = truncated_scores.score_updates
    monkeypatch.setattr(
        truncated_scores,
        "score_updates",
        lambda *given, **more: ({**found, "squared_error": float("nan")} for found in score(*given, **more)),
    )
    told = refused(copy, capsys)
    run = next(iter(table.loc[table["seed"] == 3, "run"]))
    assert told.startswith(f"seeds: squared_error is nan on the test split for {run}, kind shared, k 4")
    assert "name another score" in told
    assert len(pd.read_parquet(copy / FILE)) == before - 1


def without(*path: str) -> Callable[[dict[str, Any]], object]:
    def changed(summary: dict[str, Any]) -> object:
        section = summary
        for key in path[:-1]:
            section = section[key]
        del section[path[-1]]
        return summary

    return changed


SUMMARIES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no arms": (without("hypothesis", "arms"), "hypothesis.arms: Field required"),
    "no full arm": (without("hypothesis", "arms", "full"), "hypothesis.arms.full: Field required"),
    "no rho0": (without("hypothesis", "rho0"), "hypothesis.rho0: Field required"),
    "no seeds": (without("evaluation", "seeds"), "evaluation.seeds: Field required"),
    "no tuning": (without("tuning"), "tuning: Field required"),
    "no name": (without("study"), "study: Field required"),
    "not said to be over": (without("complete"), "complete: Field required"),
    "seeds are words": (lambda summary: summary | {"evaluation": {"seeds": ["a"]}}, "evaluation.seeds.0: Input should"),
    "hypothesis is a word": (lambda summary: summary | {"hypothesis": "x"}, "hypothesis: Input should be a valid dict"),
    "a list": (lambda summary: [], "all of it: Input should be a valid dictionary"),
}


@pytest.mark.parametrize("how", SUMMARIES)
def test_a_summary_that_lacks_what_is_read_is_told_by_the_key(
    copy: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    change, what = SUMMARIES[how]
    path = copy / "summary.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    told = refused(copy, capsys)
    assert told.startswith(f"{path} is damaged, {what}")
    assert told.endswith(AGAIN)


@pytest.mark.parametrize("content", ["", "{", '{"study": "seeds", "compl', "[" * 100_000, "\0"])
def test_a_summary_that_is_no_json_is_told(copy: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    (copy / "summary.json").write_text(content)
    told = refused(copy, capsys)
    assert told.startswith(f"{copy / 'summary.json'} is damaged, it is no JSON: ")
    assert told.endswith(AGAIN)


def test_a_study_without_its_table_is_told(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copy / "study.parquet").unlink()
    assert refused(copy, capsys) == f"{copy / 'study.parquet'} cannot be read: No such file or directory{AGAIN}"


@pytest.mark.parametrize("column", ["arm", "stage", "settings", "seed", "state", "folder", "failure"])
def test_a_table_of_a_study_that_lacks_a_column_is_told(
    copy: Path, capsys: pytest.CaptureFixture[str], column: str
) -> None:
    path = copy / "study.parquet"
    pd.read_parquet(path).drop(columns=column).to_parquet(path)
    assert refused(copy, capsys).startswith(f"{path} has no column {column}; it has: ")


def test_scores_of_an_older_file_that_has_more_columns_are_read(copy: Path) -> None:
    pd.read_parquet(copy / FILE).assign(more=1).to_parquet(copy / FILE)
    study = read_study(copy)
    kept = TruncatedScores(study, updates_of(study.full, study, _nothing), _nothing)
    assert len(kept.table) == len(pd.read_parquet(copy / FILE))


def _nothing() -> NoReturn:
    pytest.fail("nothing is to be loaded")
