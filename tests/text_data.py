"""Tiny files and tiny random models with a tokenizer of their own: what tests of text tasks run on."""

import json
from pathlib import Path
from typing import Any

WORDS = ["a", "is", "was", "bad", "sees"]
SENTENCES = [
    f"the {size} {animal} {verb} {end}"
    for size in ("red", "blue", "small", "big")
    for animal in ("cat", "dog", "bird")
    for verb in ("runs", "sleeps", "sings")
    for end in ("", "not very good", "in the big red house")
]


def write_tokenizer(folder: Path) -> None:
    """A word-level tokenizer, trained here, in the files that transformers reads."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.WordLevelTrainer(special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]"])
    tokenizer.train_from_iterator([*SENTENCES, *WORDS], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    special |= {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    told = special | {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))


def write_model(folder: Path, kind: str) -> str:
    """A random BERT encoder ('bert') or a random Llama language model ('llama'); returns the folder's name."""
    import torch
    import transformers

    write_tokenizer(folder)
    shape: dict[str, Any] = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape |= {"intermediate_size": 32, "max_position_embeddings": 64, "pad_token_id": 0}
    torch.manual_seed(0)
    if kind == "bert":
        model = transformers.BertModel(transformers.BertConfig(**shape))
    else:
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape, bos_token_id=2, eos_token_id=3))
    model.save_pretrained(folder)
    return str(folder)


def write_labelled(folder: Path, *, test: bool = True) -> str:
    """train.tsv, dev.tsv (and test.tsv) with the columns 'sentence' and 'label': is the animal a cat?"""
    folder.mkdir(parents=True, exist_ok=True)
    for split, part in {
        "train": slice(0, 80),
        "dev": slice(80, 96),
        **({"test": slice(96, 108)} if test else {}),
    }.items():
        lines = [f"{sentence}\t{int('cat' in sentence)}" for sentence in _mixed()[part]]
        (folder / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *lines]) + "\n")
    return str(folder)


def _mixed() -> list[str]:
    return [SENTENCES[(i * 37) % len(SENTENCES)] for i in range(len(SENTENCES))]
