"""What is doubtful in data that can be read is refused or told: labels that are none or one, rows that come twice."""

import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from project_paths import ROOT

from experiments.data.doubts import MISSING
from experiments.data.reading import DataError
from experiments.tasks.language_modeling import LanguageModeling
from experiments.tasks.language_modeling_config import LanguageModelingConfig
from experiments.tasks.text_classification import TextClassification
from experiments.tasks.text_classification_config import TextClassificationConfig

Rows = Sequence[tuple[object, object]]


def write(folder: Path, *, form: str = "csv", **splits: Rows) -> Path:
    """A file a split with the columns text and label."""
    folder.mkdir(exist_ok=True)
    for split, rows in splits.items():
        if form == "jsonl":
            lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        else:
            lines = ["text,label", *(f"{text},{label}" for text, label in rows)]
        (folder / f"{split}.{form}").write_text("\n".join(lines) + "\n")
    return folder


def rows_of(labels: Sequence[object], of: str = "train") -> Rows:
    return [(f"{of} {i}", label) for i, label in enumerate(labels)]


def with_labels(folder: Path, labels: Sequence[object], form: str = "csv") -> Path:
    """Training rows with these labels, and others with the last."""
    others = {split: rows_of([labels[-1]] * 2, split) for split in ("dev", "test")}
    return write(folder, form=form, train=rows_of(labels), **others)


def task(folder: Path, **knobs: Any) -> TextClassification:
    return TextClassification(TextClassificationConfig(path=str(folder), **knobs))


def warnings(folder: Path, **knobs: Any) -> list[str]:
    return task(folder, **knobs).data_warnings()


def refused(folder: Path, **knobs: Any) -> str:
    with pytest.raises(DataError) as error:
        _ = task(folder, **knobs).data
    return str(error.value)


# Labels


def test_the_words_for_a_missing_value_are_in_the_documentation() -> None:
    section = (ROOT / "docs" / "data.md").read_text().partition("The words, in any case:")[2].partition("NaN")[0]
    assert set(re.findall(r"`([^`]+)`", section)) == MISSING


@pytest.mark.parametrize(
    ("form", "label", "shown"),
    [
        *(
            ("csv", word, word)
            for word in ("nan", "NaN", "None", "N/A", "?", "NULL", "n/a", "<NA>", "#N/A", "-", "\\N")
        ),
        ("csv", "#DIV/0!", "#DIV/0!"),
        ("csv", " none\u200b ", "none\u200b"),
        ("jsonl", float("nan"), "nan"),
        ("jsonl", "None", "None"),
    ],
)
def test_labels_that_stand_for_no_value_are_classes_only_where_the_user_says_so(
    tmp_path: Path, form: str, label: object, shown: str
) -> None:
    folder = with_labels(tmp_path, [label, "yes", "no"] * 2, form)
    told = f"labels that look like missing values: {shown!r} (2, first in train.{form}:{2 if form == 'csv' else 1})"
    for suspicion in ("refuse_missing", "refuse_all"):
        message = refused(folder, suspicious_labels=suspicion)
        assert message.startswith(told)
        assert "list the classes with task.labels, or say task.suspicious_labels=warn" in message
    assert refused(folder).startswith(told)  # by default
    assert warnings(folder, suspicious_labels="warn") == [told]
    listed = task(folder, labels=["yes", "no", shown], suspicious_labels="refuse_all")
    assert (listed.data_warnings(), listed.data.labels) == ([], ("yes", "no", shown))


def test_a_missing_label_is_refused_wherever_in_the_training_file_it_stands(tmp_path: Path) -> None:
    for place in range(12):
        labels = ["yes", "no"] * 6
        labels[place] = "nan"
        folder = write(tmp_path, train=rows_of(labels), test=rows_of(["yes", "no"], "test"))
        assert f"'nan' (1, first in train.csv:{place + 2})" in refused(folder, validation=0.5)


def decomposed(label: str) -> str:
    return unicodedata.normalize("NFD", label)


@pytest.mark.parametrize(
    ("form", "labels"),
    [
        ("csv", ("1", "1.0")), ("csv", ("01", "1")), ("csv", ("1e1", "10")), ("csv", ("YES", "yes")),
        ("csv", ("sci  fi", "sci fi")), ("csv", ("not_true", "not true")), ("csv", ("no.", "no")),
        ("csv", ("'no'", "no")), ("csv", ("no", "no\u200b")), ("csv", ("caf\u00e9", decomposed("caf\u00e9"))),
        ("csv", ("1", "\uff11")), ("csv", ("True", "true")), ("jsonl", (1, 1.0)), ("jsonl", (True, "true")),
        ("jsonl", (False, "False")),
    ],
)  # fmt: skip
def test_labels_that_differ_in_spelling_only_are_told_or_refused(
    tmp_path: Path, form: str, labels: tuple[object, object]
) -> None:
    folder = with_labels(tmp_path, [*labels, "other"] * 2, form)
    for suspicion in ("refuse_missing", "warn"):
        (told,) = warnings(folder, suspicious_labels=suspicion)
        assert told.startswith("labels that differ in spelling only: ")
        assert told.count("(2, first in train.") == 2
    assert "labels that differ in spelling only: " in refused(folder, suspicious_labels="refuse_all")
    read = [str(int(label)) if isinstance(label, bool) else str(label) for label in (*labels, "other")]
    assert warnings(folder, suspicious_labels="refuse_all", labels=read) == []


@pytest.mark.parametrize(
    "labels",
    [
        (":)", ":("), ("C", "C++"), ("1", "-1"), (".5", "5"), ("1", "10"), ("a.b", "ab"), ("+", "*"),
        ("12345678901", "12345678902"), ("unknown", "other"), ("nano", "nan na"), ("!", "!!"),
    ],
)  # fmt: skip
def test_labels_that_mean_different_things_are_not_suspicious(tmp_path: Path, labels: tuple[str, str]) -> None:
    assert warnings(with_labels(tmp_path, list(labels) * 2), suspicious_labels="refuse_all") == []


def test_classes_of_one_training_row_are_told_or_refused(tmp_path: Path) -> None:
    folder = with_labels(tmp_path, ["rare", *["yes", "no"] * 3])
    told = "classes with under 2 training rows: 'rare' (1, first in train.csv:2)"
    assert warnings(folder) == warnings(folder, suspicious_labels="warn") == [told]
    assert refused(folder, suspicious_labels="refuse_all").startswith(told)
    assert warnings(folder, labels=["yes", "no", "rare", "none there"]) == [f"{told}, 'none there' (0)"]


def test_of_many_suspicious_labels_the_first_are_named_and_all_counted(tmp_path: Path) -> None:
    rare = [f"rare {i}" for i in range(8)]
    (told,) = warnings(with_labels(tmp_path, [*rare, *["yes", "no"] * 20]))
    assert told.endswith("'rare 4' (1, first in train.csv:6) and 3 more")


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        *((label, f"'label' is not a number: {label!r}") for label in ("1_0", "\u0661\u0662", "\uff11", "inf", "nan")),
        *((label, f"'label' is not a number: {label!r}") for label in ("5%", "1 000", "1e", ".", "0x1", "1.2.3")),
        ("True", "'label' is not a number: 'True'"),
        ("1e400", "'label' is 1e400, beyond 3.4e+38"),
        ("-1e39", "'label' is -1e39, beyond 3.4e+38"),
    ],
)  # fmt: skip
def test_a_label_that_no_one_would_write_as_a_number_is_malformed_in_regression(
    tmp_path: Path, label: str, reason: str
) -> None:
    folder = with_labels(tmp_path, ["1", label, "2"])
    assert f"train.csv line 3: {reason}" in refused(folder, regression=True)
    assert task(folder, regression=True, skip_malformed=True).data.targets("train").tolist() == [1, 2]


def test_a_decimal_comma_is_malformed_in_regression(tmp_path: Path) -> None:
    assert "'label' is not a number: '1,5'" in refused(with_labels(tmp_path, [1, "1,5", 2], "jsonl"), regression=True)


def test_a_boolean_is_no_number_in_regression(tmp_path: Path) -> None:
    folder = with_labels(tmp_path, [1, True, 2], "jsonl")
    assert "train.jsonl line 2: 'label' is True, not a number; write 1 or 0" in refused(folder, regression=True)


def test_numbers_are_read_as_they_are_usually_written(tmp_path: Path) -> None:
    folder = with_labels(tmp_path, ["1.", ".5", "+2", "-3e-1", " 1E1 ", "0"])
    assert task(folder, regression=True).data.targets("train").tolist() == pytest.approx([1, 0.5, 2, -0.3, 10, 0])


@pytest.mark.parametrize("regression", [False, True])
def test_a_split_whose_rows_all_have_one_label_is_told_unless_that_may_be_chance(
    tmp_path: Path, regression: bool
) -> None:
    train = rows_of([1, 0] * 2)
    folder = write(tmp_path, train=train, dev=rows_of([1] * 19, "dev"), test=rows_of([1] * 20, "test"))
    assert warnings(folder, regression=regression) == ["all 20 rows of test have the label '1'"]


# Texts


def test_a_text_that_is_no_value_is_malformed_and_a_word_for_none_is_told(tmp_path: Path) -> None:
    others = {"dev": rows_of([1, 0], "dev"), "test": rows_of([1, 0], "test")}
    folder = write(tmp_path, form="jsonl", train=[*rows_of([1, 0] * 2), (float("nan"), 1)], **others)
    assert "train.jsonl line 5: 'text' is NaN, not a text" in refused(folder)
    folder = write(tmp_path, form="jsonl", train=[*rows_of([1, 0] * 2), ("NaN", 1), ("none", 0)], **others)
    assert warnings(folder) == ["2 texts of train look like missing values: 'NaN', 'none'"]


@pytest.mark.parametrize("wrong", ["latin-1", "cp1252"])
def test_texts_that_were_read_in_a_wrong_encoding_are_told(tmp_path: Path, wrong: str) -> None:
    texts = ["the small caf\u00e9", "a \u2018word\u2019", "\u65e5\u672c", "plain"]
    shown = repr("the small caf\u00e9"[-10:].encode().decode(wrong))
    rows = [(text, i % 2) for i, text in enumerate(texts * 2)]
    folder = write(tmp_path, train=rows_of([1, 0]), dev=rows, test=rows_of([1, 0], "test"))
    assert not any("encoding" in text for text in warnings(folder))
    told = [text for text in warnings(folder, encoding=wrong) if "encoding" in text]
    assert told == [f"6 of 8 texts of validation look as if read in a wrong encoding: {shown}"]


def test_a_character_that_was_lost_is_told_and_foreign_ones_are_not(tmp_path: Path) -> None:
    right = [
        "\u201eSpa\u00df\u201c",
        "\u00abCAF\u00c9\u00bb",
        "\u00c3 s\u00e3o",
        "\u20ac 5 \u2013 \u00a3 4",
        "\u65e5\u672c",
    ]
    rows = rows_of([1, 0] * 3)
    folder = write(tmp_path, train=[*rows, *((text, 1) for text in right)], dev=rows_of([1, 0], "dev"))
    write(folder, test=[("caf\ufffd", 1), ("a", 0)])
    assert warnings(folder) == ["1 of 2 texts of test look as if read in a wrong encoding: 'caf\ufffd'"]


def test_a_header_that_comes_again_is_malformed(tmp_path: Path) -> None:
    rows = rows_of(["yes", "no"] * 3)
    folder = write(tmp_path, train=[*rows, ("text", "label"), *rows_of(["yes"] * 2, "more")])
    write(folder, dev=rows_of(["yes", "no"], "dev"), test=rows_of(["yes", "no"], "test"))
    assert "train.csv line 8: repeats the header" in refused(folder)
    assert task(folder, skip_malformed=True).data.labels == ("no", "yes")


# Rows that come twice


def splits_with_common_rows(folder: Path, common: int) -> Path:
    """40 training rows, 20 of validation of which some are training rows, 10 of test."""
    train, labels = rows_of(["yes", "no"] * 20), ["yes", "no"] * 10
    return write(folder, train=train, dev=[*train[:common], *rows_of(labels, "dev")][:20], test=rows_of(labels, "test"))


def test_rows_in_two_splits_are_told_from_a_tenth_of_the_smaller_on_and_refused_from_nine_tenths_on(
    tmp_path: Path,
) -> None:
    assert warnings(splits_with_common_rows(tmp_path, 1)) == []
    for common in (2, 17):
        told = f"{common} of 20 rows (text and label) of validation are in train too"
        assert warnings(splits_with_common_rows(tmp_path, common)) == [told]
    for common in (18, 20):
        message = refused(splits_with_common_rows(tmp_path, common))
        told = f"{common} of 20 rows (text and label) of validation are in train too"
        assert message.startswith(told)
        assert message.endswith("to use them all the same, say task.allow_overlap=true")
        assert warnings(tmp_path, allow_overlap=True) == [told]


def test_rows_in_two_splits_are_counted_in_the_smaller_one(tmp_path: Path) -> None:
    few, many = rows_of(["yes", "no"]), rows_of(["yes", "no"] * 20)
    folder = write(tmp_path, train=few, dev=many, test=rows_of(["yes", "no"], "test"))
    assert refused(folder).startswith("2 of 2 rows (text and label) of train are in validation too")


def test_every_two_splits_with_the_same_rows_are_named(tmp_path: Path) -> None:
    rows = rows_of(["yes", "no"] * 3)
    message = refused(write(tmp_path, train=rows, dev=rows, test=rows))
    for pair in ("validation are in train", "test are in train", "test are in validation"):
        assert f"6 of 6 rows (text and label) of {pair} too" in message


def test_a_text_with_another_label_is_another_row(tmp_path: Path) -> None:
    train = rows_of(["yes", "no"] * 5)
    turned = [(text, "no" if label == "yes" else "yes") for text, label in train]
    assert warnings(write(tmp_path, train=train, dev=turned, test=rows_of(["yes", "no"], "test"))) == []


def test_rows_of_a_training_file_that_come_again_are_in_the_shares_of_it_too(tmp_path: Path) -> None:
    rows = rows_of(["yes", "no"] * 20)
    folder = write(tmp_path, train=[*rows] * 12, test=rows_of(["yes", "no"], "test"))
    assert "48 of 48 rows (text and label) of validation are in train too" in refused(folder, validation=0.1)
    told = warnings(folder, validation=0.1, allow_overlap=True)
    assert told[0] == "48 of 48 rows (text and label) of validation are in train too"
    assert told[1] == "392 of 432 rows of train repeat another, text and label"


def test_a_malformed_row_is_named_before_rows_in_two_splits_are(tmp_path: Path) -> None:
    folder = splits_with_common_rows(tmp_path, 20)
    with (folder / "dev.csv").open("a") as file:
        file.write("no label\n")
    message = refused(folder)
    assert "dev.csv line 22: has 1 field" in message
    assert "are in train too" not in message


def test_suspicious_labels_and_rows_in_two_splits_are_said_together(tmp_path: Path) -> None:
    rows = rows_of(["yes", "nan"] * 3)
    message = refused(write(tmp_path, train=rows, dev=rows, test=rows_of(["yes", "nan"], "test")))
    assert "look like missing values: 'nan' (7, first in train.csv:3)" in message
    assert "6 of 6 rows (text and label) of validation are in train too" in message


@pytest.mark.parametrize(("torn", "told"), [(0, False), (2, False), (4, True)])
def test_texts_with_two_labels_in_one_split_are_told(tmp_path: Path, torn: int, told: bool) -> None:
    rows = [(text, "no") for text, _ in rows_of(["yes"] * torn)][: torn // 2] + list(rows_of(["yes"] * 30))
    folder = write(tmp_path, train=[*rows, *rows_of(["no"] * 5, "more")])
    write(folder, dev=rows_of(["yes", "no"], "dev"), test=rows_of(["yes", "no"], "test"))
    expected = [f"{torn} of {len(rows) + 5} rows of train share their text with a row of another label"] if told else []
    assert warnings(folder) == expected


# Language modeling


def language_model(folder: Path, splits: Mapping[str, str], **knobs: Any) -> LanguageModeling:
    folder.mkdir(exist_ok=True)
    for split, text in splits.items():
        (folder / f"{split}.txt").write_text(text)
    return LanguageModeling(LanguageModelingConfig(path=str(folder), **knobs))


def lines(of: str, count: int) -> str:
    return "".join(f"line {i} of {of}, quite long\n" for i in range(count))


@pytest.mark.parametrize("layout", ["stream", "lines"])
def test_lines_in_two_splits_are_told_or_refused(tmp_path: Path, layout: str) -> None:
    what = "rows" if layout == "lines" else "passages of 20 or more characters"
    for common, outcome in ((1, "silent"), (2, "told"), (17, "told"), (18, "refused")):
        splits = {"train": lines("a", 40), "valid": lines("a", common) + lines("b", 20 - common), "test": lines("c", 9)}
        told = f"{common} of 20 {what} of validation are in train too"
        insisting = language_model(tmp_path, splits, layout=layout, allow_overlap=True)
        assert insisting.data_warnings() == ([told] if outcome != "silent" else [])
        found = language_model(tmp_path, splits, layout=layout)
        if outcome == "refused":
            with pytest.raises(DataError, match=f"{told}, so its score says nothing: .* task.allow_overlap=true"):
                _ = found.data
        else:
            assert found.data_warnings() == ([told] if outcome == "told" else [])


@pytest.mark.parametrize("layout", ["stream", "lines"])
def test_lines_in_a_wrong_encoding_are_told(tmp_path: Path, layout: str) -> None:
    splits = {"train": lines("a", 9) + "caf\u00e9\n", "valid": lines("b", 9), "test": lines("c", 9)}
    (told,) = language_model(tmp_path, splits, layout=layout, encoding="latin-1").data_warnings()
    assert told == "1 of 10 texts of train look as if read in a wrong encoding: 'caf\u00c3\u00a9'"


def test_blank_and_short_lines_that_many_texts_have_are_no_overlap_of_streams(tmp_path: Path) -> None:
    frame = "\n}\n    return x\n" * 30
    splits = {split: frame + lines(split, 5) for split in ("train", "valid", "test")}
    assert language_model(tmp_path, splits).data_warnings() == []
    with pytest.raises(DataError, match="of validation are in train too"):
        _ = language_model(tmp_path, splits, layout="lines").data


def test_rows_are_the_same_where_prompt_and_text_are(tmp_path: Path) -> None:
    splits = {split: "".join(f"{split} {i}||yes\n" for i in range(9)) for split in ("train", "valid", "test")}
    knobs = {"layout": "lines", "prompt_separator": "||"}
    assert language_model(tmp_path, splits, **knobs).data_warnings() == []
    splits |= {"valid": splits["train"]}
    with pytest.raises(DataError, match="9 of 9 rows of validation are in train too"):
        _ = language_model(tmp_path, splits, **knobs).data


def test_documents_that_come_again_are_in_the_shares_of_the_text_too(tmp_path: Path) -> None:
    document = lines("a document", 3)
    text = {"train": "\n\n".join([document] * 30), "test": lines("b", 9)}
    with pytest.raises(DataError, match="3 of 3 passages of 20 or more characters of validation are in train too"):
        _ = language_model(tmp_path, text, split="documents", validation=0.1).data


def test_a_malformed_line_is_named_before_lines_in_two_splits_are(tmp_path: Path) -> None:
    text = "".join(f"{i}||text\n" for i in range(9))
    splits = {"train": text, "valid": text + "no prompt\n", "test": "a||b\n"}
    with pytest.raises(DataError) as error:
        _ = language_model(tmp_path, splits, layout="lines", prompt_separator="||").data
    assert "valid.txt line 10: no '||', which ends a prompt: 'no prompt'" in str(error.value)
    assert "are in train too" not in str(error.value)
