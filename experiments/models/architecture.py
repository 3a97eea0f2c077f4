"""What an architecture asks of those who feed it and train it, read from its modules and its settings."""

from typing import Any, Literal

from torch import nn

from lora_variants.interface.attach import refuse_dependent_rows
from lora_variants.interface.pack import Pack

Kind = Literal["classification", "causal_lm"]

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")


def head_modules(model: nn.Module, kind: Kind) -> tuple[str, ...]:
    """The modules that no pretraining knows, trained by every variant alike: what is linear outside the model's body.

    A language model has none: its lm_head belongs to W0.
    """
    if kind == "causal_lm":
        return ()
    body = model.base_model
    return tuple(name for name, part in model.named_children() if part is not body and _is_linear_only(part))


def places(model: nn.Module) -> int | None:
    """How many tokens of a row have a position; None where the architecture does not say.

    RoBERTa's first positions are no token's: it counts from the one behind its padding's.
    """
    learned = [m for name, m in model.named_modules() if name.endswith("position_embeddings")]
    apart = (m.padding_idx + 1 for m in learned if isinstance(m, nn.Embedding) and m.padding_idx is not None)
    most = getattr(settings_of(model), "max_position_embeddings", None)
    return most - next(apart, 0) if isinstance(most, int) else None


def has_segments(settings: Any) -> bool:
    """Whether tokens of the first and of the second text of a pair have embeddings of their own, as in BERT."""
    return getattr(settings, "type_vocab_size", None) not in (None, 0, 1)


def groups_queries(settings: Any) -> bool:
    """Whether several queries share a key (grouped-query attention).

    There a batch without padding takes another kernel than one with padding, whose gradients have other last bits.
    """
    keys = getattr(settings, "num_key_value_heads", None)
    return isinstance(keys, int) and keys < settings.num_attention_heads


def one_trial_reason(model: nn.Module) -> str | None:
    """Why trials on this model cannot share a pack, whatever their targets; None where they can.

    They can where the rows that its layers see are independent, trial-major and drop nothing.
    """
    try:
        refuse_dependent_rows(model, Pack(seeds=(0, 1), total_steps=(0, 0)))
    except ValueError as error:
        return str(error)
    settings = settings_of(model)
    name = f"the base model ({getattr(settings, 'model_type', type(model).__name__)})"
    if getattr(settings, "relative_attention", False):
        return (
            f"{name} sends relative positions, which are no trial's rows, through its attention's projections; "
            f"train a pack of one"
        )
    if any((getattr(settings, knob, None) or 0) > 1 for knob in EXPERTS):
        return f"{name} sends tokens of all rows together to its experts; train a pack of one"
    return None


def settings_of(model: Any) -> Any:
    """The configuration that transformers built the model's body from."""
    return model.base_model.config


def _is_linear_only(module: nn.Module) -> bool:
    """Whether it has parameters and all of them are those of linear layers."""
    owners = [part for part in module.modules() if any(True for _ in part.parameters(recurse=False))]
    return bool(owners) and all(isinstance(owner, nn.Linear) for owner in owners)
