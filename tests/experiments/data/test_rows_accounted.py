"""Which files are read and what of them: no file is joined by chance, and every line is a row or has a reason."""

import gzip
import json
import re
from pathlib import Path

import pytest

from experiments.data.examples import Columns, Labelled, read_examples
from experiments.data.reading import DataError
from experiments.data.sources import Location, read_splits, whole
from experiments.data.tables import Form, read_table

COLUMNS = Columns(("text",), "label")
ROWS = "".join(f"text {i},{i % 2}\n" for i in range(10))


def labelled(folder: Path, form: Form | None = None, *, skip: bool = False, limit: int | None = None) -> Labelled:
    where = Location(str(folder), validation=0.2, test=None if list(folder.glob("test*")) else 0.2)
    shares = {split: at for split in ("validation", "test") if isinstance(at := getattr(where, split), float)}
    tables = read_splits(where, form or Form(), subset=None, revision=None)
    return read_examples(tables, COLUMNS, shares, seed=0, limit=limit, skip_malformed=skip)


def write(folder: Path, **files: str) -> Path:
    for name, rows in files.items():
        (folder / f"{name}.csv").write_text("text,label\n" + rows)
    return folder


def refused(path: Path, text: str | bytes, form: Form | None = None) -> str:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as error:
        read_table(path, form or Form())
    return str(error.value)


def test_a_file_of_a_split_s_own_name_is_read_alone(tmp_path: Path) -> None:
    write(tmp_path, train=ROWS, test=ROWS, test_results=ROWS * 3, train_more=ROWS)
    splits = labelled(tmp_path).splits
    assert (len(splits["test"].labels), len(splits["train"].labels)) == (10, 8)


def test_numbered_shards_are_read_one_after_another_and_no_other_file(tmp_path: Path) -> None:
    write(tmp_path, **{f"train-0000{i}-of-00003": f"shard {i},{i % 2}\n" * 9 for i in range(3)}, train_old=ROWS)
    train = labelled(tmp_path).splits["train"]
    assert [Path(source.place).name for source in train.read] == [f"train-0000{i}-of-00003.csv" for i in range(3)]
    assert {text for (text,) in train.texts} == {"shard 0", "shard 1", "shard 2"}


def test_shards_are_read_in_the_order_of_their_numbers_also_where_these_have_no_zeros_in_front(tmp_path: Path) -> None:
    write(tmp_path, **{f"train-{i}-of-11": f"shard {i},{i % 2}\n" * 9 for i in range(11)})
    train = labelled(tmp_path).splits["train"]
    assert [Path(source.place).name for source in train.read] == [f"train-{i}-of-11.csv" for i in range(11)]


def test_a_file_and_its_gzipped_copy_are_not_read_both(tmp_path: Path) -> None:
    write(tmp_path, train=ROWS, test=ROWS)
    (tmp_path / "train.csv.gz").write_bytes(gzip.compress((tmp_path / "train.csv").read_bytes()))
    with pytest.raises(DataError, match=r"train\.csv, train\.csv\.gz could all be the train split; .*task.train=NAME"):
        labelled(tmp_path)
    for name in ("train.csv", "train.csv.gz"):
        files = Location(str(tmp_path), train=name, validation=0.2).sources()["train"].files
        assert [file.name for file in files] == [name]


def test_a_file_that_is_a_link_is_read_by_the_name_of_the_link(tmp_path: Path) -> None:
    (tmp_path / "0123abcd").write_bytes(gzip.compress(f"text,label\n{ROWS}".encode()))
    (tmp_path / "rows.csv.gz").symlink_to(tmp_path / "0123abcd")
    (table,) = read_splits(
        Location(whole(str(tmp_path / "rows.csv.gz")), validation=0.2, test=0.2), Form(), subset=None, revision=None
    )["train"]
    assert len(table.rows) == 10


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["train_a", "train_b"], "train_a.csv, train_b.csv could all be the train split; name one: task.train=NAME"),
        (["train-00000-of-00003", "train-00002-of-00003"], "of train there are the shards 0, 2 of 3; fetch the others"),
        (
            ["train-00000-of-00001", "train-00001-of-00002"],
            "the shards 0, 1 of 1 and of 2; .* the files of another set",
        ),
    ],
)
def test_files_that_may_or_may_not_be_one_split_are_refused(tmp_path: Path, names: list[str], told: str) -> None:
    write(tmp_path, **dict.fromkeys(names, ROWS))
    with pytest.raises(DataError, match=told):
        labelled(tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('text,label\n"a,1\n' + ROWS, r"lines 2-12: a quoted field that begins in line 2 is never closed"),
        ('text,label\n"a" b\nc",1\n', r"line 2: .* line 3|line 3: a quote is missing or one too many"),
        ('text,label\na\nb,1\nc",0\n', "line 4: a quote is missing or one too many"),
        ('text,label\n"a\nb",1,2\n', "lines 2-3: one row over 2 lines has 3 fields, the header has 2; mend it"),
        ('text,label\n"a\nb"c,1\n', "lines 2-3: a quote is missing or one too many"),
    ],
)
def test_where_rows_end_is_never_guessed_even_if_malformed_rows_are_skipped(
    tmp_path: Path, text: str, told: str
) -> None:
    assert re.search(told, refused(tmp_path / "t.csv", text))


def test_a_long_cell_is_one_cell(tmp_path: Path) -> None:
    long = "word, \n" * 30_000
    (tmp_path / "t.csv").write_text(f'text,label\n"{long}",1\nshort,0\n')
    table = read_table(tmp_path / "t.csv", Form())
    assert [row.values["text"] for row in table.rows] == [long, "short"]
    assert not table.malformed
    assert table.lines == 30_003


def test_a_cell_whose_lines_look_like_rows_is_told(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('text,label\n"a\nb,1\nc,0\nd",1\n"one\ntwo",0\n')
    (warning,) = read_table(tmp_path / "t.csv", Form()).warnings
    assert "t.csv lines 2-5 are one row; each inner line has 2 fields, like a row: is a quote missing?" in warning


def test_a_quote_in_the_middle_of_a_field_is_text(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('text,label\na 13" screen,1\nhe said "hi",0\n')
    texts = [row.values["text"] for row in read_table(tmp_path / "t.csv", Form()).rows]
    assert texts == ['a 13" screen', 'he said "hi"']


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig", "cp1252"])
def test_a_file_is_read_in_its_encoding_with_and_without_a_mark(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "t.csv").write_bytes("text,label\n\u201ca\u201d \u00e9,1\n".encode(encoding))
    (row,) = read_table(tmp_path / "t.csv", Form(encoding=encoding)).rows
    assert row.values == {"text": "\u201ca\u201d \u00e9", "label": "1"}


@pytest.mark.parametrize(
    ("written", "asked", "way_out"),
    [
        ("cp1252", "utf-8", "task.encoding=cp1252"),
        ("latin-1", "utf-8", "task.encoding=latin-1"),
        ("utf-16", "utf-8", "task.encoding=utf-16"),
        ("utf-16-le", "utf-8", "task.encoding=utf-16"),
        ("utf-16-be", "utf-8", "task.encoding=utf-16-be"),
        ("utf-8", "utf-16", "task.encoding=utf-8"),
        ("utf-8-sig", "latin-1", "say task.encoding=utf-8"),
        ("utf-8", "undefined", "Python knows no encoding 'undefined'; try utf-8 or latin-1"),
    ],
)
def test_the_way_out_of_a_wrong_encoding_is_the_right_one(
    tmp_path: Path, written: str, asked: str, way_out: str
) -> None:
    text = "text,label\n" + ("caf\u00e9 \u201cbar\u201d" if "latin" not in written else "caf\u00e9") + ",1\n"
    assert refused(tmp_path / "t.csv", text.encode(written), Form(encoding=asked)).endswith(way_out)


def test_line_ends_of_every_system_are_the_same_rows(tmp_path: Path) -> None:
    for name in ("t.csv", "t.tsv", "t.jsonl"):
        mark = "," if name == "t.csv" else "\t"
        lines = [f"text{mark}label", f"a{mark}1", f"b{mark}0"]
        lines = ['{"text": "a", "label": "1"}', '{"text": "b", "label": "0"}'] if "json" in name else lines
        for end in ("\n", "\r\n", "\r"):
            (tmp_path / name).write_bytes(end.join([*lines, ""]).encode())
            rows = [row.values for row in read_table(tmp_path / name, Form()).rows]
            assert rows == [{"text": "a", "label": "1"}, {"text": "b", "label": "0"}]


def test_an_array_of_objects_is_rows(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": 0}]
    for indent in (None, 2):
        (tmp_path / "t.json").write_text(json.dumps(rows, indent=indent))
        assert [row.values for row in read_table(tmp_path / "t.json", Form()).rows] == rows
    (tmp_path / "t.json").write_text(json.dumps([*rows, 7]))
    (malformed,) = read_table(tmp_path / "t.json", Form()).malformed
    assert str(malformed) == f"{tmp_path / 't.json'} item 3: a int, not an object of columns"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("train.csv", "text;label\na;1\nb;0\n", "it has: text;label; are its fields separated by ';'?"),
        ("train.csv", "text\tlabel\na\t1\n", r"separated by '\t'? Then say task.format=tsv"),
        ("train.tsv", "text,label\na,1\n", "separated by ','? Then say task.format=csv"),
        (
            "train.csv",
            "text;label\na, b;1\nc, d;0\n",
            "has no columns 'text' (task.text), 'label' (task.label); it has: text;label",
        ),
        ("train.json", '{"data": [\n{"text": "a"}\n]}', "is one JSON object (data); write its rows as an array"),
        ("train.jsonl", "a\nb\nc\n", "the train split has no usable row; 3 are malformed:\n"),
        ("train.csv", "text,label\na\nb\n", "line 2: has 1 field, the header has 2"),
    ],
)
def test_where_no_row_is_usable_the_reason_is_said(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as error:
        labelled(tmp_path, skip=True)
    assert told in str(error.value)
    assert "label none" not in str(error.value)


def test_malformed_training_rows_are_left_out_and_counted_while_enough_others_are_there(tmp_path: Path) -> None:
    write(tmp_path, train=ROWS + "no label\n", test=ROWS)
    train = labelled(tmp_path, limit=8).splits["train"]
    assert (len(train.labels), train.malformed) == (8, 1)
    for limit in (9, None):
        with pytest.raises(DataError, match=r"1 of \d+ rows is malformed"):
            labelled(tmp_path, limit=limit)
    write(tmp_path, test=ROWS + "no label\n")
    with pytest.raises(DataError, match=r"test\.csv line 12: has 1 field"):
        labelled(tmp_path, limit=8)


def test_the_lines_of_a_file_add_up(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text('text,label\n\n"a\nb",1\nc,0\n\nno label\n,1\n' + ROWS)
    (read,) = labelled(tmp_path, skip=True).splits["train"].read
    assert read.lines == {"all": 18, "header": 1, "of rows": 13, "malformed": 2, "empty": 2}
    assert (read.rows, read.left_out) == (12, 2)
    assert str(read) == "train.csv (18 lines: 1 header, 13 in 12 rows, 2 malformed, 2 empty)"


def test_files_that_were_joined_with_their_byte_order_marks_hold_the_same_rows_as_without(tmp_path: Path) -> None:
    part = f"\ufefftext,label\n{ROWS}"
    (tmp_path / "train.csv").write_text(part + part.replace("text ", "\ufeffmore "))
    with pytest.raises(DataError, match=r"1 of 21 rows .*\n.*train\.csv line 12: repeats the header"):
        labelled(tmp_path)
    (tmp_path / "train.csv").write_text(part)
    assert all(text in ROWS for (text,) in labelled(tmp_path).splits["train"].texts)


def test_columns_without_a_name_that_spreadsheets_leave_keep_nothing_from_being_read(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text(f"text,label\n{ROWS}".replace("\n", ",,\n"))
    assert len(labelled(tmp_path).splits["train"].labels) == 6


def test_a_file_of_a_header_alone_has_no_row(tmp_path: Path) -> None:
    write(tmp_path, train="", test=ROWS)
    with pytest.raises(DataError, match="the train split has no row"):
        labelled(tmp_path)
