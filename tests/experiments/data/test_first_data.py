"""What somebody with data of their own runs into first: each message names the file, the cause and the knob."""

from pathlib import Path
from typing import Any

import pytest
from text_data import write_model

from experiments.data.reading import DataError
from experiments.models.model_config import ModelConfig
from experiments.tasks.language_modeling import LanguageModeling
from experiments.tasks.language_modeling_config import LanguageModelingConfig
from experiments.tasks.text_classification import TextClassification
from experiments.tasks.text_classification_config import TextClassificationConfig

SPLITS = ("train", "dev", "test")


def write(folder: Path, **files: list[str]) -> Path:
    """A csv file for each name with these lines."""
    for name, lines in files.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


def rows(of: str, count: int = 4) -> list[str]:
    """Lines with the columns text and label."""
    return ["text,label", *(f"{of} {i},{i % 2}" for i in range(count))]


def classification(folder: Path, **knobs: Any) -> TextClassification:
    return TextClassification(TextClassificationConfig(path=str(folder), **knobs))


def language_model(folder: Path, **knobs: Any) -> LanguageModeling:
    model = write_model(folder / "model", "llama")
    return LanguageModeling(LanguageModelingConfig(path=str(folder / "data"), **knobs), ModelConfig(name=model))


def write_lines(folder: Path, **files: list[str]) -> None:
    (folder / "data").mkdir()
    for name, lines in files.items():
        (folder / "data" / f"{name}.txt").write_text("\n".join(lines) + "\n")


def refused(folder: Path, **knobs: Any) -> tuple[str, ...]:
    with pytest.raises(DataError) as error:
        _ = classification(folder, **knobs).data
    return error.value.errors


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.data.tokens.cache_folder", lambda: tmp_path / "cache")


# Files


def test_a_file_with_the_name_of_a_split_that_is_not_read_is_told_unless_another_was_named(tmp_path: Path) -> None:
    write(tmp_path, **{name: rows(name, 40) for name in (*SPLITS, "validation")}, notes=["a,b"])
    told = "dev.csv is not read: validation is validation.csv; task.validation=dev.csv would read it"
    assert classification(tmp_path).data_warnings() == [told]
    assert classification(tmp_path, validation="validation").data_warnings() == []
    told = "test.csv is not read: test is 0.1 of the training rows; task.test=test.csv would read it"
    assert classification(tmp_path, validation="dev", test=0.1).data_warnings() == [told]


def test_files_that_are_there_are_named_as_a_knob_takes_them(tmp_path: Path) -> None:
    write(tmp_path, my_train=rows("train"))
    (tmp_path / "my_train.tsv").write_text("text\tlabel\n")
    told = refused(tmp_path, validation=0.5, test=0.2)[0]
    assert "no file is the train split; there is: my_train.csv, my_train.tsv. Name it with task.train=NAME" in told
    for name in ("my_train.csv", "my_train.tsv"):
        assert name in refused(tmp_path, train="my_train", validation=0.5, test=0.2)[0]
    assert classification(tmp_path, train="my_train.csv", validation=0.25, test=0.25).config.train == "my_train.csv"


def test_of_many_files_the_first_are_named(tmp_path: Path) -> None:
    write(tmp_path, **{f"part{i:02}": ["a"] for i in range(30)})
    assert "there is: part00.csv, part01.csv" in refused(tmp_path)[0]
    assert "part09.csv and 20 more. Name it" in refused(tmp_path)[0]


def test_a_spreadsheet_is_to_be_saved_as_csv(tmp_path: Path) -> None:
    (tmp_path / "rows.xlsx").write_bytes(b"PK\3\4")
    (told,) = refused(tmp_path / "rows.xlsx", validation=0.1, test=0.1)
    assert told.endswith("rows.xlsx is a spreadsheet, which is not read: save it as csv")


# Columns


def test_a_missing_column_names_its_knob_and_the_nearest_name_once_for_all_files(tmp_path: Path) -> None:
    write(tmp_path, **{name: ["Text,lable", "a,1", "b,0"] for name in SPLITS})
    (told,) = refused(tmp_path)
    named = "'text' (task.text; did you mean 'Text'?), 'label' (task.label; did you mean 'lable'?)"
    assert told.startswith(f"{tmp_path}/train.csv, dev.csv, test.csv have no columns {named}; they have: Text, lable")
    (told,) = refused(tmp_path, text=["Text"])
    assert told.endswith("have no column 'label' (task.label; did you mean 'lable'?); they have: Text, lable")


def test_a_first_row_in_place_of_a_header_is_cut_and_the_way_out_told(tmp_path: Path) -> None:
    write(tmp_path, **{name: [f"{'a long text ' * 9},1" + "".join(f",{i}x" for i in range(20))] * 3 for name in SPLITS})
    (told,) = refused(tmp_path)
    assert (
        "they have: a long text a long text a long text a lo..., 1, 0x, 1x, 2x, 3x, 4x, 5x and 14 more; if its" in told
    )
    assert told.endswith("say task.header=false and give columns by number, e.g. task.text=[0]")
    write(tmp_path, **{name: ["text,y", "a,1", "b,0"] for name in SPLITS})
    assert "task.header" not in refused(tmp_path)[0]


def test_an_unknown_label_is_told_beside_those_that_are_known_and_where_they_are_from(tmp_path: Path) -> None:
    write(tmp_path, train=rows("train", 8), dev=["text,label", "a,posit"], test=rows("test"))
    assert "dev.csv line 2: unknown label 'posit'; the training rows have 0, 1" in refused(tmp_path)[0]
    listed = [str(i) for i in range(12)]
    assert "unknown label 'posit'; task.labels lists 0, 1, 2, 3, 4 and 7 more" in refused(tmp_path, labels=listed)[0]


# Rows


def test_more_training_rows_than_there_are_is_told(tmp_path: Path) -> None:
    write(tmp_path, **{name: rows(name, 8) for name in SPLITS})
    told = "task.train_rows=9 is more than the 8 training rows that there are: all are used"
    assert classification(tmp_path, train_rows=9).data_warnings() == [told]
    assert classification(tmp_path, train_rows=8).data_warnings() == []
    write_lines(tmp_path, **{name: [f"the {name} cat {i}" for i in range(8)] for name in SPLITS})
    task = language_model(tmp_path, layout="lines", train_rows=9)
    task.read_data()
    assert task.data_warnings() == [told]


def test_where_the_training_rows_are_that_are_not_trained_on_is_told(tmp_path: Path) -> None:
    write(tmp_path, train=rows("train", 40), test=rows("test"))
    described = classification(tmp_path, validation=0.25, train_rows=20).describe_data()
    assert described["train"]["read from"] == (
        "train.csv (41 lines: 1 header, 40 rows), of which 10 for validation, 10 left by task.train_rows"
    )
    assert described["validation"]["read from"] == "a share of the training rows"


def test_the_knob_that_limits_rows_is_named_where_it_does(tmp_path: Path) -> None:
    write_lines(tmp_path, **{name: [f"the {name} cat {i}" for i in range(8)] for name in SPLITS})
    task = language_model(tmp_path, layout="lines", evaluation_rows=4, train_rows=8)
    task.read_data()
    described = {split: words["rows"] for split, words in task.describe_data().items()}
    limited = "4 of 8 (task.evaluation_rows)"
    assert described == {"train": "8 of 8", "validation": limited, "test": limited}


def test_a_line_without_a_separator_and_one_without_a_text_are_told_apart(tmp_path: Path) -> None:
    write_lines(tmp_path, train=["a||b", "no mark", "a prompt||"], valid=["a||b"], test=["a||b"])
    with pytest.raises(DataError) as error:
        _ = language_model(tmp_path, layout="lines", prompt_separator="||").data
    assert "train.txt line 2: no '||', which ends a prompt: 'no mark'" in str(error.value)
    assert "train.txt line 3: no text behind '||': 'a prompt'" in str(error.value)


def test_a_separator_that_comes_again_in_a_line_is_told(tmp_path: Path) -> None:
    write_lines(tmp_path, train=["a||b", "c||d||e", "f||g||h"], valid=["i||j"], test=["k||l"])
    told = "2 of 3 lines of train.txt have '||' more than once, first line 2: the first one ends the prompt"
    assert language_model(tmp_path, layout="lines", prompt_separator="||").data_warnings() == [told]


def test_columns_that_are_named_hide_no_error_of_files_of_which_none_can_be_read(tmp_path: Path) -> None:
    write_lines(tmp_path, train=["a||b"], valid=["c||d"], test=["e||f"])
    with pytest.raises(DataError, match="Python knows no encoding 'utf8x'"):
        _ = language_model(tmp_path, layout="lines", text="answer", prompt_separator="||", encoding="utf8x").data
