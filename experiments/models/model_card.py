"""What others need to know of a base model to use what was learned on it without this project."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

TASK_TYPES = {"AutoModelForSequenceClassification": "SEQ_CLS", "AutoModelForCausalLM": "CAUSAL_LM"}  # PEFT's


@dataclass(frozen=True)
class ModelCard:
    """How transformers loads the base, and what a task reads of it.

    `name` is the Hub's, or that of a local folder without what is above it; None for a base that no one else can
    load: one of this project's own, or with random weights. `auto_class` is the class of transformers that loads it.
    `labels` are in the order of the logits; empty where the logits are of no labels. `rows` says how the task makes
    rows of texts where that is more than a call of the tokenizer.
    """

    name: str | None = None
    auto_class: str = ""
    is_folder: bool = False
    revision: str | None = None
    dtype: str = "float32"
    remote_code: bool = False
    pad_token: str = ""
    tokenizer_options: Mapping[str, Any] = field(default_factory=dict)
    pooling: str | None = None
    labels: tuple[str, ...] = ()
    rows: str = ""

    @property
    def task_type(self) -> str | None:
        """PEFT's name of the model that `auto_class` loads; None where PEFT cannot rebuild the whole of it."""
        return TASK_TYPES.get(self.auto_class) if self.name else None
