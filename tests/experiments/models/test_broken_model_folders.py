"""Folders whose files are broken: the file and what is wrong with it, in one line, before memory or time is spent."""

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_transformers import saved, tiny_config
from torch import Tensor, nn

from experiments.models.huggingface import ModelConfig, ModelError, build_model, load_tokenizer
from experiments.models.lfs_pointer import MARK

QUERY = "encoder.layer.1.attention.self.query.weight"
DEEP = b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
POINTER = MARK + b"\noid sha256:" + b"a" * 64 + b"\nsize 1\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved(tmp_path, "bert", "AutoModel")
    return tmp_path


def classifier(folder: Path, *, weights: bool = True, **more: Any) -> nn.Module:
    config = ModelConfig(name=str(folder), **more)
    return build_model(config, "classification", labels=3, pad_token_id=0, weights=weights)


def tokenizer(folder: Path) -> Any:
    return load_tokenizer(ModelConfig(name=str(folder)))


def refused(load: Callable[[], Any], message: str) -> None:
    """Loading fails at once with one line that says this."""
    since, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=message) as caught:
        load()
    assert str(caught.value).startswith("model.")
    assert "\n" not in str(caught.value)
    assert time.process_time() - since < 4
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def settings(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def weights(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    stored = load_file(folder / "model.safetensors")
    change(stored)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})


# config.json


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": 10**12}, "has hidden_size=1000000000000, which is from 1 to 1000000000 in a model"),
        ({"hidden_size": 10**30}, r"has hidden_size=10000000... \(31 digits\)"),
        ({"hidden_size": -32}, "has hidden_size=-32"),
        ({"hidden_size": 0}, "has hidden_size=0"),
        ({"hidden_size": 32.0}, "Field 'hidden_size' expected int, got float .value: 32.0"),
        ({"hidden_size": "32"}, "Field 'hidden_size' expected int, got str"),
        ({"hidden_size": 33}, r"describes no model that can be built: The hidden size \(33\) is not a multiple"),
        ({"hidden_size": 10**8}, "describes a model of more than 10,000,000,000,000 parameters"),
        ({"vocab_size": 10**11}, "has vocab_size=100000000000"),
        ({"vocab_size": -1}, "has vocab_size=-1"),
        ({"num_hidden_layers": 10**9}, "has num_hidden_layers=1000000000, which is from 0 to 1000 in a model"),
        ({"num_attention_heads": 0}, "has num_attention_heads=0"),
        ({"num_labels": 10**12}, "has num_labels=1000000000000"),
        ({"text_config": {"hidden_size": -1}}, "has text_config.hidden_size=-1"),
        ({"hidden_act": "no_such"}, "describes no model that can be built: unknown 'no_such'"),
        ({"dtype": "nonsense"}, "cannot be used: .*nonsense"),
        ({"id2label": "x"}, "cannot be used"),
    ],
)
def test_settings_that_no_model_has_are_refused_by_the_plan_and_by_the_run(
    folder: Path, values: dict[str, Any], message: str
) -> None:
    settings(folder, **values)
    for planned in (True, False):
        refused(lambda planned=planned: classifier(folder, weights=not planned), f"config.json of .*{message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "it is no JSON"),
        (b'"text"', "is not a map of settings"),
        (DEEP, "it is nested too deeply"),
        (b"\xef\xbb\xbf{}", "it begins with a byte-order mark; save it as UTF-8 without one"),
        ("{}".encode("utf-16"), "it is not UTF-8 text"),
        (b'{"layer_norm_eps": NaN}', "NaN is no number"),
        (POINTER, "is a pointer of Git LFS, not the file itself: run `git lfs pull`"),
    ],
)
@pytest.mark.parametrize(
    ("name", "load"), [("config.json", classifier), ("tokenizer.json", tokenizer), ("tokenizer_config.json", tokenizer)]
)
def test_a_file_that_is_no_json_is_named_with_what_it_is(
    folder: Path, name: str, load: Callable[..., Any], content: bytes, message: str
) -> None:
    (folder / name).write_bytes(content)
    refused(lambda: load(folder), f"{name} of .*{message}")


def test_a_file_of_gigabytes_is_not_read(folder: Path) -> None:
    os.truncate(folder / "config.json", 3 << 30)
    refused(lambda: classifier(folder), "config.json of .* has 3,221,225,472 bytes, at most 268,435,456 are read")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors", "chat_template.jinja"])
@pytest.mark.parametrize("kind", ["pipe", "loop", "folder"])
def test_what_is_no_file_is_named_and_nobody_waits_for_it(folder: Path, name: str, kind: str) -> None:
    path = folder / name
    path.unlink(missing_ok=True)
    make = {"pipe": lambda: os.mkfifo(path), "loop": lambda: path.symlink_to(name), "folder": path.mkdir}
    make[kind]()
    what = "is a folder, not a file" if kind == "folder" else "is no file but a pipe, a device or a link"
    refused(lambda: classifier(folder), f"{name} of .* {what}")


@pytest.mark.parametrize("name", ["/" + "a" * 5000, "a" * 300, "~no_such_user_here/model"])
def test_a_name_that_cannot_be_looked_up_is_an_error_of_the_configuration(name: str) -> None:
    with pytest.raises(
        ValueError, match=r"cannot be looked up: (File name too long|Could not determine home)"
    ) as caught:
        ModelConfig(name=name)
    assert len(caught.value.args[0] if caught.value.args else str(caught.value).splitlines()[2]) < 400


# Weights


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.update({QUERY: w[QUERY].to(torch.int8)}), f"{QUERY} in model.safetensors of .* is of type I8"),
        (lambda w: w.update({QUERY: w[QUERY].to(torch.float8_e4m3fn)}), "is of type F8_E4M3"),
        (lambda w: w.update({f"{QUERY}_scale": torch.ones(1)}), f"{QUERY}_scale of the weights of .* would be left"),
        (lambda w: [w.pop(key) for key in list(w)[1:]], "describes [0-9,]+ parameters, its weights are [0-9,]+"),
        (lambda w: w[QUERY].view(-1)[7:8].fill_(torch.nan), f"{QUERY} in model.safetensors of .* is not finite: the"),
        (lambda w: w[QUERY].view(-1)[7:8].fill_(torch.inf), f"{QUERY} in model.safetensors of .* is not finite"),
    ],
)  # fmt: skip
def test_weights_that_are_none_of_this_model_are_refused_by_tensor_and_file(
    folder: Path, change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    weights(folder, change)
    refused(lambda: classifier(folder), message)
    refused(lambda: classifier(folder, pooling="mean"), message)


def test_what_other_heads_and_buffers_leave_in_a_checkpoint_is_let_be(folder: Path) -> None:
    expected = classifier(folder).state_dict()
    more = {"cls.predictions.bias": torch.ones(64), "embeddings.position_ids": torch.arange(512)[None]}
    weights(folder, lambda stored: stored.update(more))
    found = classifier(folder).state_dict()
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_weight_too_large_for_the_type_it_is_read_in_names_the_type(folder: Path) -> None:
    weights(folder, lambda stored: stored[QUERY].fill_(1e6))
    refused(
        lambda: classifier(folder, dtype="float16"), f"model.dtype: float16 is too narrow for {QUERY} in model.safe"
    )
    assert classifier(folder, dtype="bfloat16")


def test_a_model_larger_than_the_memory_is_refused_before_its_weights_are_drawn(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.models.model_size._memory_bytes", lambda: 100_000.0)
    refused(
        lambda: classifier(folder), "describes 36,[0-9]+ parameters, .* GiB in model.dtype=float32, and this machine"
    )
    assert classifier(folder, weights=False)


def test_pointers_of_lfs_in_the_place_of_weights_are_named(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(POINTER)
    refused(lambda: classifier(folder), "model.safetensors of .* is a pointer of Git LFS")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (
            {"weight_map": {"a": "../../etc/passwd"}},
            "index.json of .* names '../../etc/passwd', which is no file of the folder itself",
        ),
        ({"weight_map": {"a": "/etc/passwd"}}, "names '/etc/passwd', which is no file"),
        ({"weight_map": {"a": 5}}, "names '5', which is no file"),
        ({"weight_map": []}, "has no weight_map"),
        ([], "is not a map of settings"),
        (
            {"weight_map": {"a": "part.safetensors"}},
            "lacks 1 of the 1 files that .*: part.safetensors; download it again",
        ),
    ],
)
def test_an_index_names_files_of_its_own_folder_only(folder: Path, index: Any, message: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(lambda: classifier(folder), message)


# What is not read does no harm


def test_a_broken_generation_config_is_not_read(tmp_path: Path) -> None:
    saved(tmp_path, "llama", "AutoModelForCausalLM")
    (tmp_path / "generation_config.json").write_bytes(DEEP)
    assert build_model(ModelConfig(name=str(tmp_path)), "causal_lm", labels=0, pad_token_id=0, weights=True)


def test_code_that_comes_with_a_known_architecture_never_runs(folder: Path) -> None:
    code = {"AutoConfig": "mine.Mine", "AutoModelForSequenceClassification": "mine.Mine"}
    settings(folder, auto_map=code)
    (folder / "mine.py").write_text("raise SystemExit('code of the model ran')")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"auto_map": {"AutoTokenizer": ["mine.Mine", None]}, "unk_token": "<unk>", "eos_token": "</s>"})
    )
    assert classifier(folder)
    assert tokenizer(folder)


def test_labels_with_gaps_in_a_checkpoint_do_not_count(folder: Path) -> None:
    settings(folder, id2label={"0": "a", "7": "b", "9": "c"})
    assert classifier(folder).classifier.out_features == 3  # type: ignore[union-attr]


def test_a_pad_token_beyond_the_embeddings_is_left_to_who_pads(tmp_path: Path) -> None:
    tiny_config("llama", pad_token_id=64).save_pretrained(tmp_path)
    config = ModelConfig(name=str(tmp_path))
    assert build_model(config, "causal_lm", labels=0, pad_token_id=1, weights=False).config.pad_token_id == 1  # type: ignore[union-attr]
