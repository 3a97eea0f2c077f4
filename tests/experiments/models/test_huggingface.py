"""Base models from folders and from the Hub: W0 is exactly what was trained, everything else is refused in one line."""

import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import Regression, attached, knobs, trained
from tiny_transformers import saved
from torch import Tensor, nn

from experiments.models.huggingface import (
    ModelConfig,
    build_model,
    content_of,
    head_modules,
    load_tokenizer,
    use_gradient_checkpointing,
)
from experiments.models.weights import fingerprint
from experiments.tasks.task import Batch
from lora_variants.interface.rng import stream

CLASSIFIER, CAUSAL, BODY = "AutoModelForSequenceClassification", "AutoModelForCausalLM", "AutoModel"
ROWS = ["w1 w2 w3 w4 w5 w6", "w7 w8", "w9 w10 w11"]


def classifier(config: ModelConfig, *, labels: int = 3, weights: bool = True) -> nn.Module:
    return build_model(config, "classification", labels=labels, pad_token_id=0, weights=weights).eval()


def language_model(config: ModelConfig, *, weights: bool = True) -> nn.Module:
    return build_model(config, "causal_lm", labels=0, pad_token_id=0, weights=weights).eval()


def at(folder: Path, **more: Any) -> ModelConfig:
    return ModelConfig(name=str(folder), **more)


def tokens(config: ModelConfig, rows: list[str] = ROWS) -> dict[str, Tensor]:
    found = load_tokenizer(config)(rows, padding=True, return_tensors="pt")
    return {key: found[key] for key in ("input_ids", "attention_mask")}


@torch.no_grad()
def logits(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    found: Tensor = model(**batch).logits
    return found


# Folders


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any use of the network fails, whatever the environment says of being offline."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("socket", "create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.mark.parametrize("pooling", ["auto", "mean"])
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
@pytest.mark.usefixtures("no_network")
def test_a_folder_is_read_without_asking_the_network(tmp_path: Path, kind: str, pooling: str) -> None:
    saved(tmp_path, kind, CAUSAL if kind == "gpt2" else BODY)
    config = at(tmp_path, pooling=pooling)
    assert logits(classifier(config), tokens(config)).shape == (3, 3)
    classifier(config, weights=False)
    assert content_of(config) == {"model_type": kind}


def test_a_language_model_computes_what_the_saved_one_did(tmp_path: Path) -> None:
    for kind in ("gpt2", "llama"):
        model = saved(tmp_path / kind, kind, CAUSAL)
        config = at(tmp_path / kind)
        batch = tokens(config)
        assert torch.equal(logits(language_model(config), batch), logits(model, batch))
        assert head_modules(language_model(config), "causal_lm") == ()


def test_a_tied_lm_head_stays_tied_and_is_w0(tmp_path: Path) -> None:
    saved(tmp_path, "gpt2", CAUSAL)
    for weights in (True, False):
        model: Any = language_model(at(tmp_path), weights=weights)
        assert model.lm_head.weight is model.transformer.wte.weight


def test_a_folder_is_whole_in_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    assert ModelConfig(name="model").name == str(tmp_path / "model")
    assert ModelConfig(name="owner/model").name == "owner/model"


# Heads


HEADS = {
    "bert": ("classifier",),
    "roberta": ("classifier",),
    "deberta-v2": ("pooler", "classifier"),
    "distilbert": ("pre_classifier", "classifier"),
    "gpt2": ("score",),
    "llama": ("score",),
}


@pytest.mark.parametrize("kind", HEADS)
def test_only_the_head_is_not_in_the_checkpoint_and_w0_is_the_same_at_every_build(tmp_path: Path, kind: str) -> None:
    body = saved(tmp_path, kind, BODY)
    model = classifier(at(tmp_path))
    heads = head_modules(model, "classification")
    assert heads == HEADS[kind]
    for key, value in model.base_model.state_dict().items():  # type: ignore[operator,union-attr]
        if key in body.state_dict():
            assert torch.equal(value, body.state_dict()[key]), key
    outside = [key for key in model.state_dict() if not key.startswith(tuple(f"{head}." for head in heads))]
    assert {key.partition(".")[2] for key in outside} <= set(body.state_dict())
    assert fingerprint(model.state_dict()) == fingerprint(classifier(at(tmp_path)).state_dict())


def test_a_classifier_that_is_in_the_checkpoint_is_a_head_like_any_other(tmp_path: Path) -> None:
    saved(tmp_path, "bert", CLASSIFIER, num_labels=2)
    for labels in (1, 2, 5):
        model: Any = classifier(at(tmp_path), labels=labels)
        assert model.classifier.weight.shape == (labels, 32)
        assert not model.classifier.weight.any()


# Mean pooling


@pytest.mark.parametrize("kind", ["bert", "roberta", "gpt2", "llama"])
def test_mean_pooling_averages_the_last_hidden_states_where_the_mask_is_one(tmp_path: Path, kind: str) -> None:
    body = saved(tmp_path, kind, BODY)
    config = at(tmp_path, pooling="mean")
    model: Any = classifier(config)
    torch.nn.init.normal_(model.classifier.weight)
    batch = tokens(config)
    assert head_modules(model, "classification") == ("classifier",)
    for row, length in enumerate((6, 2, 3)):
        with torch.no_grad():
            hidden = body(input_ids=batch["input_ids"][row : row + 1, :length]).last_hidden_state
            expected = model.classifier(hidden.mean(dim=1))
        torch.testing.assert_close(logits(model, batch)[row : row + 1], expected, rtol=1e-4, atol=1e-5)


def test_layers_have_one_name_with_either_head_and_no_unused_pooler_is_left(tmp_path: Path) -> None:
    saved(tmp_path, "bert", BODY)
    auto, mean = (
        {n for n, m in classifier(at(tmp_path, pooling=pooling)).named_modules() if isinstance(m, nn.Linear)}
        for pooling in ("auto", "mean")
    )
    assert auto - mean == {"bert.pooler.dense"}
    assert mean < auto


# Rows of unequal length


@pytest.mark.parametrize("kind", ["bert", "roberta", "deberta-v2", "gpt2", "llama"])
def test_a_padded_row_has_the_logits_that_it_has_alone(tmp_path: Path, kind: str) -> None:
    saved(tmp_path, kind, BODY)
    config = at(tmp_path)
    tokenizer = load_tokenizer(config)
    model = build_model(config, "classification", labels=3, pad_token_id=tokenizer.pad_token_id, weights=True).eval()
    for name in head_modules(model, "classification"):
        for parameter in model.get_submodule(name).parameters():
            nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    together = logits(model, tokens(config))
    assert tokenizer.padding_side == "right"
    for row, text in enumerate(ROWS):
        torch.testing.assert_close(logits(model, tokens(config, [text])), together[row : row + 1], rtol=1e-4, atol=1e-5)


# Without weights


@pytest.mark.parametrize("pooling", ["auto", "mean"])
@pytest.mark.parametrize("kind", ["bert", "deberta-v2", "gpt2", "llama"])
def test_a_plan_reads_the_settings_only_and_has_the_same_tensors(tmp_path: Path, kind: str, pooling: str) -> None:
    saved(tmp_path, kind, BODY)
    config = at(tmp_path, pooling=pooling)
    shapes = {key: value.shape for key, value in classifier(config).state_dict().items()}
    (tmp_path / "model.safetensors").unlink()
    assert {key: value.shape for key, value in classifier(config, weights=False).state_dict().items()} == shapes


def test_random_weights_are_the_same_at_every_build_and_leave_the_generator_alone(tmp_path: Path) -> None:
    saved(tmp_path, "llama", CAUSAL)
    (tmp_path / "model.safetensors").unlink()
    models = []
    for seed in (1, 2):
        before = torch.manual_seed(seed).get_state()
        models.append(language_model(at(tmp_path, weights="random")))
        assert torch.equal(torch.random.get_rng_state(), before)
    first, again = models
    assert fingerprint(first.state_dict()) == fingerprint(again.state_dict())
    assert bool(torch.isfinite(logits(first, tokens(at(tmp_path)))).all())


# Dropout


@pytest.mark.parametrize("kind", HEADS)
def test_the_bases_dropout_is_what_is_asked_for_in_every_place(tmp_path: Path, kind: str) -> None:
    saved(tmp_path, kind, BODY)
    batch = tokens(at(tmp_path))
    outputs = {}
    for dropout in (0.0, 0.25):
        model = build_model(at(tmp_path, dropout=dropout), "classification", labels=3, pad_token_id=0, weights=True)
        assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} <= {dropout}
        numbers = {v for m in model.modules() for k, v in vars(m).items() if "dropout" in k and isinstance(v, float)}
        assert numbers <= {dropout}
        body: Any = model.base_model
        with torch.no_grad():
            outputs[dropout] = [body.train()(**batch).last_hidden_state for _ in range(2)]
    assert torch.equal(*outputs[0.0])
    assert not torch.equal(*outputs[0.25])


def test_a_pack_of_two_refuses_a_base_with_dropout(tmp_path: Path) -> None:
    saved(tmp_path, "bert", BODY)
    model = classifier(at(tmp_path, dropout=0.1))
    with pytest.raises(ValueError, match=r"has dropout 0.1: .* train a pack of one"):
        attached("lora", model, targets=["attention"], heads=["classifier"], configs=[knobs("lora", rank=2)] * 2)


# Types


class Words(Regression):
    """Random words and labels in batches of rows of unequal length."""

    def training_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        generator = stream(seed, "data")
        while True:
            mask = (torch.arange(16) < torch.randint(2, 16, (batch_size, 1), generator=generator)).long()
            yield {
                "input_ids": torch.randint(4, 64, (batch_size, 16), generator=generator) * mask,
                "attention_mask": mask,
            }

    def row_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        found = model(**batch).logits.float()
        if found.ndim == 2:
            return F.cross_entropy(found, batch["input_ids"][:, 0] % 3, reduction="none")
        losses = F.cross_entropy(found[:, :-1].mT, batch["input_ids"][:, 1:], reduction="none")
        return (losses * batch["attention_mask"][:, 1:]).sum(dim=1)

    def row_counts(self, batch: Batch) -> Tensor:
        return batch["attention_mask"].sum(dim=1).float()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["lora", "adalora", "full", "full_all"])
@pytest.mark.parametrize("kind", ["bert", "llama", "mean"])
def test_a_narrow_base_stays_narrow_and_what_trains_is_in_float32(
    tmp_path: Path, kind: str, name: str, dtype: str
) -> None:
    saved(tmp_path, "llama" if kind == "llama" else "bert", CAUSAL if kind == "llama" else BODY)
    config = at(tmp_path, dtype=dtype, pooling="mean" if kind == "mean" else "auto")
    model = language_model(config) if kind == "llama" else classifier(config)
    heads = head_modules(model, "causal_lm" if kind == "llama" else "classification")
    frozen = {key: value.clone() for key, value in model.state_dict().items() if not key.startswith("classifier")}
    assert {value.dtype for value in frozen.values()} == {getattr(torch, dtype)}
    variant = attached(name, model, targets=["all-linear"], heads=heads, configs=[knobs(name, rank=2)], rows=8)
    assert {value.dtype for value in variant.trained_tensors(0).values()} == {torch.float32}
    before = variant.trial_state(0)
    (outcome,) = trained(variant, steps=3, task=Words(), rows=8)
    assert outcome.failure is None
    assert all(not torch.equal(before[key], value) for key, value in variant.trained_tensors(0).items())
    plain = variant.detach().state_dict()
    assert all(torch.equal(value, plain[key]) for key, value in frozen.items())


@pytest.mark.parametrize("pooling", ["auto", "mean"])
def test_gradient_checkpointing_computes_layers_twice_and_changes_nothing(tmp_path: Path, pooling: str) -> None:
    saved(tmp_path, "bert", BODY)
    states, calls = [], []
    for gradient_checkpointing in (False, True):
        model = classifier(at(tmp_path, pooling=pooling))
        if gradient_checkpointing:
            use_gradient_checkpointing(model)
        config = knobs("lora", rank=2, dropout=0.2)
        variant = attached("lora", model, targets=["mlp"], heads=["classifier"], configs=[config], rows=8)
        counted: list[int] = []
        next(iter(variant.layers.values())).register_forward_hook(lambda *_, found=counted: found.append(1))
        trained(variant, steps=3, task=Words(), rows=8)
        states.append(variant.trial_state(0))
        calls.append(len(counted))
    assert calls == [3, 6]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
