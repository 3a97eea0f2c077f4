"""Base models that cannot be had: each error is one line, before anything is computed."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_transformers import WORDS, save_tokenizer, saved, tiny_config
from torch import nn

from experiments.models.huggingface import ModelConfig, ModelError, build_model, content_of, load_tokenizer

CLASSIFIER, CAUSAL, BODY = "AutoModelForSequenceClassification", "AutoModelForCausalLM", "AutoModel"


def classifier(config: ModelConfig, *, weights: bool = True) -> nn.Module:
    return build_model(config, "classification", labels=3, pad_token_id=0, weights=weights)


def language_model(config: ModelConfig, *, weights: bool = True) -> nn.Module:
    return build_model(config, "causal_lm", labels=0, pad_token_id=0, weights=weights)


def at(folder: Path, **more: Any) -> ModelConfig:
    return ModelConfig(name=str(folder), **more)


def refused(message: str, load: Callable[[ModelConfig], Any], config: ModelConfig) -> None:
    """Loading fails with one line that says this."""
    with pytest.raises(ModelError, match=message) as caught:
        load(config)
    assert str(caught.value).startswith("model.")
    assert "\n" not in str(caught.value)


def change(path: Path, **values: Any) -> None:
    """Other values in a file of settings."""
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# Folders


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    for load in (load_tokenizer, classifier, content_of):
        refused("has no config.json; name the folder of a whole model", load, at(tmp_path))


def test_the_folder_of_an_adapter_is_refused_with_the_way_to_start_from_it(tmp_path: Path) -> None:
    saved(tmp_path, "bert", BODY)
    (tmp_path / "adapter_config.json").write_text("{}")
    refused(
        "is an adapter; name the model it was trained on and start from it with start.path=", classifier, at(tmp_path)
    )


def test_a_torn_file_of_weights_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "bert", BODY)
    whole = (tmp_path / "model.safetensors").read_bytes()
    for kept in (len(whole) - 1, 1000, 4, 0):
        (tmp_path / "model.safetensors").write_bytes(whole[:kept])
        refused(
            "model.safetensors of .* is torn or no safetensors file .*; download it again", classifier, at(tmp_path)
        )


def test_a_missing_part_of_the_weights_is_refused_and_all_parts_together_load(tmp_path: Path) -> None:
    model: Any = saved(tmp_path, "bert", BODY)
    (tmp_path / "model.safetensors").unlink()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    parts = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(parts) > 2
    found = classifier(at(tmp_path)).state_dict()
    assert all(torch.equal(found[f"bert.{key}"], value) for key, value in model.state_dict().items())
    parts[1].unlink()
    refused(f"lacks 1 of the {len(parts)} files that .*index.json names: {parts[1].name}", classifier, at(tmp_path))


def test_pickled_weights_are_read_only_where_that_is_asked_for_and_run_no_code(tmp_path: Path) -> None:
    model = saved(tmp_path, "bert", BODY)
    (tmp_path / "model.safetensors").unlink()
    refused("has no weights in model.safetensors; .* model.weights=random", classifier, at(tmp_path))
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    refused("weights in pytorch_model.bin only, not in safetensors; model.pickled=true", classifier, at(tmp_path))
    found = classifier(at(tmp_path, pickled=True)).state_dict()
    assert all(torch.equal(found[f"bert.{key}"], value) for key, value in model.state_dict().items())
    torch.save({"weight": Harmful(tmp_path / "harm")}, tmp_path / "pytorch_model.bin")
    refused("cannot be loaded: ", classifier, at(tmp_path, pickled=True))
    assert not (tmp_path / "harm").exists()


class Harmful:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "no_such_type"}, "config.json of .* cannot be used: .*no_such_type"),
        (
            {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}},
            "needs Python code .* model.remote_code=true",
        ),
        ({"quantization_config": {"bits": 4}}, "the weights of .* are quantised; name the model they were made from"),
    ],
)
def test_settings_that_cannot_be_used_are_refused_and_run_no_code(
    tmp_path: Path, values: dict[str, Any], message: str
) -> None:
    saved(tmp_path, "bert", BODY)
    (tmp_path / "mine.py").write_text("raise SystemExit('code of the model ran')")
    change(tmp_path / "config.json", **values)
    for weights in (True, False):
        refused(message, lambda config, weights=weights: classifier(config, weights=weights), at(tmp_path))


def test_a_file_of_settings_that_is_no_json_is_refused(tmp_path: Path) -> None:
    for text in ("{", "[]"):
        (tmp_path / "config.json").write_text(text)
        refused("config.json of .* (cannot be read|is not a map of settings)", content_of, at(tmp_path))


# Tokenizers


def test_a_tokenizer_that_knows_more_tokens_than_there_are_embeddings_is_refused(tmp_path: Path) -> None:
    saved(tmp_path, "bert", BODY, words=(*WORDS, "more"))
    refused("numbers its tokens up to 64 but the model has 64 embeddings", load_tokenizer, at(tmp_path))
    save_tokenizer(tmp_path, WORDS[:-1])
    assert len(load_tokenizer(at(tmp_path))) == 63
    file = tmp_path / "tokenizer.json"
    file.write_text(file.read_text().replace('"w9": 13', '"w9": 70'))
    refused("numbers its tokens up to 70 but the model has 64 embeddings", load_tokenizer, at(tmp_path))


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_model_without_a_tokenizer_is_refused(tmp_path: Path, kind: str) -> None:
    saved(tmp_path, kind, BODY)
    for path in tmp_path.glob("*token*"):
        path.unlink()
    refused("has no tokenizer, no tokenizer.json, vocab.txt, ", load_tokenizer, at(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    refused("the tokenizer of .* cannot be used", load_tokenizer, at(tmp_path))


# Weights


@pytest.mark.parametrize("problem", ["missing", "of another shape"])
def test_a_weight_that_is_not_in_the_checkpoint_is_refused_unless_it_is_the_heads(tmp_path: Path, problem: str) -> None:
    saved(tmp_path, "bert", BODY)
    stored, lost = load_file(tmp_path / "model.safetensors"), "encoder.layer.1.output.dense.weight"
    stored[lost] = stored[lost][:, :8].contiguous()
    if problem == "missing":
        del stored[lost]
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})
    message = r"BertForSequenceClassification: 1 of its weights .* random: bert.encoder.layer.1.output.dense.weight$"
    refused(message, classifier, at(tmp_path))
    refused("BertModel: 1 of its weights", classifier, at(tmp_path, pooling="mean"))


def test_a_pooler_that_no_one_trained_is_refused_and_mean_pooling_needs_none(tmp_path: Path) -> None:
    saved(tmp_path, "bert", "AutoModelForMaskedLM")
    refused("random: bert.pooler.dense.bias, .*; model.pooling=mean needs no pooler", classifier, at(tmp_path))
    assert classifier(at(tmp_path, pooling="mean")).training is not None


def test_an_lm_head_that_no_one_trained_is_refused_unless_it_is_tied(tmp_path: Path) -> None:
    saved(tmp_path / "llama", "llama", BODY)
    refused("was not trained as a LlamaForCausalLM: .*: lm_head.weight$", language_model, at(tmp_path / "llama"))
    saved(tmp_path / "gpt2", "gpt2", BODY)
    language_model(at(tmp_path / "gpt2"))


# Kinds of task


@pytest.mark.parametrize(
    ("kind", "load", "message"),
    [
        ("bert", language_model, r"\(bert\) sees the tokens that it would have to predict; choose a causal"),
        ("roberta", language_model, "sees the tokens that it would have to predict"),
        ("deberta-v2", language_model, r"\(deberta-v2\) has no form for causal lm in transformers$"),
        ("bart", language_model, r"\(bart\) is an encoder and a decoder; choose a model that is one of them"),
        ("bart", classifier, r"\(bart\) is an encoder and a decoder"),
        ("vit", classifier, r"\(vit\) has no form for classification in transformers; model.pooling=mean may do"),
    ],
)
def test_an_architecture_that_is_not_made_for_the_task_is_refused_by_the_plan_already(
    tmp_path: Path, kind: str, load: Callable[..., Any], message: str
) -> None:
    tiny_config(kind).save_pretrained(tmp_path)
    refused(message, lambda config: load(config, weights=False), at(tmp_path))


def test_a_bert_that_is_a_decoder_is_a_language_model(tmp_path: Path) -> None:
    tiny_config("bert", is_decoder=True).save_pretrained(tmp_path)
    assert language_model(at(tmp_path), weights=False)


def test_classification_needs_a_pad_token(tmp_path: Path) -> None:
    tiny_config("gpt2").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="rows of unequal length need a pad token"):
        build_model(at(tmp_path), "classification", labels=2, pad_token_id=None, weights=False)


# The Hub


def http_error(kind: str) -> Exception:
    """An exception as the Hub's client raises it."""
    from huggingface_hub import errors

    class Response:
        headers: Mapping[str, str] = {}
        status_code, request, text = 403, None, ""

        def json(self) -> dict[str, str]:
            return {}

    error_class = getattr(errors, kind)
    if issubclass(error_class, errors.HfHubHTTPError):
        return error_class("403 Client Error. (Request ID: x)\n\nmore", response=Response())
    return error_class("no outgoing traffic")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "GatedRepoError",
            r"'some/model' at revision 'v2' is gated: accept its terms at https://huggingface.co/some/model and log in",
        ),
        (
            "RepositoryNotFoundError",
            r"'some/model' at revision 'v2' is neither a folder here nor a public model on the Hub",
        ),
        ("RevisionNotFoundError", r"'some/model' has no revision 'v2' on the Hub; name a branch, a tag or a commit"),
        ("LocalEntryNotFoundError", r"the Hub cannot be reached; get a network \(and unset HF_HUB_OFFLINE\), or name"),
        ("OfflineModeIsEnabled", r"the Hub cannot be reached; get a network"),
        ("HFValidationError", r"nor a possible name on the Hub, which is 'model' or 'owner/model'"),
        ("HfHubHTTPError", r"could not be read from the Hub: 403 Client Error. \(Request ID: x\)$"),
    ],
)
@pytest.mark.parametrize("load", [load_tokenizer, classifier])
def test_each_way_in_which_the_hub_fails_has_its_own_words(
    monkeypatch: pytest.MonkeyPatch, load: Callable[[ModelConfig], Any], kind: str, message: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise http_error(kind)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(ModelError, match=f"^model.name: .*{message}") as caught:
        load(ModelConfig(name="some/model", revision="v2"))
    assert "\n" not in str(caught.value)


def test_offline_a_name_that_is_not_in_the_cache_is_an_error_and_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match="'no-such-model' is not a folder, not whole in the cache, and the Hub"):
        classifier(ModelConfig(name="no-such-model"))


def test_a_name_becomes_a_folder_of_the_cache_whose_name_is_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, asked = tmp_path / "0123abc", []
    saved(folder, "bert", BODY)

    def download(name: str, *, revision: str, allow_patterns: list[str]) -> str:
        asked.append((name, revision, {pattern for pattern in allow_patterns if "model." in pattern}))
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    config = ModelConfig(name="some/bert", revision="main")
    assert content_of(config) == {"model_type": "bert", "model_commit": "0123abc"}
    classifier(config, weights=False)
    classifier(config)
    classifier(ModelConfig(name="some/bert", revision="main", pickled=True))
    wanted = {"model.safetensors", "model.safetensors.index.json"}
    pickled = {"pytorch_model.bin", "pytorch_model.bin.index.json"}
    assert [patterns for _, _, patterns in asked] == [set(), set(), wanted, wanted | pickled]
    assert {(name, revision) for name, revision, _ in asked} == {("some/bert", "main")}
