"""Real pretrained weights, where they are: W0 is what was trained, and adapting it works.

LORA_STUDIES_DATA names a folder with `stories260K/hf` (a Llama of 260,000 weights) and `all-MiniLM-L6-v2`.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from models import Regression, attached, knobs, trained
from torch import Tensor, nn

from experiments.models.huggingface import ModelConfig, build_model, head_modules, load_tokenizer
from experiments.tasks.task import Batch

STORY = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park with her friends."
PAIRS = ["a man is eating food", "a man eats something", "the girl is carrying a baby"]


def weights(name: str) -> ModelConfig:
    """The model in the folder of data, or the test is skipped."""
    data = os.environ.get("LORA_STUDIES_DATA")
    if not data:
        pytest.skip("LORA_STUDIES_DATA names no folder with pretrained weights")
    folder = Path(data) / name
    if not (folder / "config.json").is_file():
        pytest.skip(f"there is no model in {folder}")
    return ModelConfig(name=str(folder))


class OneStory(Regression):
    """The same rows at every step."""

    def __init__(self, rows: Batch) -> None:
        super().__init__(torch.float32)
        self.rows = rows

    def training_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        while True:
            yield self.rows

    def row_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(**batch).logits[:, :-1]
        return F.cross_entropy(logits.mT, batch["input_ids"][:, 1:], reduction="none").sum(dim=1)

    def row_counts(self, batch: Batch) -> Tensor:
        return batch["attention_mask"].sum(dim=1) - 1.0


def test_stories260k_knows_english_stories_and_learns_one_by_heart() -> None:
    config = weights("stories260K/hf")
    tokenizer = load_tokenizer(config)
    found = tokenizer([STORY], return_tensors="pt")
    rows = {key: found[key] for key in ("input_ids", "attention_mask")}
    model = build_model(config, "causal_lm", labels=0, pad_token_id=tokenizer.pad_token_id, weights=True)
    task = OneStory(rows)

    def loss() -> float:
        with torch.no_grad():
            return float(task.row_losses(model.eval(), rows) / task.row_counts(rows))

    before = loss()
    assert before < 2.0  # one in 512 would be 6.2
    variant = attached("lora", model, targets=["all-linear"], heads=(), configs=[knobs("lora", rank=4)], rows=1)
    assert loss() == pytest.approx(before, abs=1e-5)
    trained(variant, steps=30, task=task, rows=1)
    assert loss() < before / 2


def test_minilm_puts_sentences_of_one_meaning_close_to_each_other() -> None:
    config = weights("all-MiniLM-L6-v2").model_copy(update={"pooling": "mean"})
    tokenizer = load_tokenizer(config)
    model = build_model(config, "classification", labels=384, pad_token_id=tokenizer.pad_token_id, weights=True).eval()
    assert head_modules(model, "classification") == ("classifier",)
    found = tokenizer(PAIRS, padding=True, return_tensors="pt")
    with torch.no_grad():
        model.classifier.weight.copy_(torch.eye(384))
        means = model(input_ids=found["input_ids"], attention_mask=found["attention_mask"]).logits
    cosines = F.cosine_similarity(means[:1], means[1:])
    assert [round(float(c), 2) for c in cosines] == [pytest.approx(0.88, abs=0.02), pytest.approx(-0.1, abs=0.05)]
