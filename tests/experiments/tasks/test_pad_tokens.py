"""A token that was added to a tokenizer and not to the model: harmless where it pads, refused in the data."""

from pathlib import Path
from typing import Any

import pytest
import torch
from text_data import SENTENCES, write_labelled, write_tokenizer

from experiments.data.reading import DataError
from experiments.models.model_config import ModelConfig
from experiments.tasks.language_modeling import LanguageModeling
from experiments.tasks.language_modeling_config import LanguageModelingConfig
from experiments.tasks.task import Task
from experiments.tasks.text_classification import TextClassification
from experiments.tasks.text_classification_config import TextClassificationConfig

SHAPE = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.data.tokens.cache_folder", lambda: tmp_path / "cache")


def model_in(folder: Path, kind: str, *, added: str | None, settings_know_it: bool = False) -> ModelConfig:
    """A random model with an embedding of every token but `added`, with which its tokenizer pads."""
    import transformers

    write_tokenizer(folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    own = len(tokenizer)
    if added is not None:
        tokenizer.add_special_tokens({"pad_token": added})
        assert tokenizer.pad_token_id == own
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    if kind == "bert":
        model: Any = transformers.BertModel(transformers.BertConfig(vocab_size=own, **SHAPE))
    else:
        config = transformers.LlamaConfig(vocab_size=own, bos_token_id=2, eos_token_id=3, **SHAPE)
        model = transformers.LlamaForCausalLM(config)
    if settings_know_it:
        model.config.pad_token_id = own
    model.save_pretrained(folder)
    return ModelConfig(name=str(folder), pooling="mean" if kind == "bert" else "auto")


def lines_in(folder: Path, *more: str) -> str:
    folder.mkdir()
    for i, name in enumerate(("train", "validation", "test")):
        lines = [*SENTENCES[20 * i : 20 * i + 20], *more]
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    return str(folder)


def task_of(kind: str, data: str, model: ModelConfig) -> Task:
    if kind == "llama":
        return LanguageModeling(LanguageModelingConfig(path=data, layout="lines", context=16, train="train"), model)
    return TextClassification(
        TextClassificationConfig(path=data, text=["sentence"], labels=["0", "1"], max_length=16), model
    )


@pytest.mark.parametrize("settings_know_it", [False, True])
@pytest.mark.parametrize(("kind", "architecture"), [("llama", "llama"), ("labels", "llama"), ("labels", "bert")])
def test_a_pad_token_that_the_model_has_no_embedding_of_changes_no_bit(
    tmp_path: Path, kind: str, architecture: str, settings_know_it: bool
) -> None:
    data = lines_in(tmp_path / "lines") if kind == "llama" else write_labelled(tmp_path / "labelled")
    models = [
        model_in(tmp_path / "own", architecture, added=None),
        model_in(tmp_path / "added", architecture, added="<added>", settings_know_it=settings_know_it),
    ]
    found = []
    padded = 0
    for model in models:
        task = task_of(kind, data, model)
        base = task.base_model().eval()
        if kind == "labels":  # else all heads are zero
            torch.manual_seed(1)
            for name in task.head_names(base):
                for parameter in base.get_submodule(name).parameters():
                    torch.nn.init.normal_(parameter.detach())
        batches = list(task.evaluation_batches("validation"))
        padded += sum(int((batch["attention_mask"] == 0).sum()) for batch in batches)
        found.append(torch.cat([task.row_losses(base, batch) for batch in batches]))
    assert padded > 0
    assert len(found[0].unique()) > 5
    assert torch.equal(*found)


def test_a_token_without_an_embedding_in_the_data_is_refused_by_name_and_number(tmp_path: Path) -> None:
    model = model_in(tmp_path / "added", "llama", added="<added>")
    lines_in(tmp_path / "lines", "the red <added> cat")
    expected = (
        r"the \w+ split has the token '<added>' 1 times, number (\d+) .* the model has \1 embeddings; take it out"
    )
    for _ in range(2):  # read from the texts, then from the cache
        with pytest.raises(DataError, match=expected):
            task_of("llama", str(tmp_path / "lines"), model).data_sha256()


def test_a_text_that_the_tokenizer_cannot_encode_is_an_error_of_the_data(tmp_path: Path) -> None:
    model = model_in(tmp_path / "own", "llama", added=None)
    file = tmp_path / "own" / "tokenizer.json"
    file.write_text(file.read_text().replace('"unk_token": "[UNK]"', '"unk_token": "[NONE]"'))
    task = task_of("llama", lines_in(tmp_path / "lines", "a zebra"), model)
    with pytest.raises(
        DataError, match=r"the tokenizer of .* cannot encode the (train|validation) split: WordLevel error"
    ):
        task.data_sha256()
