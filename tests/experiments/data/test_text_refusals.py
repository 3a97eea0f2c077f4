"""What a run on text cannot be made of: each is one clear error before a base is loaded or a record begun."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from text_data import write_labelled, write_model
from tokenizers import Tokenizer
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import Sequence

from experiments.config.loading import load
from experiments.config.yaml_files import yaml_text
from experiments.data.reading import DataError
from experiments.runner import execute
from experiments.terminal import Display

TRAINING = {"steps": 2, "batch_size": 8, "threads": 1, "learning_rate": 1e-2}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.data.tokens.cache_folder", lambda: tmp_path / "cache")


def configured(folder: Path, task: dict[str, Any], *overrides: str) -> Any:
    """A configuration on the files data/ and model/ of the folder."""
    path = folder / "c.yaml"
    task = {"path": str(folder / "data")} | task
    tree = {"task": task, "model": {"name": str(folder / "model")}, "training": TRAINING, "targets": ["all-linear"]}
    path.write_text(yaml_text(tree | {"variant": {"name": "lora", "rank": 2}, "wandb": {"mode": "disabled"}}))
    return load(path, overrides=overrides)


def classification(folder: Path, *overrides: str) -> Any:
    task = {"name": "text_classification", "text": ["sentence"], "labels": ["0", "1"], "max_length": 32}
    return configured(folder, task, "model.pooling=mean", *overrides)


def run(config: Any, folder: Path) -> dict[str, Any]:
    return execute(config, runs_dir=folder / "runs", test=False, display=Display()).result


def truncate_weights(folder: Path) -> None:
    file = folder / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def rename_model(folder: Path) -> None:
    (folder / "model").rename(folder / "elsewhere")


def empty_model(folder: Path) -> None:
    rename_model(folder)
    (folder / "model").mkdir()


def rename_data(folder: Path) -> None:
    (folder / "data").rename(folder / "elsewhere")


def empty_data(folder: Path) -> None:
    rename_data(folder)
    (folder / "data").mkdir()


def content(text: str | bytes, split: str = "dev") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "data" / f"{split}.tsv").write_bytes(text if isinstance(text, bytes) else text.encode())

    return write


def fewer_embeddings(folder: Path) -> None:
    file = folder / "model" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": 12}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (truncate_weights, r"model\.safetensors of '.*' is torn or no safetensors file"),
        (rename_model, r"model\.name: '.*/model' is neither a folder here nor a possible name on the Hub"),
        (empty_model, r"model\.name: the folder '.*/model' has no config\.json; name the folder of a whole model"),
        (rename_data, "task.path: there is no file or folder .*/data"),
        (empty_data, "no file is the train split; there is: nothing that holds text"),
        (content("text\tlabel\na cat\t1\n"), r"dev\.tsv has no column .sentence. .task.text.; it has: text, label"),
        (content("sentence\tlabel\na cat\t1\na dog\tno\n"), r"dev\.tsv line 3: unknown label 'no'"),
        (content(""), r"dev\.tsv is empty"),
        (content("sentence\tlabel\n"), "the validation split has no usable row"),
        (content(b"\x00\x01\x02"), r"dev\.tsv is not text: it has a zero byte at 0"),
        (content(b"sentence\tlabel\n\xff\xfe\t1\n"), r"dev\.tsv line 2: not utf-8 text .* task\.encoding=latin-1"),
        (content("sentence\tlabel\na cat\t1\n"), "the validation split has one usable row"),
        (content("sentence\tlabel\na cat\t1\n", "train"), "the train split has one usable row"),
        (fewer_embeddings, r"the tokenizer of .* numbers its tokens up to \d+ but the model has 12 embeddings"),
    ],
    ids=lambda case: getattr(case, "__name__", None) if callable(case) else None,
)
def test_what_a_run_cannot_be_made_of_is_one_error_before_anything_is_computed(
    tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    write_model(tmp_path / "model", "bert")
    write_labelled(tmp_path / "data")
    spoil(tmp_path)
    with pytest.raises(ValueError, match=message):
        run(classification(tmp_path), tmp_path)
    assert not list((tmp_path / "runs").rglob("*.*"))


def test_a_share_of_one_row_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "bert")
    write_labelled(tmp_path / "data")
    (tmp_path / "data" / "train.tsv").write_text("sentence\tlabel\na cat\t1\n")
    with pytest.raises(ValueError, match="validation has none of 1 rows: give it a larger share, or the data more"):
        run(classification(tmp_path, "task.validation=0.1"), tmp_path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.metrics=[f1]", "task.labels=['0', '1', '2']"], "f1 is that of the second of two labels, .* have 3"),
        (["task.labels=['0', '1', '0']"], "labels: each once, got 0, 1, 0"),
        (["task.max_length=128"], r"rows of 128 tokens are longer than the 64 places .*; set task\.max_length=64"),
    ],
)
def test_knobs_that_the_data_or_the_model_cannot_meet_are_refused(
    tmp_path: Path, overrides: list[str], message: str
) -> None:
    write_model(tmp_path / "model", "bert")
    write_labelled(tmp_path / "data")
    with pytest.raises(ValueError, match=message):
        run(classification(tmp_path, *overrides), tmp_path)


# Lines whose prompt leaves nothing to score


def prompted(folder: Path, *overrides: str) -> Any:
    """Language modeling on lines with a prompt, one training and one validation prompt longer than the context."""
    (folder / "data").mkdir()
    for split, words, end in (
        ("train", (1, 2, 9, 1, 2, 1) * 2, "is bad"),
        ("valid", (1, 2, 9, 1, 2, 1), "was bad"),
        ("test", (1, 2), "sees"),
    ):
        lines = [f"{'a cat ' * times}||{end}" for times in words]
        (folder / "data" / f"{split}.txt").write_text("\n".join(lines))
    task = {
        "name": "language_modeling",
        "layout": "lines",
        "prompt_separator": "||",
        "score": "reference",
        "context": 8,
    }
    return configured(folder, task, *overrides)


def test_a_line_whose_prompt_fills_the_context_is_malformed_and_named(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "llama")
    message = r"2 of 12 rows are malformed.*\n.*train\.txt line 3: none of its first 9 tokens is scored; shorten"
    with pytest.raises(ValueError, match=message):
        run(prompted(tmp_path), tmp_path)
    assert not list((tmp_path / "runs").rglob("*.*"))


def test_a_line_of_one_token_is_malformed_where_none_is_put_around_it(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "llama")
    settings = json.loads((told := tmp_path / "model" / "tokenizer_config.json").read_text())
    told.write_text(
        json.dumps({key: value for key, value in settings.items() if key not in ("bos_token", "eos_token")})
    )
    config = prompted(tmp_path, "task.prompt_separator=null", "task.score=all")
    with (tmp_path / "data" / "valid.txt").open("a") as file:
        file.write("\ncat\n")
    with pytest.raises(ValueError, match=r"1 of 7 rows .*\n.*valid\.txt line 7: has no second token to predict"):
        run(config, tmp_path)


def test_a_line_whose_prompt_fills_the_context_is_left_out_and_counted(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "llama")
    result = run(prompted(tmp_path, "task.skip_malformed=true", "training.batch_size=1", "training.steps=24"), tmp_path)
    counted = {split: (facts["rows"], facts["malformed"]) for split, facts in result["data"].items()}
    assert counted == {"train": (10, 2), "validation": (5, 1), "test": (2, 0)}


def test_what_is_wrong_with_the_texts_of_each_split_is_said_together(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "llama")
    config = prompted(tmp_path, f"task.forgetting={{path: {tmp_path / 'none.txt'}}}")
    (tmp_path / "data" / "valid.txt").write_text("no separator\n")
    (tmp_path / "data" / "test.txt").write_text("\n")
    with pytest.raises(DataError) as error:
        run(config, tmp_path)
    test, malformed, forgetting = error.value.errors
    assert test.endswith("test.txt is empty")
    assert "1 of 13 rows is malformed" in malformed
    assert "valid.txt line 1: no '||', which ends a prompt: 'no separator'" in malformed
    assert forgetting.startswith(f"task.forgetting.path: {tmp_path / 'none.txt'} cannot be read")


def test_lines_without_a_token_to_score_are_named_in_every_split(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "llama")
    with pytest.raises(DataError) as error:
        run(prompted(tmp_path), tmp_path)
    assert [("train.txt" in one, "valid.txt" in one) for one in error.value.errors] == [(True, False), (False, True)]


def test_texts_without_a_token_are_named_in_every_split(tmp_path: Path) -> None:
    write_model(tmp_path / "model", "bert")
    write_labelled(tmp_path / "data")
    tokenizer = Tokenizer.from_file(file := str(tmp_path / "model" / "tokenizer.json"))
    tokenizer.pre_tokenizer, tokenizer.post_processor = Split("-", "removed"), Sequence([])
    tokenizer.save(file)
    for split, text in {"train": "--", "test": "---"}.items():
        with (tmp_path / "data" / f"{split}.tsv").open("a") as table:
            table.write(f"{text}\t1\n")
    with pytest.raises(DataError) as error:
        run(classification(tmp_path), tmp_path)
    assert ["('--',)" in one for one in error.value.errors] == [True, False]
    assert "('---',)" in error.value.errors[1]
