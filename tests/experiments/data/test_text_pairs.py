"""Pairs of texts: a model that tells them apart by segments is told which text each token is of."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_transformers import saved

from experiments.models.huggingface import ModelConfig
from experiments.tasks.text_classification import TextClassification
from experiments.tasks.text_classification_config import TextClassificationConfig


def pairs(order: tuple[int, ...]) -> list[tuple[str, str]]:
    """24 pairs of texts, others for another order of the words of the first."""
    return [(" ".join(f"w{i + j}" for j in order), " ".join(f"w{i + j}" for j in range(1 + i % 12))) for i in range(24)]


PAIRS = {"train": pairs((2, 1, 0)), "dev": pairs((0, 1, 2)), "test": pairs((1, 2, 0))}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.data.tokens.cache_folder", lambda: tmp_path / "cache")


def bert_tokenizer(folder: Path) -> Any:
    """The tokenizer class of BERT, with its segments, over the words of the tiny models."""
    from transformers import BertTokenizerFast

    words = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(59)))
    made = BertTokenizerFast(vocab={word: i for i, word in enumerate(words)})
    made.save_pretrained(folder)
    return made


def task_on(folder: Path, *, text: list[str], max_length: int = 16, **model: Any) -> TextClassification:
    for split, rows in PAIRS.items():
        lines = [f"{one}\t{two}\t{i % 2}" for i, (one, two) in enumerate(rows)]
        (folder / f"{split}.tsv").write_text("\n".join(["one\ttwo\tlabel", *lines]) + "\n")
    config = TextClassificationConfig(path=str(folder), text=text, labels=["0", "1"], max_length=max_length)  # type: ignore[arg-type,call-arg]
    return TextClassification(config, ModelConfig(name=str(folder), **model))


@pytest.mark.parametrize("pooling", ["auto", "mean"])
def test_bert_sees_pairs_as_its_own_tokenizer_gives_them(tmp_path: Path, pooling: str) -> None:
    saved(tmp_path, "bert", "AutoModel")
    tokenizer = bert_tokenizer(tmp_path)
    task = task_on(tmp_path, text=["one", "two"], pooling=pooling)
    model = task.base_model().eval()
    torch.nn.init.normal_(model.get_submodule("classifier").weight)  # type: ignore[arg-type]
    (batch,) = task.evaluation_batches("validation")
    sides = (list(side) for side in zip(*PAIRS["dev"], strict=True))
    theirs = tokenizer(*sides, truncation=True, max_length=16, padding="max_length", return_tensors="pt")
    order = torch.argsort(theirs["attention_mask"].sum(dim=1), stable=True)
    for key in ("input_ids", "attention_mask", "token_type_ids"):
        assert torch.equal(batch[key], theirs[key][order]), key
    assert batch["token_type_ids"].any()
    with torch.no_grad():
        expected = model(**{key: rows[order] for key, rows in theirs.items()}).logits
        quantities = task.row_quantities(model, batch)
    labels = batch["labels"]
    assert torch.equal(quantities["loss"], torch.nn.functional.cross_entropy(expected, labels, reduction="none"))


def test_segments_are_given_only_where_there_is_a_pair_and_the_model_has_two(tmp_path: Path) -> None:
    for kind, text, given in (
        ("bert", ["one", "two"], True),
        ("bert", ["one"], False),
        ("roberta", ["one", "two"], False),
        ("gpt2", ["one", "two"], False),  # it would take them for tokens
    ):
        folder = tmp_path / f"{kind}{len(text)}"
        saved(folder, kind, "AutoModel", **({"type_vocab_size": 1} if kind == "roberta" else {}))
        bert_tokenizer(folder)
        task = task_on(folder, text=text)
        model, (batch,) = task.base_model().eval(), task.evaluation_batches("test")
        assert ("token_type_ids" in batch) == given
        assert bool(torch.isfinite(task.row_losses(model, batch)).all())


def test_segments_are_kept_in_the_cache_of_tokens(tmp_path: Path) -> None:
    saved(tmp_path, "bert", "AutoModel")
    bert_tokenizer(tmp_path)
    first, again = (next(task_on(tmp_path, text=["one", "two"]).training_batches(0, 8)) for _ in range(2))
    assert torch.equal(first["token_type_ids"], again["token_type_ids"])
    assert len(list((tmp_path / "cache" / "tokens").iterdir())) == 1
