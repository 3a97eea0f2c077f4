"""Reading text: every row is used, or named with its file, its line and the reason."""

import gzip
import json
from pathlib import Path

import pytest

from experiments.data.examples import Columns, Labelled, read_examples
from experiments.data.reading import DataError, errors_together
from experiments.data.rows import Table
from experiments.data.sources import Location, read_splits
from experiments.data.tables import Form, read_table

TWO = Columns(("text",), "label", ("no", "yes"))


def rows(table: Table) -> list[dict[str, object]]:
    return [row.values for row in table.rows]


def refused(path: Path, form: Form | None = None) -> str:
    with pytest.raises(DataError) as error:
        read_table(path, form or Form())
    return str(error.value)


def examples(folder: Path, columns: Columns = TWO, *, skip: bool = False, **splits: object) -> Labelled:
    where = Location(str(folder), **splits)  # type: ignore[arg-type]
    shares = {split: at for split, at in splits.items() if isinstance(at, float)}
    tables = read_splits(where, Form(), subset=None, revision=None)
    return read_examples(tables, columns, shares, seed=0, limit=None, skip_malformed=skip)


def write_splits(folder: Path, train: str, validation: str = "a,yes\nb,no\n", test: str = "b,no\nc,yes\n") -> Path:
    for name, text in {"train": train, "dev": validation, "test": test}.items():
        (folder / f"{name}.csv").write_text("text,label\n" + text)
    return folder


def test_every_form_of_table_gives_the_same_rows_gzipped_or_not(tmp_path: Path) -> None:
    import pandas as pd

    wanted = [{"text": "a b", "label": "yes"}, {"text": "c, \u00e9", "label": "no"}]
    (tmp_path / "t.csv").write_text('text,label\na b,yes\n"c, \u00e9",no\n')
    (tmp_path / "t.tsv").write_bytes("\ufefftext\tlabel\r\na b\tyes\r\nc, \u00e9\tno\r\n".encode())
    (tmp_path / "t.jsonl").write_text("\n".join(json.dumps(row) for row in wanted))
    pd.DataFrame(wanted).to_parquet(tmp_path / "t.parquet")
    for name in ("t.csv", "t.tsv", "t.jsonl", "t.parquet"):
        packed = tmp_path / f"{name}.gz"
        packed.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
        assert rows(read_table(tmp_path / name, Form())) == wanted
        assert rows(read_table(packed, Form())) == wanted
        packed.rename(tmp_path / name)
        assert rows(read_table(tmp_path / name, Form())) == wanted, "as a server sends a file that it compresses"


def test_a_file_without_a_header_names_its_columns_by_number(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('x\t1\t\tsays "hi\n')
    (row,) = read_table(tmp_path / "t.tsv", Form(header=False)).rows
    assert row.values == {"0": "x", "1": "1", "2": "", "3": 'says "hi'}


def test_trec_lines_have_a_fine_and_a_coarse_label(tmp_path: Path) -> None:
    (tmp_path / "t.label").write_bytes("NUM:dist How far is caf\u00e9 ?\nnonsense\n".encode("latin-1"))
    table = read_table(tmp_path / "t.label", Form(encoding="latin-1"))
    assert rows(table) == [{"text": "How far is caf\u00e9 ?", "fine_label": "NUM:dist", "coarse_label": "NUM"}]
    assert str(table.malformed[0]).endswith("t.label line 2: not 'LABEL:fine question': 'nonsense'")


def test_files_that_hold_no_table_are_refused_by_name_and_reason(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("  \n")
    assert "empty.csv is empty" in refused(tmp_path / "empty.csv")
    (tmp_path / "mark.csv").write_text("\ufeff\r\n")
    assert "mark.csv is empty" in refused(tmp_path / "mark.csv")
    (tmp_path / "binary.csv").write_bytes(b"a,b\n\x00\x01")
    assert "binary.csv is not text" in refused(tmp_path / "binary.csv")
    (tmp_path / "latin.csv").write_bytes("a,b\ncaf\u00e9,1\n".encode("latin-1"))
    assert "latin.csv line 2: not utf-8 text" in refused(tmp_path / "latin.csv")
    whole = gzip.compress(b"text,label\n" + b"a,yes\n" * 999)
    (tmp_path / "torn.csv.gz").write_bytes(whole[: len(whole) // 2])
    assert "torn.csv.gz is not a whole gzip file" in refused(tmp_path / "torn.csv.gz")
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and no more")
    assert "torn.parquet is no whole parquet file" in refused(tmp_path / "torn.parquet")
    (tmp_path / "what.xyz").write_text("a")
    assert "say task.format=csv" in refused(tmp_path / "what.xyz")
    assert "cannot be read: No such file" in refused(tmp_path / "nowhere.csv")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("t.csv", "text,label\na,yes\nb,yes,more\n", "line 3: has 3 fields, the header has 2"),
        ("t.csv", 'text,label\n"a\nb",yes\n"c"d,yes\n', "line 4: ',' expected after '\"'"),
        ("t.jsonl", '{"text": "a"}\n{"text": \n', "line 2: not JSON: Expecting value at column 10"),
        ("t.jsonl", '{"text": "a"}\n\n[1]\n', "line 3: a list, not an object of columns"),
        ("t.jsonl", '{"text": "a"}\n{"text": "\\ud800"}\n', "line 2: has half of a character, a lone surrogate"),
        ("t.jsonl", '{"text": "a"}\n' + "[" * 100_000, "line 2: nested too deep"),
        ("t.jsonl", '{"text": "a"}\n' + "9" * 5000, "line 2: Exceeds the limit (4300 digits) for integer string "
         "conversion: value has 5000 digits"),
        ("t.jsonl", '{"text": "a"}\n{"text": "b", "text": "c"}', "line 2: has text more than once"),
    ],
)  # fmt: skip
def test_a_malformed_row_is_named_by_file_line_and_reason(tmp_path: Path, name: str, text: str, reason: str) -> None:
    (tmp_path / name).write_text(text)
    table = read_table(tmp_path / name, Form())
    assert [str(row) for row in table.malformed] == [f"{tmp_path / name} {reason}"]
    assert len(table.rows) == 1


def test_malformed_rows_of_all_splits_stop_the_run_before_it_begins_or_are_skipped_and_counted(tmp_path: Path) -> None:
    train = "a,yes\nb,maybe\nc,\n,no\nd,no\n"
    folder = write_splits(tmp_path, train, test="e,no\ng,yes\nf,perhaps\n")
    with pytest.raises(DataError) as error:
        examples(folder)
    text = str(error.value)
    assert text.startswith("4 of 10 rows are malformed")
    assert "task.skip_malformed=true" in text
    for message in ("train.csv line 3: unknown label 'maybe'", "line 4: 'label' is empty", "line 5: 'text' is empty"):
        assert message in text
    assert "test.csv line 4: unknown label 'perhaps'" in text
    found = examples(folder, skip=True)
    assert [found.splits[split].malformed for split in ("train", "validation", "test")] == [3, 0, 1]
    assert found.splits["train"].texts == [("a",), ("d",)]


def errors_of(folder: Path, columns: Columns = TWO, **splits: object) -> tuple[str, ...]:
    with pytest.raises(DataError) as error, errors_together():
        examples(folder, columns, **splits)
    return error.value.errors


def test_what_is_wrong_with_each_split_is_said_together(tmp_path: Path) -> None:
    folder = write_splits(tmp_path, "a,yes\n", "a,yes\nb,maybe\n")
    (folder / "test.csv").write_text("sentence,label\na,yes\n")
    test, train, validation = errors_of(folder)
    assert "test.csv has no column 'text' (task.text); it has: sentence, label" in test
    assert "the train split has one usable row" in train
    assert "1 of 3 rows is malformed" in validation
    assert "dev.csv line 3: unknown label 'maybe'" in validation


@pytest.mark.parametrize("labels", [("no", "yes"), None])
def test_a_split_that_cannot_be_read_keeps_nothing_of_the_others_back(
    tmp_path: Path, labels: tuple[str, ...] | None
) -> None:
    folder = write_splits(tmp_path, "", "a,yes\n,no\n", "c,no\n")
    (folder / "train.csv").write_bytes(b"\0")
    errors = errors_of(folder, Columns(("text",), "label", labels))
    assert "train.csv is not text" in errors[0]
    assert "the test split has one usable row" in errors[1]
    assert "line 3: 'text' is empty" in errors[-1]
    assert "unknown label" not in "".join(errors)  # without the training rows, labels that are not given are unknown


def test_splits_that_are_not_there_are_named_together_and_the_others_read(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text\na\n")
    validation, test, train = errors_of(tmp_path)
    assert "no file is the validation split" in validation
    assert "no file is the test split" in test
    assert "train.csv has no column 'label' (task.label)" in train
    assert len(errors_of(tmp_path / "train.csv")) == 3  # two shares that are not given, and the column


def test_of_every_file_some_malformed_rows_are_shown(tmp_path: Path) -> None:
    wrong = "a,1\n" * 9
    (error,) = errors_of(write_splits(tmp_path, wrong, wrong, wrong))
    assert error.startswith("27 of 27 rows are malformed")
    assert [error.count(f"{name}.csv line") for name in ("train", "dev", "test")] == [2, 2, 1]
    assert error.endswith("and 22 more")


@pytest.mark.parametrize("path", ["data.csv", "data/train.jsonl", "my data", "a/b/c", "./a", "~/a"])
def test_what_can_be_no_name_on_the_hub_is_a_file_that_is_not_there(path: str) -> None:
    with pytest.raises(DataError, match="there is no file or folder"):
        Location(path).sources()


def test_a_missing_column_says_which_there_are(tmp_path: Path) -> None:
    folder = write_splits(tmp_path, "a,yes\n")
    with pytest.raises(
        DataError, match=r"train\.csv, dev\.csv, test\.csv have no column 'sentence' \(task\.text\); they have"
    ):
        examples(folder, Columns(("sentence",), "label", ("no", "yes")))
    (folder / "train.csv").write_text("text, label\na,yes\n")
    with pytest.raises(
        DataError, match=r"has no column 'label' \(task\.label; did you mean ' label'\?\); it has: text, ' label'"
    ):
        examples(folder)


def test_a_header_that_has_a_name_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,label,text\na,yes,b\n")
    assert "t.csv line 1: the header has text more than once" in refused(tmp_path / "t.csv")


def test_a_value_that_is_no_text_is_malformed_and_a_number_is_text(tmp_path: Path) -> None:
    rows = [{"text": text, "label": "yes"} for text in (["a", "b"], {"a": 1}, "a", 5)]
    for name in ("train", "dev", "test"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(DataError, match=r"line 1: 'text' is a list, not a text or a number"):
        examples(tmp_path)
    found = examples(tmp_path, skip=True).splits["train"]
    assert (found.texts, found.malformed) == ([("a",), ("5",)], 2)


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_of_one_row_is_refused(tmp_path: Path, split: str) -> None:
    two = "a,yes\nb,no\n"
    folder = write_splits(tmp_path, **({"train": two, "validation": two, "test": two} | {split: "a,yes\n"}))
    with pytest.raises(DataError, match=f"the {split} split has one usable row; training and scores need two"):
        examples(folder)


def test_labels_that_are_not_given_are_those_of_the_training_rows(tmp_path: Path) -> None:
    folder = write_splits(tmp_path, "a,yes\nb,no\nc,yes\n")
    found = examples(folder, Columns(("text",), "label"))
    assert found.labels == ("no", "yes")
    assert found.targets("train").tolist() == [1, 0, 1]
    with pytest.raises(DataError, match=r"is task\.label the right column"):
        examples(write_splits(tmp_path, "a,p\nb,q\nc,r\n", "a,p\nb,q\n", "a,p\nb,q\n"), Columns(("text",), "label"))


def test_numbers_to_predict_must_be_finite_numbers(tmp_path: Path) -> None:
    folder = write_splits(tmp_path, "a,1.5\nb,nan\nc,high\nd,-2\n", "a,1\nb,2\n", "b,2\nc,3\n")
    found = examples(folder, Columns(("text",), "label", regression=True), skip=True)
    assert found.splits["train"].malformed == 2
    assert found.targets("train").tolist() == [1.5, -2.0]


def test_a_folder_without_the_splits_says_what_is_there_and_what_to_say(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("text,label\na,yes\nb,no\n")
    with pytest.raises(DataError, match=r"no file is the validation split; there is: train.*task.validation=0.1"):
        Location(str(tmp_path)).sources()
    with pytest.raises(DataError, match="no file matches 'eval'"):
        Location(str(tmp_path), validation="eval").sources()
    with pytest.raises(DataError, match="no file or folder"):
        Location(str(tmp_path / "nowhere")).sources()
    with pytest.raises(DataError, match="is both the train and the test split"):
        Location(str(tmp_path), validation=0.5, test="train").sources()
    with pytest.raises(DataError, match="one file: say which share"):
        Location(str(tmp_path / "train.csv")).sources()
    (tmp_path / "train.tsv").write_text("text\tlabel\n")
    with pytest.raises(DataError, match="could all be the train split"):
        Location(str(tmp_path), validation=0.1, test=0.1).sources()


def test_shares_of_the_training_rows_are_disjoint_and_follow_the_split_seed_not_the_limit(tmp_path: Path) -> None:
    (tmp_path / "all.csv").write_text("text,label\n" + "".join(f"t{i},{'yes' if i % 2 else 'no'}\n" for i in range(50)))
    where = Location(str(tmp_path / "all.csv"), validation=0.2, test=0.1)
    tables = read_splits(where, Form(), subset=None, revision=None)
    shares = {"validation": 0.2, "test": 0.1}
    found, limited, other = (
        read_examples(tables, TWO, shares, seed=seed, limit=limit, skip_malformed=False).splits
        for seed, limit in ((0, None), (0, 5), (1, None))
    )
    texts = {split: set(part.texts) for split, part in found.items()}
    assert [len(texts[split]) for split in ("train", "validation", "test")] == [35, 10, 5]
    assert len(texts["train"] | texts["validation"] | texts["test"]) == 50
    assert len(limited["train"].texts) == 5
    assert set(limited["train"].texts) < texts["train"]
    assert limited["validation"].texts == found["validation"].texts != other["validation"].texts
    with pytest.raises(DataError, match="validation has none of 50 rows"):
        read_examples(tables, TWO, {"validation": 0.001}, seed=0, limit=None, skip_malformed=False)


def test_a_data_set_of_the_hub_needs_datasets_and_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"needs datasets: pip install 'lora-rank-studies\[hub\]'"):
        read_splits(Location("nyu-mll/glue"), Form(), subset="cola", revision=None)


def test_a_data_set_read_with_datasets_names_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra 'hub' is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    from experiments.data.hub import hub_split_names, read_hub_split

    features = datasets.Features(text=datasets.Value("string"), label=datasets.ClassLabel(names=["no", "yes"]))
    made = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    folder = tmp_path / "data"
    folder.mkdir()
    made.to_parquet(folder / "train.parquet")
    assert hub_split_names(str(folder), None, None) == ("train",)
    for known, labels in (({"no", "yes"}, ["yes", "no"]), ({"0", "1"}, [1, 0])):
        assert [row.values["label"] for row in read_hub_split(str(folder), None, None, "train", known).rows] == labels
