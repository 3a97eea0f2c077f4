"""On transformers made elsewhere, with rows of unequal length, a trial is the same alone and in a pack."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from pack_runs import VOCABULARY, Base, Tokens, assert_identical, run_pack, tiny_bert
from torch import Tensor, nn
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from experiments.tasks.task import Batch
from lora_variants.interface.rng import stream

LENGTH, PAD = 24, 0


class Padded(Tokens):
    """Rows of unequal length, padded on the right to the task's one length; no row fills it.

    So the arithmetic of a trial has the same shapes in any pack, and the attention mask is always there: without any
    padding transformers leaves the mask out and computes other bits.
    """

    def training_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        generator = stream(seed, "data")
        while True:
            tokens = torch.randint(1, VOCABULARY, (batch_size, LENGTH), generator=generator)
            lengths = torch.randint(2, LENGTH, (batch_size, 1), generator=generator)
            mask = (torch.arange(LENGTH) < lengths).long()
            yield {"input_ids": tokens * mask + PAD * (1 - mask), "attention_mask": mask}

    def row_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        tokens, mask = batch["input_ids"], batch["attention_mask"]
        logits = model(input_ids=tokens, attention_mask=mask).logits
        if logits.ndim == 2:
            return F.cross_entropy(logits, tokens[:, 0] % logits.shape[1], reduction="none")
        losses = F.cross_entropy(logits[:, :-1].mT, tokens[:, 1:], reduction="none")
        return (losses * mask[:, 1:]).sum(dim=1)

    def row_counts(self, batch: Batch) -> Tensor:
        return batch["attention_mask"].sum(dim=1).float()


SIZES = {"vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


def tiny_gpt2_classifier() -> nn.Module:
    still = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    shape = {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 2}
    return GPT2ForSequenceClassification(GPT2Config(**shape, **still, pad_token_id=PAD, num_labels=2, use_cache=False))


def tiny_llama() -> nn.Module:
    return LlamaForCausalLM(LlamaConfig(**SIZES, intermediate_size=64, num_key_value_heads=1, use_cache=False))


BASES = {
    "bert": Base(tiny_bert, ("all-linear",), ("classifier",)),
    "gpt2": Base(tiny_gpt2_classifier, ("attention-qv", "mlp"), ("score",)),
    "llama": Base(tiny_llama, ("all-linear",)),
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("name", ["lora", "adalora", "full"])
def test_rows_of_unequal_length_leave_a_trial_bit_identical_alone_and_in_a_pack(name: str, base: str) -> None:
    packed = run_pack(name, (0, 1, 2), base=BASES[base], task=Padded())
    for k, found in enumerate(packed):
        (alone,) = run_pack(name, (k,), base=BASES[base], task=Padded())
        assert_identical(alone, found)
    assert len({tuple(found.losses) for found in packed}) == 3


def tiny_deberta() -> nn.Module:
    relative = {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_buckets": 8,
        "share_att_key": True,
    }
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return DebertaV2ForSequenceClassification(
        DebertaV2Config(**SIZES, **relative, **still, intermediate_size=64, max_position_embeddings=32, num_labels=2)
    )


def deberta(*targets: str) -> Base:
    return Base(tiny_deberta, targets, ("pooler", "classifier"))


@pytest.mark.parametrize("name", ["lora", "adalora", "full"])
def test_deberta_is_refused_in_a_pack_where_positions_go_through_an_adapted_layer(name: str) -> None:
    for target in ("attention-qv", "*.key_proj"):
        with pytest.raises(
            ValueError, match=r"got 1 rows but the pack has 2 trials x 8 rows.*train it as a pack of one"
        ):
            run_pack(name, (0, 1), base=deberta(target), task=Padded())
    assert run_pack(name, (0,), base=deberta("all-linear"), task=Padded())[0].outcome.failure is None


@pytest.mark.parametrize("name", ["lora", "full"])
def test_debertas_other_layers_train_the_same_alone_and_in_a_pack(name: str) -> None:
    base = deberta("*.value_proj", "mlp")
    packed = run_pack(name, (0, 1), base=base, task=Padded())
    for k, found in enumerate(packed):
        (alone,) = run_pack(name, (k,), base=base, task=Padded())
        assert_identical(alone, found)


# What padding does to logits


@pytest.mark.parametrize("build", [tiny_gpt2_classifier, tiny_bert])
def test_more_padding_on_the_right_changes_no_logit_beyond_rounding(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model, (batch) = build().eval(), next(Padded().training_batches(1, 4))
    longer = {key: F.pad(rows, (0, 8)) for key, rows in batch.items()}
    with torch.no_grad():
        torch.testing.assert_close(model(**longer).logits, model(**batch).logits, rtol=1e-5, atol=1e-6)
