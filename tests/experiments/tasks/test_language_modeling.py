"""The language_modeling task from files to a record, on a tiny random Llama."""

import gzip
import json
import math
import os
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from text_data import SENTENCES, write_model

from experiments.config.loading import load
from experiments.config.yaml_files import yaml_text
from experiments.data.passages import Layout, read_passages
from experiments.data.reading import DataError
from experiments.data.sources import Location, read_splits
from experiments.data.tables import Form, read_table
from experiments.runner import execute
from experiments.tasks.language_modeling import LanguageModeling
from experiments.tasks.language_modeling_config import LanguageModelingConfig
from experiments.terminal import Display
from experiments.training.context import attached, load_task
from experiments.training.evaluation import evaluate
from experiments.training.hyperparameters import shared_hyperparameters
from experiments.training.loop import compute_gradients
from lora_variants import VARIANTS
from lora_variants.interface.attach import attach
from lora_variants.interface.pack import Pack


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_model(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.data.tokens.cache_folder", lambda: tmp_path / "cache")


def write_stream(folder: Path) -> str:
    """input.txt.gz: documents of two sentences with a blank line between them."""
    folder.mkdir(parents=True)
    documents = ["\n".join(SENTENCES[i : i + 2]) for i in range(0, 100, 2)]
    (folder / "input.txt.gz").write_bytes(gzip.compress("\n\n".join(documents).encode()))
    return str(folder)


def write_lines(folder: Path) -> str:
    folder.mkdir(parents=True)
    for name, part in {"valid": SENTENCES[:60], "test": SENTENCES[60:80]}.items():
        (folder / f"{name}.txt").write_text("".join(f"a {s.split()[2]}||{s}\n" for s in part))
    return str(folder)


def configured(folder: Path, model: str, *overrides: str, variant: str = "lora", **task: Any) -> Any:
    task = {"name": "language_modeling", "context": 16, "validation": 0.1, "test": 0.1, "train": "input*"} | task
    path = folder / "c.yaml"
    training = {"steps": 4, "batch_size": 8, "threads": 1, "learning_rate": 1e-2}
    tree = {"task": task, "targets": ["*_proj"], "variant": {"name": variant}, "training": training}
    path.write_text(yaml_text(tree | {"model": {"name": model}, "wandb": {"mode": "disabled"}}))
    return load(path, overrides=overrides)


def test_a_stream_is_learned_and_scored_by_perplexity(tmp_path: Path, model: str) -> None:
    config = configured(tmp_path, model, "variant.rank=2", path=write_stream(tmp_path / "data"))
    result = execute(config, runs_dir=tmp_path / "runs", test=True, display=Display()).result
    for split in ("validation", "test"):
        assert result[split]["perplexity"] == pytest.approx(math.exp(result[split]["loss"]))
    assert result["score"] == result["validation"]["perplexity"]
    assert "forgetting" not in result
    assert result["data"]["train"]["malformed"] == 0


def test_every_token_of_a_split_is_scored_once_as_the_model_sees_it(tmp_path: Path, model: str) -> None:
    config = configured(tmp_path, model, path=write_stream(tmp_path / "data"), variant="head")
    task = load_task(config)
    assert isinstance(task, LanguageModeling)
    variant = attached(config, task, task.base_model())
    (found,) = evaluate(variant, task, "validation", config.training.precision)
    text = "".join(passage.text for passage in task.data.passages["validation"])
    ids = torch.tensor(task.base.tokenizer(text, add_special_tokens=False).input_ids)
    losses = []
    for start in range(0, len(ids) - 1, 16):
        window = ids[start : start + 17]
        with torch.no_grad():
            logits = variant.model(input_ids=window[None, :-1], attention_mask=torch.ones(1, len(window) - 1)).logits
        losses.append(torch.nn.functional.cross_entropy(logits[0], window[1:], reduction="none"))
    assert len(torch.cat(losses)) == len(ids) - 1
    assert found["loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


def test_a_line_is_scored_on_its_reference_alone(tmp_path: Path, model: str) -> None:
    lines = {"layout": "lines", "prompt_separator": "||", "train": "train|valid", "test": "test", "validation": 0.2}
    config = configured(
        tmp_path, model, path=write_lines(tmp_path / "data"), score="reference", variant="head", **lines
    )
    task = load_task(config)
    variant = attached(config, task, task.base_model())
    (found,) = evaluate(variant, task, "test", config.training.precision)
    tokenizer, losses = task.base.tokenizer, []  # type: ignore[attr-defined]
    for passage in task.data.passages["test"]:  # type: ignore[attr-defined]
        prompt, text = (tokenizer(part, add_special_tokens=False).input_ids for part in (passage.prompt, passage.text))
        ids = torch.tensor([2, *prompt, *text, 3])
        with torch.no_grad():
            logits = variant.model(input_ids=ids[None, :-1], attention_mask=torch.ones(1, len(ids) - 1)).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="none")[len(prompt) :])
    assert found["loss"] == pytest.approx(float(torch.cat(losses).mean()), rel=1e-5)


def test_the_base_s_own_domain_is_scored_before_and_after(tmp_path: Path, model: str) -> None:
    own = tmp_path / "own.txt"
    own.write_text("\n".join(reversed(SENTENCES)))
    config = configured(
        tmp_path,
        model,
        "variant.rank=2",
        path=write_stream(tmp_path / "data"),
        forgetting={"path": str(own), "windows": 9},
    )
    finished = execute(config, runs_dir=tmp_path / "runs", test=False, display=Display())
    forgetting = finished.result["forgetting"]
    task = load_task(config)
    untouched = configured(tmp_path, model, path=str(tmp_path / "data"), variant="head",
                           forgetting={"path": str(own), "windows": 9})  # fmt: skip
    base = attached(untouched, task, task.base_model())
    assert forgetting["before"] == evaluate(base, task, "forgetting", config.training.precision)[0]["loss"]
    assert forgetting["after"] != forgetting["before"]
    assert forgetting["change"] == forgetting["after"] - forgetting["before"]
    assert len(task.rows_of("forgetting")) == 9  # type: ignore[attr-defined]
    assert "forgetting" in json.loads((finished.folder / "environment.json").read_text())["data_sha256"]


def test_shares_are_the_end_of_the_text_or_documents_drawn_at_random(tmp_path: Path) -> None:
    where = Location(write_stream(tmp_path / "data"), train="input*", validation=0.1, test=0.1)
    tables = read_splits(where, Form(of_txt="text"), subset=None, revision=None)
    shares = {"validation": 0.1, "test": 0.1}
    ends = read_passages(tables, Layout(split="contiguous"), shares, seed=0, limit=None, skip_malformed=False).passages
    whole = "".join(p.text for split in ("train", "validation", "test") for p in ends[split])
    assert whole.split() == " ".join(SENTENCES[:100]).split()
    drawn = read_passages(tables, Layout(split="documents"), shares, seed=0, limit=None, skip_malformed=False).passages
    assert [len(drawn[split]) for split in ("train", "validation", "test")] == [40, 5, 5]
    texts = [p.text.strip() for split in drawn.values() for p in split]
    assert sorted(texts) == sorted("\n".join(SENTENCES[i : i + 2]).strip() for i in range(0, 100, 2))


def test_a_line_without_its_separator_is_malformed_and_an_empty_split_refused(tmp_path: Path) -> None:
    folder = Path(write_lines(tmp_path / "data"))
    with (folder / "valid.txt").open("a") as file:
        file.write("no separator here\n\n")
    layout, form = Layout(rows="lines", prompt_separator="||"), Form(of_txt="text")
    tables = read_splits(Location(str(folder), train="valid", validation=0.1), form, subset=None, revision=None)
    with pytest.raises(DataError, match=r"valid.txt line 61: no '\|\|', which ends a prompt: 'no separator here'"):
        read_passages(tables, layout, {"validation": 0.1}, seed=0, limit=None, skip_malformed=False)
    texts = read_passages(tables, layout, {"validation": 0.1}, seed=0, limit=None, skip_malformed=True)
    assert [texts.malformed(split) for split in ("train", "validation", "test")] == [1, 0, 0]
    (read,) = texts.read["train"]
    assert (read.rows, read.lines) == (60, {"all": 62, "header": 0, "of rows": 60, "malformed": 1, "empty": 1})


def test_a_column_that_is_named_for_lines_is_told_to_be_without_effect(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("question\tanswer\na\tb\n")
    tables = {"train": [read_table(tmp_path / "t.txt", Form(of_txt="text"))]}
    found = read_passages(tables, Layout(text="answer"), {}, seed=0, limit=None, skip_malformed=False)
    told = "t.txt has lines, no columns: task.text=answer without effect; a table is task.format=tsv"
    assert [warning.endswith(told) for warning in found.warnings] == [True]
    assert not read_passages(tables, Layout(), {}, seed=0, limit=None, skip_malformed=False).warnings


def test_an_empty_text_of_a_table_is_malformed_as_a_row_and_nothing_in_a_stream(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        texts = ["a cat", "", "a dog", None] if split == "train" else ["a cat"]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    tables = read_splits(Location(str(tmp_path)), Form(of_txt="text"), subset=None, revision=None)
    with pytest.raises(
        DataError, match=r"2 of 6 rows .*\n.*train\.jsonl line 2: 'text' is empty\n.*line 4: 'text' is no"
    ):
        read_passages(tables, Layout(rows="lines"), {}, seed=0, limit=None, skip_malformed=False)
    lines = read_passages(tables, Layout(rows="lines"), {}, seed=0, limit=None, skip_malformed=True)
    assert [(p.text, p.line) for p in lines.passages["train"]] == [("a cat", 1), ("a dog", 3)]
    assert [lines.malformed(split) for split in ("train", "validation", "test")] == [2, 0, 0]
    stream = read_passages(tables, Layout(rows="stream"), {}, seed=0, limit=None, skip_malformed=True)
    assert ("".join(p.text for p in stream.passages["train"]), stream.malformed("train")) == ("a cat\n\na dog\n", 1)


def test_a_table_whose_index_has_no_name_is_no_file_of_lines(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(",text\n0,a cat\n1,a dog\n")
    table = read_table(tmp_path / "t.csv", Form())
    rows = read_passages({"train": [table]}, Layout(rows="lines"), {}, seed=0, limit=None, skip_malformed=False)
    assert [passage.text for passage in rows.passages["train"]] == ["a cat", "a dog"]


def test_prompts_that_are_looked_for_in_the_other_form_of_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a||b\n")
    (tmp_path / "t.jsonl").write_text('{"prompt": "a", "text": "a||b"}\n')
    both = Layout(rows="lines", prompt="prompt", prompt_separator="||")
    for name, layout, message in (
        ("t.txt", Layout(rows="lines", prompt="p"), r"t\.txt has lines, no columns: .* task\.prompt_separator"),
        ("t.jsonl", Layout(rows="lines", prompt_separator="||"), r"t\.jsonl has columns, no lines: .* task\.prompt$"),
        ("t.jsonl", both, r"has columns, no lines: leave task\.prompt_separator out; .* nothing between them"),
    ):
        table = read_table(tmp_path / name, Form(of_txt="text"))
        with pytest.raises(DataError, match=message):
            read_passages({"train": [table]}, layout, {}, seed=0, limit=None, skip_malformed=False)


def test_what_only_checks_the_data_is_no_part_of_a_config_hash(tmp_path: Path, model: str) -> None:
    config, insisting = (configured(tmp_path, model, path="x", allow_overlap=allowed) for allowed in (False, True))
    assert config.config_hash(base="w") == insisting.config_hash(base="w")
    knobs = "name train validation test split_seed train_rows format encoding skip_malformed context layout split "
    knobs += "document_separator text prompt prompt_separator score evaluation_rows forgetting"
    assert config.hashed_config()["task"].keys() == set(knobs.split())


def test_a_column_and_a_separator_of_prompts_are_for_tables_and_lines_side_by_side(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text('{"prompt": "a ", "text": "cat"}\n')
    (tmp_path / "valid.txt").write_text("a ||dog\n")
    tables = {name: [read_table(tmp_path / name, Form(of_txt="text"))] for name in ("train.jsonl", "valid.txt")}
    both = Layout(rows="lines", prompt="prompt", prompt_separator="||")
    read = read_passages(tables, both, {}, seed=0, limit=None, skip_malformed=False).passages.values()
    assert [(passage.prompt, passage.text) for (passage,) in read] == [("a ", "cat"), ("a ||", "dog")]


def test_trials_of_one_pack_have_lines_of_one_length_at_each_step_and_the_losses_they_have_alone(
    tmp_path: Path, model: str
) -> None:
    lines = {"layout": "lines", "prompt_separator": "||", "train": "train|valid", "test": "test", "validation": 0.2}
    overrides = ["variant.rank=2", "training.batch_size=2"]
    config = configured(tmp_path, model, *overrides, path=write_lines(tmp_path / "data"), **lines)
    losses: list[list[torch.Tensor]] = []
    lengths = set()
    for seeds in ((0,), (0, 1)):
        task, trials = load_task(config), len(seeds)
        pack, configs = Pack(seeds=seeds, total_steps=(6,) * trials), [config.variant] * trials
        variant = attach(
            VARIANTS["lora"].load(), task.base_model(), targets=["*_proj"], pack=pack, configs=configs
        )  # fmt: skip
        losses.append([])
        for batches in islice(zip(*(task.training_batches(seed, 2) for seed in seeds), strict=True), 6):
            losses[-1].append(compute_gradients(variant, task, batches, shared_hyperparameters(config))[0][0])
            lengths.add(batches[0]["input_ids"].shape[1])
    assert len(lengths) > 1
    assert torch.equal(torch.stack(losses[0]), torch.stack(losses[1]))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({}, "path: missing"),
        ({"path": "x", "prompt": "p"}, "a stream has no prompts"),
        ({"path": "x", "document_separator": "|"}, "a stream alone is cut at it, with split=documents"),
        ({"path": "x", "layout": "lines", "prompt": "text"}, "prompt: 'text' is the column of the text too"),
        ({"path": "x", "layout": "lines", "score": "reference"}, "reference needs a prompt"),
    ],
)
def test_knobs_that_do_not_fit_together_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LanguageModelingConfig(**knobs)


REAL = os.environ.get("LORA_STUDIES_DATA", "")


@pytest.mark.skipif(not REAL, reason="LORA_STUDIES_DATA names no folder with tinyshakespeare, wikitext2, e2e_nlg_lora")
@pytest.mark.parametrize(
    ("folder", "knobs"),
    [
        ("tinyshakespeare", {"train": "input", "validation": 0.1, "test": 0.1, "split": "documents"}),
        ("wikitext2", {"train": "train|valid", "validation": 0.1, "test": "test"}),
        ("e2e_nlg_lora", {"train": "train|valid", "validation": 0.1, "layout": "lines", "prompt_separator": "||"}),
    ],
)
def test_texts_that_circulate_are_read_whole(folder: str, knobs: dict[str, Any]) -> None:
    data = LanguageModeling(LanguageModelingConfig(path=f"{REAL}/{folder}", **knobs)).data
    assert set(data.passages) == {"train", "validation", "test"}
    assert not any(data.malformed(split) for split in data.passages)
