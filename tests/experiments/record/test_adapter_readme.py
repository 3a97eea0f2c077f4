"""A run's README.md: its own lines, run as they stand, give the run's own logits; so does PEFT where it says so."""

import ast
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from project_paths import CONFIGS
from text_data import SENTENCES, write_labelled
from tiny_transformers import saved
from torch import Tensor

from experiments.config.loading import load, resolve
from experiments.config.schema import RunConfig
from experiments.config.yaml_files import yaml_text
from experiments.models.model_card import ModelCard
from experiments.models.weights import fingerprint
from experiments.record.adapter_files import load_update, save_update
from experiments.record.adapter_reading import read_folder
from experiments.record.adapter_readme import Stored, readme
from experiments.runner import execute
from experiments.tasks.bytes import Bytes
from experiments.tasks.text_classification import TextClassification
from experiments.terminal import Display
from experiments.training.context import attached, load_task
from experiments.training.evaluation import evaluate, evaluate_plain
from lora_variants import VARIANTS
from lora_variants.interface.variant import Variant

WORDS = ("<pad>", "<s>", "</s>", "<unk>", *sorted({word for sentence in SENTENCES for word in sentence.split()}))
LABELS = ["no", "yes", "perhaps", "never", "always", "it's a 'cat'"]
FACTORED = ("lora", "rslora", "lora_plus", "adalora")


@dataclass(frozen=True)
class Base:
    """A tiny pretrained model and how a run uses it."""

    kind: str
    auto: str
    targets: list[str]
    rank: dict[str, int]
    model: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)


BERT = (["*.query", "*.value"], {"*": 3, "*.0.*.query": 0, "*.value": 2})
GPT2 = (["*.c_attn", "*.mlp.c_proj"], {"*": 3, "*.0.mlp.c_proj": 0, "*.c_attn": 2})
LLAMA = (["all-linear"], {"*": 3, "*.0.*.q_proj": 0, "*.v_proj": 2})
MEAN = {"pooling": "mean"}
BASES = {
    "bert, mean": Base("bert", "AutoModel", *BERT, MEAN),
    "bert": Base("bert", "AutoModel", *BERT),
    "bert with another head": Base("bert", "AutoModelForSequenceClassification", *BERT, settings={"num_labels": 3}),
    "roberta": Base("roberta", "AutoModel", *BERT),
    "distilbert": Base("distilbert", "AutoModel", ["*.q_lin", "*.v_lin"], {"*": 3, "*.v_lin": 2}),
    "deberta": Base("deberta-v2", "AutoModel", ["*_proj"], {"*": 3, "*.value_proj": 2}),
    "gpt2, mean": Base("gpt2", "AutoModel", *GPT2, MEAN),
    "gpt2": Base("gpt2", "AutoModel", *GPT2),
    "llama, mean": Base("llama", "AutoModel", *LLAMA, MEAN),
    "llama": Base("llama", "AutoModel", *LLAMA),
    "gpt2 language model": Base("gpt2", "AutoModelForCausalLM", *GPT2),
    "llama language model": Base("llama", "AutoModelForCausalLM", *LLAMA),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.data.tokens.cache_folder", lambda: tmp_path / "cache")


def write_labels(folder: Path) -> str:
    """Texts of unequal length with the six labels."""
    write_labelled(folder)
    for path in folder.glob("*.tsv"):
        header, *lines = path.read_text().splitlines()
        rows = [f"{line.rpartition(chr(9))[0]}\t{LABELS[i % 6]}" for i, line in enumerate(lines)]
        path.write_text("\n".join([header, *rows]) + "\n")
    return str(folder)


def configured(folder: Path, base: Base, variant: str, **task: Any) -> RunConfig:
    """A run on the base 'tiny'."""
    saved(folder / "tiny", base.kind, base.auto, words=WORDS, initializer_range=0.2, **base.settings)
    of_task: dict[str, Any]
    if base.auto == "AutoModelForCausalLM":
        (folder / "text.txt").write_text("\n\n".join(SENTENCES))
        of_task = {"name": "language_modeling", "path": str(folder / "text.txt"), "context": 16}
        of_task |= {"validation": 0.2, "test": 0.1}
    else:
        of_task = {"name": "text_classification", "path": write_labels(folder / "data"), "text": ["sentence"]}
        of_task |= {"labels": LABELS, "max_length": 16}
    ranks = {"rank": base.rank, "alpha": 16.0} if variant in FACTORED else {}
    return resolve(
        {
            "task": of_task | task,
            "model": {"name": str(folder / "tiny"), **base.model},
            "targets": base.targets,
            "variant": {"name": variant, **ranks},
            "training": {"steps": 3, "batch_size": 8, "threads": 1},
            "wandb": {"mode": "disabled"},
        }
    )


@dataclass(frozen=True)
class Learned:
    """A variant after random changes to all that trains, and the folder that it was written to."""

    task: Any
    variant: Variant
    folder: Path

    def config(self, layout: str = ".") -> dict[str, Any]:
        return json.loads((self.folder / layout / "adapter_config.json").read_text())

    def logits(self) -> tuple[list[Any], Tensor]:
        """What a tokenizer is called with, and what the run's own model makes of these texts in an evaluation."""
        if isinstance(self.task, TextClassification):
            order = torch.argsort(self.task.tokens("validation").lengths, stable=True).tolist()
            rows = [self.task.data.splits["validation"].texts[i] for i in order]
            texts = [list(side) for side in zip(*rows, strict=True)]
            batch = {k: t for k, t in next(self.task.evaluation_batches("validation")).items() if k != "labels"}
        else:
            texts = [SENTENCES[3:7]]
            inputs = self.task.base.tokenizer(*texts, add_special_tokens=False, padding=True, return_tensors="pt")
            batch = {key: inputs[key] for key in ("input_ids", "attention_mask")}
        self.variant.pack.rows = len(batch["input_ids"])
        with torch.no_grad():
            return texts, self.variant.model.eval()(**batch).logits.float()


def learned(folder: Path, config: RunConfig) -> Learned:
    task = load_task(config)
    model = task.base_model()
    sha256 = fingerprint(model.state_dict())
    variant = attached(config, task, model)
    generator = torch.Generator().manual_seed(1)
    for tensor in variant.trained_tensors(0).values():
        tensor += torch.randn(tensor.shape, generator=generator) * 0.1
    (folder / "run").mkdir()
    (folder / "run" / "config.yaml").write_text(yaml_text(config.tree()))
    save_update(variant, 0, folder / "run", task.model_card(), base_sha256=sha256)
    return Learned(task, variant, folder / "run")


def lines_of(folder: Path) -> str:
    """The Python of a README; asserts that it is short."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line]) <= 15
    return str(code)


def run_lines(folder: Path, monkeypatch: pytest.MonkeyPatch, base: Path | None = None) -> dict[str, Any]:
    """What the lines of a README define, run from inside its folder; the base is found under its name there."""
    if base is not None:
        (folder / base.name).symlink_to(base)
    monkeypatch.chdir(folder)
    namespace: dict[str, Any] = {}
    exec(lines_of(folder), namespace)
    return namespace


def assert_same_logits(found: Learned, namespace: Mapping[str, Any], rtol: float = 1e-4, atol: float = 1e-5) -> None:
    texts, expected = found.logits()
    torch.testing.assert_close(namespace["logits"](*texts).float(), expected, rtol=rtol, atol=atol)
    assert expected.std(dim=0).max() > 1e-2


EVERY = [(base, variant) for base in ("bert, mean", "gpt2", "gpt2 language model") for variant in VARIANTS]
SOME = [(base, variant) for base in BASES for variant in ("lora", "full_all") if (base, variant) not in EVERY]


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")  # the README speaks of them
@pytest.mark.parametrize(("base", "variant"), [*EVERY, *SOME])
def test_the_lines_of_the_readme_give_the_logits_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, variant: str
) -> None:
    found = learned(tmp_path, configured(tmp_path, BASES[base], variant))
    assert_same_logits(found, run_lines(found.folder, monkeypatch, tmp_path / "tiny"))
    if variant == "adalora":
        assert_same_logits(found, run_lines(found.folder / "adalora", monkeypatch, tmp_path / "tiny"))


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")
@pytest.mark.parametrize("variant", ["lora", "adalora"])
@pytest.mark.parametrize("base", [name for name, base in BASES.items() if not base.model])
def test_one_call_of_peft_gives_the_logits_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, variant: str
) -> None:
    found = learned(tmp_path, configured(tmp_path, BASES[base], variant))
    folder = found.folder / ("adalora" if variant == "adalora" else ".")
    namespace = run_lines(folder, monkeypatch, tmp_path / "tiny")
    (call,) = re.findall(r"`(AutoPeft.*?\))`", (folder / "README.md").read_text())
    monkeypatch.chdir(tmp_path)  # where the base's folder is
    namespace["model"] = model = eval(call, namespace | {"folder": str(folder)} | vars(peft))
    model.config.pad_token_id = namespace["tokenizer"].pad_token_id
    assert_same_logits(found, namespace)
    assert not model.training


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")
@pytest.mark.parametrize("variant", ["lora", "full", "full_all", "head"])
@pytest.mark.parametrize("base", ["bert", "bert, mean"])
def test_a_base_in_16_bits_gives_the_same_logits_to_16_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, base: str, variant: str
) -> None:
    narrow = replace(BASES[base], model={**BASES[base].model, "dtype": "bfloat16"})
    found = learned(tmp_path, configured(tmp_path, narrow, variant))
    assert_same_logits(found, run_lines(found.folder, monkeypatch, tmp_path / "tiny"), rtol=0, atol=0.03)
    assert "rounding of bfloat16" in (found.folder / "README.md").read_text()


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")
def test_pairs_of_texts_are_told_apart_in_the_lines_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configured(tmp_path, BASES["bert, mean"], "lora", text=["sentence", "sentence"])
    settings = json.loads((tmp_path / "tiny" / "tokenizer_config.json").read_text())
    settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (tmp_path / "tiny" / "tokenizer_config.json").write_text(json.dumps(settings))
    found = learned(tmp_path, config)
    assert "return_token_type_ids=True" in lines_of(found.folder)
    assert_same_logits(found, run_lines(found.folder, monkeypatch, tmp_path / "tiny"))


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")
def test_a_number_to_predict_is_one_logit_in_peft(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.LABELS", ["0.5", "1", "2", "3", "4", "5"])
    config = configured(tmp_path, BASES["bert"], "lora", regression=True, labels=None)
    found = learned(tmp_path, config)
    assert_same_logits(found, run_lines(found.folder, monkeypatch, tmp_path / "tiny"))
    assert found.config()["labels"] is None


def test_a_pooled_adapter_is_never_loaded_into_a_classifier_in_silence(tmp_path: Path) -> None:
    found = learned(tmp_path, configured(tmp_path, BASES["bert, mean"], "lora"))
    classifier = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "tiny", num_labels=6)
    with pytest.warns(UserWarning, match="missing adapter keys"):
        peft.PeftModel.from_pretrained(classifier, found.folder)
    with pytest.raises(ValueError, match="Cannot infer the auto class"):
        peft.AutoPeftModelForSequenceClassification.from_pretrained(found.folder)


@pytest.mark.parametrize("layout", [".", "adalora"])
def test_a_pooled_run_reads_back_what_it_wrote_under_its_own_names(tmp_path: Path, layout: str) -> None:
    found = learned(tmp_path, configured(tmp_path, BASES["bert, mean"], "adalora"))
    adapter = read_folder(found.folder / layout)
    assert set(adapter.updates) == set(found.variant.layers)
    assert set(adapter.others) == set(found.variant.head_tensors(0))
    plain = found.task.base_model().eval()
    load_update(plain, found.folder / layout)
    expected = evaluate(found.variant, found.task, "validation", "float32")[0]
    assert evaluate_plain(plain, found.task, "validation", "float32") == pytest.approx(expected, rel=1e-4)


def test_a_finished_run_says_what_it_was_learned_on_and_no_path(tmp_path: Path) -> None:
    config = configured(tmp_path, BASES["bert, mean"], "adalora")
    folder = execute(config, runs_dir=tmp_path / "runs", test=False, display=Display()).folder
    base_sha256 = json.loads((folder / "environment.json").read_text())["base_sha256"]
    for layout in (folder, folder / "adalora"):
        adapter = json.loads((layout / "adapter_config.json").read_text())
        assert adapter["base_model_name_or_path"] == "tiny"
        assert adapter["base_sha256"] == base_sha256
        assert (adapter["task_type"], adapter["pooling"], adapter["labels"]) == (None, "mean", LABELS)
        for path in (layout / "adapter_config.json", layout / "README.md"):
            assert str(tmp_path) not in path.read_text()


@pytest.mark.parametrize(
    ("base", "task_type", "pooling"), [("bert", "SEQ_CLS", "auto"), ("gpt2 language model", "CAUSAL_LM", None)]
)
def test_what_peft_can_rebuild_has_a_task_type(tmp_path: Path, base: str, task_type: str, pooling: str | None) -> None:
    adapter = learned(tmp_path, configured(tmp_path, BASES[base], "lora")).config()
    assert (adapter["task_type"], adapter["pooling"]) == (task_type, pooling)


def test_whole_ranks_and_alphas_are_integers(tmp_path: Path) -> None:
    text = json.dumps(learned(tmp_path, configured(tmp_path, BASES["bert"], "lora")).config())
    assert '"lora_alpha": 16,' in text
    assert re.search(r'"alpha_pattern": {("[\w.]+": 16(, )?){3}}', text)  # of ranks 2 and 3: scales 8 and 16 / 3
    assert not re.search(r"\d\.0\b", text.replace('"lora_dropout": 0.0', ""))


def test_random_weights_are_not_given_out_as_the_pretrained_model(tmp_path: Path) -> None:
    random = replace(BASES["bert, mean"], model={**MEAN, "weights": "random"})
    found = learned(tmp_path, configured(tmp_path, random, "lora"))
    adapter = found.config()
    assert (adapter["base_model_name_or_path"], adapter["task_type"]) == (None, None)
    assert "load_task" in lines_of(found.folder)


def printed_score(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    capsys.readouterr()
    run_lines(folder, monkeypatch)
    return ast.literal_eval(capsys.readouterr().out)


OURS = [(task, variant) for task in ("planted", "digits") for variant in ("lora", "full", "full_all")]


@pytest.mark.parametrize(("task", "variant"), [*OURS, ("bytes", "lora")])
def test_on_a_base_of_this_project_the_lines_print_the_score_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], task: str, variant: str
) -> None:
    monkeypatch.setattr("experiments.models.weights.cache_folder", lambda: tmp_path / "cache")
    monkeypatch.setattr(Bytes, "texts", dict.fromkeys(("train", "validation", "test"), " ".join(SENTENCES).encode()))
    quick = {"planted": "task.evaluation_rows=64"}.get(task, "task.pretraining_steps=1")
    found = learned(tmp_path, load(CONFIGS / f"{task}.yaml", variant=variant, overrides=[quick]))
    expected = evaluate(found.variant, found.task, "validation", "float32")[0]
    assert printed_score(found.folder, monkeypatch, capsys) == pytest.approx(expected, rel=1e-4)


def test_slices_written_dense_are_read_with_this_project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sliced = replace(BASES["gpt2"], targets=["*.c_attn[1/3]", "*.c_attn[3/3]"])
    found = learned(tmp_path, configured(tmp_path, sliced, "full"))
    expected = evaluate(found.variant, found.task, "validation", "float32")[0]
    assert printed_score(found.folder, monkeypatch, capsys) == pytest.approx(expected, rel=1e-4)


def test_a_folder_that_is_not_there_is_not_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = learned(tmp_path, configured(tmp_path, BASES["bert, mean"], "lora"))
    with pytest.raises(OSError, match=r"Repo id must use .* '\./tiny'"):
        run_lines(found.folder, monkeypatch)


def test_a_model_of_the_hub_is_loaded_at_the_commit_it_was_learned_on(tmp_path: Path) -> None:
    classifier = "AutoModelForSequenceClassification"
    card = ModelCard(
        "owner/model", classifier, revision="0a1b2c", remote_code=True, pad_token="<pad>", labels=("a", "b")
    )
    text = readme(card, Stored(has_adapter=True, has_delta=False, has_head=False, body=None, orientations=frozenset()))
    lines = text.splitlines()
    for loaded in ("AutoTokenizer.from_pretrained(base, ", f"{classifier}.from_pretrained(base, "):
        (line,) = [line for line in lines if loaded in line]
        assert "revision='0a1b2c'" in line
        assert "trust_remote_code=True" in line
    variant = learned(tmp_path, configured(tmp_path, BASES["bert"], "lora")).variant
    save_update(variant, 0, tmp_path, card, base_sha256="0" * 64)
    assert peft.PeftConfig.from_pretrained(tmp_path).revision == "0a1b2c"
