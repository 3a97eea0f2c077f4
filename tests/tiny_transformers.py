"""Tiny transformers with random weights, and folders that hold them as pretrained models are held."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

WORDS = ("<pad>", "<s>", "</s>", "<unk>", *(f"w{i}" for i in range(60)))
SHAPE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "share_att_key": True}


def tiny_config(kind: str, **more: Any) -> Any:
    """The configuration of a tiny model of an architecture."""
    import transformers as t

    gpt2 = {"vocab_size": 64, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
    distilbert = {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    vit = {key: value for key, value in SHAPE.items() if key != "vocab_size"} | {"image_size": 8, "patch_size": 4}
    made: dict[str, tuple[Any, dict[str, Any]]] = {
        "bert": (t.BertConfig, SHAPE),
        "roberta": (t.RobertaConfig, SHAPE | SPECIAL),
        "deberta-v2": (t.DebertaV2Config, SHAPE | RELATIVE),
        "distilbert": (t.DistilBertConfig, distilbert),
        "gpt2": (t.GPT2Config, gpt2 | {"bos_token_id": 1, "eos_token_id": 2}),
        "llama": (t.LlamaConfig, SHAPE | {"num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2}),
        "qwen2": (t.Qwen2Config, SHAPE | {"num_key_value_heads": 1}),
        "vit": (t.ViTConfig, vit),
        "bart": (t.BartConfig, {"vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}),
        "albert": (t.AlbertConfig, SHAPE | {"embedding_size": 16}),
    }
    config_class, knobs = made[kind]
    return config_class(**(knobs | more))


def tiny(kind: str, auto: str, **more: Any) -> nn.Module:
    """A tiny model of an architecture in one of its forms ('AutoModelForCausalLM'), the same at every call."""
    import transformers

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: nn.Module = getattr(transformers, auto).from_config(tiny_config(kind, **more))
    return model.eval()


def saved(folder: Path, kind: str, auto: str, *, words: Sequence[str] = WORDS, **more: Any) -> nn.Module:
    """A tiny model, after writing it and a tokenizer of these words into a folder."""
    model: Any = tiny(kind, auto, **more)
    model.save_pretrained(folder)
    save_tokenizer(folder, words)
    return model


def save_tokenizer(folder: Path, words: Sequence[str] = WORDS) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>").save_pretrained(folder)
