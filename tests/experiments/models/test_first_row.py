"""The rows that no head reads: leaving them out changes no number."""

from pathlib import Path
from typing import Any

import pytest
import torch
from project_paths import CONFIGS
from tiny_transformers import tiny_config
from torch import nn

from experiments.config.loading import load
from experiments.models.first_row import compute_first_row_only
from experiments.training.context import attached, load_task
from lora_variants.interface.attach import attach
from lora_variants.interface.pack import Pack
from lora_variants.lora import LoRA, LoRAConfig

SIZES: dict[str, Any] = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 100,
    "max_position_embeddings": 40, "num_labels": 3, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
TRIALS, ROWS, LENGTH = 2, 8, 12


def classifier(name: str, **changed: Any) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**(SIZES | changed))
    return getattr(transformers, f"{name}ForSequenceClassification")(config).double()


def gradients(model: nn.Module, *, padded: bool) -> list[torch.Tensor]:
    """Logits and all gradients of a pack in training."""
    pack = Pack(seeds=(0, 1), total_steps=(1, 1), rows=ROWS)
    heads = ["bert.pooler", "classifier"] if hasattr(model, "bert") else ["classifier.dense", "classifier.out_proj"]
    heads = [name for name in heads if isinstance(dict(model.named_modules()).get(name), nn.Linear)]
    config = LoRAConfig.model_validate({"rank": 2})
    variant = attach(LoRA, model, targets=["*.encoder.*"], head_modules=heads, pack=pack, configs=[config] * TRIALS)
    generator = torch.Generator().manual_seed(1)
    for layer in variant.layers.values():
        layer.B.detach().normal_(generator=generator)
    tokens = torch.randint(5, 100, (TRIALS * ROWS, LENGTH), generator=generator)
    mask = torch.ones_like(tokens)
    if padded:
        mask[::3, -4:] = 0
    logits = model.train()(tokens, attention_mask=mask).logits
    logits.square().sum().backward()
    return [logits.detach(), *(p.grad for group in _parameters(variant) for p in group)]


def _parameters(variant: Any) -> list[list[nn.Parameter]]:
    rates = torch.zeros(TRIALS, dtype=torch.float64)
    return [list(group.parameters) for group in variant.parameter_groups(rates, rates)]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["Bert", "Roberta"])
def test_logits_and_gradients_are_those_of_all_rows(name: str, padded: bool) -> None:
    whole, first = classifier(name), classifier(name)
    assert compute_first_row_only(first)
    for ours, theirs in zip(gradients(first, padded=padded), gradients(whole, padded=padded), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ["Bert", "Roberta"])
def test_the_rows_are_left_out_while_it_trains_and_there_alone(name: str) -> None:
    model = classifier(name)
    assert compute_first_row_only(model)
    encoder = model.get_submodule(f"{name.lower()}.encoder")
    seen: list[int] = []
    encoder.layer[-1].intermediate.register_forward_hook(lambda _, x, y: seen.append(x[0].shape[1]))
    tokens = torch.randint(5, 100, (ROWS, LENGTH))
    for training in (True, False):
        model.train(training)(tokens)
    assert seen == [1, LENGTH]


def test_the_layer_computes_all_rows_again_when_that_is_wanted() -> None:
    model = classifier("Bert")
    compute_first_row_only(model)
    assert not compute_first_row_only(model, wanted=False)
    for ours, theirs in zip(gradients(model, padded=True), gradients(classifier("Bert"), padded=True), strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_not_known_to_be_the_same_is_left_as_it_is() -> None:
    assert not compute_first_row_only(nn.Linear(2, 2))
    assert not compute_first_row_only(classifier("Bert", attention_probs_dropout_prob=0.1))


@pytest.mark.parametrize(
    ("batch_size", "parts", "left_out"), [(8, 1, True), (32, 2, True), (4, 1, False), (12, 1, False), (16, 4, False)]
)
def test_a_run_leaves_them_out_where_what_goes_through_at_once_is_a_multiple_of_eight_rows(
    tmp_path: Path, batch_size: int, parts: int, left_out: bool
) -> None:
    tiny_config("roberta", max_position_embeddings=514).save_pretrained(tmp_path)
    config = load(
        CONFIGS / "recipes" / "lora_roberta_base_glue.yaml",
        overrides=[
            f"model.name={tmp_path}",
            "model.dropout=0",
            f"batch_size={batch_size}",
            f"gradient_accumulation_steps={parts}",
        ],
    )
    task = load_task(config)
    variant = attached(config, task, task.architecture())
    variant.pack.rows = rows = batch_size // parts
    seen: list[int] = []
    last = variant.model.get_submodule("roberta.encoder.layer.1.intermediate")
    last.register_forward_hook(lambda _, x, y: seen.append(x[0].shape[1]))
    variant.model.train()(torch.randint(5, 60, (rows, LENGTH)))
    assert seen == [1 if left_out else LENGTH]
