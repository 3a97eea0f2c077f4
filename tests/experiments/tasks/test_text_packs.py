"""Packs of trials on text: bit-exact also where only some batches have padding, and known beforehand to be possible."""

import json
import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from models import attached, knobs, trained
from tiny_transformers import SHAPE, saved, tiny_config
from torch import Tensor
from transformers import MixtralConfig

from experiments.config.schema import Labels
from experiments.models.huggingface import ModelConfig
from experiments.tasks.language_modeling import LanguageModeling
from experiments.tasks.language_modeling_config import LanguageModelingConfig
from experiments.tasks.task import Task
from experiments.tasks.text_classification import TextClassification
from experiments.tasks.text_classification_config import TextClassificationConfig

CAUSAL, BODY = "AutoModelForCausalLM", "AutoModel"
ROWS, STEPS = 8, 24


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.data.tokens.cache_folder", lambda: tmp_path / "cache")


def write_text(folder: Path, longest: int) -> str:
    """Three classes of 64 rows by length: short ones; eight short ones among those of `longest` words; only those.

    So at some steps of the second class the batch of one seed needs no padding and that of another does.
    """
    counts = [8 + i % 7 for i in range(72)] + [longest] * 120
    words = [" ".join(f"w{(i * 7 + j * j) % 60}" for j in range(count)) for i, count in enumerate(counts)]
    others = [" ".join(f"w{(i * 11 + 3 * j) % 60}" for j in range(8 + i)) for i in range(8)]
    for split, texts in {"train": words, "valid": others[:4], "test": others[4:]}.items():
        rows = [{"text": text, "label": i % 2} for i, text in enumerate(texts)]
        (folder / f"{split}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return str(folder)


def language_modeling(folder: Path, longest: int) -> Task:
    config = LanguageModelingConfig(path=write_text(folder, longest), layout="lines", context=16)  # type: ignore[call-arg]
    return LanguageModeling(config, ModelConfig(name=str(folder)))  # type: ignore[call-arg]


def classification(folder: Path, longest: int) -> Task:
    config = TextClassificationConfig(path=write_text(folder, longest), labels=["0", "1"], max_length=16)  # type: ignore[call-arg]
    return TextClassification(config, ModelConfig(name=str(folder)))  # type: ignore[call-arg]


def state(task: Task, seeds: tuple[int, ...], labels: Labels = True) -> list[dict[str, Tensor]]:
    """What each trial is after the steps."""
    model = task.base_model()
    heads, configs = task.head_names(model), [knobs("lora", rank=2)] * len(seeds)
    variant = attached("lora", model, targets=["all-linear"], heads=heads, configs=configs, seeds=seeds, rows=ROWS)
    assert all(
        outcome.failure is None for outcome in trained(variant, steps=STEPS, task=task, rows=ROWS, labels=labels)
    )
    return [variant.trial_state(k) for k in range(len(seeds))]


def full(task: Task, seed: int, tokens: int) -> list[bool]:
    """Whether all rows of each step's batch have this many tokens."""
    batches = islice(task.training_batches(seed, ROWS), STEPS)
    return [bool((batch["attention_mask"].sum(dim=1) == tokens).all()) for batch in batches]


@pytest.mark.parametrize(
    ("kind", "longest", "tokens"),
    [(classification, 16, 16), (language_modeling, 16, 17), (language_modeling, 15, 16)],  # with an end token
)
def test_with_grouped_queries_a_trial_is_the_same_in_a_pack_where_some_batches_need_no_padding(
    tmp_path: Path, kind: Callable[..., Task], longest: int, tokens: int
) -> None:
    saved(tmp_path, "llama", CAUSAL, hidden_size=64, num_attention_heads=8, num_key_value_heads=4)
    task = kind(tmp_path, longest)
    assert any(one != other for one, other in zip(full(task, 0, tokens), full(task, 1, tokens), strict=True))
    packed = state(task, (0, 1))
    for k, found in enumerate(packed):
        (alone,) = state(task, (k,))
        assert [key for key in alone if not torch.equal(alone[key], found[key])] == []


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_without_grouped_queries_rows_have_no_place_to_spare_and_trials_are_still_the_same(
    tmp_path: Path, kind: str
) -> None:
    saved(tmp_path, kind, BODY)
    task = classification(tmp_path, 16)
    assert {batch["input_ids"].shape[1] for batch in islice(task.training_batches(0, ROWS), 24)} == {16}
    packed = state(task, (0, 1))
    for k, found in enumerate(packed):
        (alone,) = state(task, (k,))
        assert [key for key in alone if not torch.equal(alone[key], found[key])] == []


@pytest.mark.parametrize(
    ("kind", "labels"),
    [(classification, "shuffled"), (language_modeling, "shuffled"), (language_modeling, "base_model")],
)
def test_trials_on_false_labels_are_the_same_in_any_pack_and_others_than_on_true_ones(
    tmp_path: Path, kind: Callable[..., Task], labels: Labels
) -> None:
    saved(tmp_path, "llama", CAUSAL if kind is language_modeling else BODY)
    task = kind(tmp_path, 16)
    packed, (true,) = state(task, (0, 1), labels), state(task, (0,))
    for k, found in enumerate(packed):
        (alone,) = state(task, (k,), labels)
        assert [key for key in alone if not torch.equal(alone[key], found[key])] == []
    assert any(not torch.equal(packed[0][key], true[key]) for key in true)


def test_shuffled_tokens_are_those_of_the_split_at_other_places(tmp_path: Path) -> None:
    saved(tmp_path, "llama", CAUSAL)
    task = language_modeling(tmp_path, 16)
    rows = len(task.tokens("train").lengths)  # type: ignore[attr-defined]
    (true,), (false,) = (list(islice(of(0, rows), 1)) for of in (task.training_batches, task.shuffled_batches))
    scored = true["marked"][:, 1:]
    targets, right = false["targets"][scored], true["input_ids"][:, 1:][scored]
    assert torch.equal(true["input_ids"], false["input_ids"])
    assert not torch.equal(targets, right)
    counts = targets.bincount(minlength=200) - right.bincount(minlength=200)
    assert counts.abs().sum() <= 2 * rows  # a row's first token is never predicted, and is permuted with the others


# What must train alone


@pytest.mark.parametrize(
    ("kind", "model", "reason"),
    [
        ("bert", {}, None),
        ("gpt2", {}, None),
        ("llama", {}, None),
        ("bert", {"dropout": 0.1}, r"has dropout 0\.1: .* train a pack of one"),
        ("deberta-v2", {}, r"\(deberta-v2\) sends relative positions, .*; train a pack of one"),
        ("mixtral", {}, r"\(mixtral\) sends tokens of all rows together to its experts; train a pack of one"),
    ],
)
def test_a_task_knows_from_the_architecture_alone_what_must_train_as_a_pack_of_one(
    tmp_path: Path, kind: str, model: dict[str, Any], reason: str | None
) -> None:
    made = MixtralConfig(**SHAPE) if kind == "mixtral" else tiny_config(kind)
    made.save_pretrained(tmp_path)
    config = TextClassificationConfig(path="no/such/folder", labels=["0", "1"], max_length=16)  # type: ignore[call-arg]
    task = TextClassification(config, ModelConfig(name=str(tmp_path), **model))
    found = task.trains_alone()
    assert found is None if reason is None else found is not None and re.search(reason, found)
