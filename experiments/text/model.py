"""The pretrained model and tokenizer of a task on text: read once, and known by their content."""

import hashlib
import json
from functools import cached_property
from typing import Any

from torch import nn

from experiments.bases.model_config import ModelConfig
from experiments.text.reading import DataError
from experiments.text.tokens import tokenizer_sha256

NOT_CONTENT = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "pad_token_id", "use_cache")


class TextModel:
    """What a task asks of its base; transformers is imported when something is asked."""

    def __init__(self, config: ModelConfig, kind: Any) -> None:
        self.config, self.kind = config, kind

    @cached_property
    def tokenizer(self) -> Any:
        from experiments.bases.huggingface import load_tokenizer

        return load_tokenizer(self.config)

    @cached_property
    def tokenizer_sha256(self) -> str:
        return tokenizer_sha256(self.tokenizer)

    @property
    def pad(self) -> int:
        return int(self.tokenizer.pad_token_id)

    def build(self, labels: int, *, length: int, weights: bool) -> nn.Module:
        """The model; without weights it needs no tokenizer.

        Raises: DataError where rows of this length have more places than the model has.
        """
        from experiments.bases.huggingface import build_model

        pad = self.pad if weights else 0  # any: what is planned pads nothing
        model = build_model(self.config, self.kind, labels=labels, pad_token_id=pad, weights=weights)
        places = getattr(_settings(model), "max_position_embeddings", None)
        if isinstance(places, int) and length > places - _places_apart(model):
            raise DataError(
                f"rows of {length} tokens are longer than the {places - _places_apart(model)} places of model "
                f"{self.config.name!r}"
            )
        return model

    def heads(self, model: nn.Module) -> tuple[str, ...]:
        from experiments.bases.huggingface import head_modules

        return head_modules(model, self.kind)

    def facts(self) -> dict[str, str]:
        from experiments.bases.huggingface import content_of

        return content_of(self.config)

    def use_checkpointing(self, model: nn.Module) -> None:
        from experiments.bases.huggingface import use_checkpointing

        use_checkpointing(model)

    def sha256(self, model: nn.Module) -> dict[str, str]:
        """What W0's values do not say: the tokenizer, and the model's settings such as its number of heads."""
        settings = {key: value for key, value in _settings(model).to_dict().items() if key not in NOT_CONTENT}
        text = json.dumps(settings, sort_keys=True, default=str)
        return {"tokenizer": self.tokenizer_sha256, "model_settings": hashlib.sha256(text.encode()).hexdigest()}


def _places_apart(model: nn.Module) -> int:
    """Learned positions that no token gets: RoBERTa counts from the one behind its padding's."""
    positions = [m for name, m in model.named_modules() if name.endswith("position_embeddings")]
    return next((m.padding_idx + 1 for m in positions if isinstance(m, nn.Embedding) and m.padding_idx is not None), 0)


def _settings(model: Any) -> Any:
    return model.base_model.config
