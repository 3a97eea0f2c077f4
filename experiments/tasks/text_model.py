"""The pretrained model and tokenizer of a task on text: read once, and known by their content."""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

from torch import nn

from experiments.data.encoding import Count
from experiments.data.reading import DataError
from experiments.data.tokens import Tokens, cached_tokens, tokenizer_sha256
from experiments.models.architecture import (
    Kind,
    groups_queries,
    has_segments,
    head_modules,
    places,
    settings_of,
)
from experiments.models.model_card import ModelCard
from experiments.models.model_config import ModelConfig
from experiments.models.weights import Report

NOT_CONTENT = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "pad_token_id", "use_cache")


def counting(split: str, report: Report) -> Count:
    """A count of rows as a report on the tokens of a split."""
    return lambda done, total: report(f"tokenising {split}", done, total)


class TextModel:
    """What a task asks of its base; transformers is imported when something is asked."""

    def __init__(self, config: ModelConfig, kind: Kind, *, length_knob: str) -> None:
        self.config, self.kind, self.length_knob = config, kind, length_knob

    @cached_property
    def tokenizer(self) -> Any:
        from experiments.models.huggingface import load_tokenizer

        return load_tokenizer(self.config)

    @cached_property
    def tokenizer_sha256(self) -> str:
        return tokenizer_sha256(self.tokenizer)

    @property
    def pad(self) -> int:
        """The token that fills rows up: no layer reads it.

        Where the model has no embedding of the tokenizer's own, it is one that ends no row, since the classifiers of
        language models read the last token that is not this one.
        """
        of = self.tokenizer
        found = (of.pad_token_id, of.bos_token_id, of.cls_token_id, of.mask_token_id, of.eos_token_id, of.unk_token_id)
        return next((int(n) for n in found if n is not None and n < self.vocabulary), 0)

    def tokens(self, split: str, encode: Callable[[Any], Tokens], **depends_on: str | int | None) -> Tokens:
        """What `encode` makes of a split's texts with the tokenizer, from the cache where it is there.

        Raises: DataError for a text that the tokenizer cannot encode, or a token that the model has no embedding of.
        """
        found = cached_tokens(lambda: self._encode(split, encode), tokenizer=self.tokenizer_sha256, **depends_on)
        unknown = found.flat[found.flat >= self.vocabulary]
        if len(unknown):
            number = int(unknown[0])
            raise DataError(
                f"the {split} split has the token {self.tokenizer.convert_ids_to_tokens(number)!r} "
                f"{len(unknown)} times, number {number} of the tokenizer of {self.config.name!r}, and the model has "
                f"{self.vocabulary} embeddings; take it out of the texts or of the tokenizer, or name a model that has "
                f"an embedding of it (resize_token_embeddings)"
            )
        return found

    def _encode(self, split: str, encode: Callable[[Any], Tokens]) -> Tokens:
        try:
            return encode(self.tokenizer)
        except Exception as error:
            if type(error) is not Exception:
                raise
            raise DataError(  # a bare one is of the library tokenizers
                f"the tokenizer of {self.config.name!r} cannot encode the {split} split: {error}"
            ) from error

    @cached_property
    def settings(self) -> Any:
        from experiments.models.huggingface import model_settings

        return model_settings(self.config)

    @property
    def vocabulary(self) -> int:
        """How many tokens the model tells apart."""
        return int(self.settings.get_text_config().vocab_size)

    @property
    def spare(self) -> int:
        """Places to keep free behind training rows of unequal length, so that all trials of a step have padding.

        Only where the attention's kernel depends on it, and where a row may be longer than those trained on: learned
        positions may have no place to spare.
        """
        return int(groups_queries(self.settings) and hasattr(self.settings, "rope_parameters"))

    @property
    def takes_segments(self) -> bool:
        """Whether the model wants to know which text of a pair a token is of, and its tokenizer says it."""
        return "token_type_ids" in self.tokenizer.model_input_names and has_segments(self.settings)

    def find(self) -> None:
        """Raises: ModelError where the files of the weights are not there or torn; NotHereError."""
        from experiments.models.model_files import model_folder, weight_files
        from experiments.models.stored_weights import read_headers

        pretrained = self.config.weights == "pretrained"
        folder = model_folder(self.config, weights=pretrained)
        if pretrained:
            read_headers(self.config, weight_files(self.config, folder), "")

    def build(self, labels: int, *, length: int, weights: bool) -> nn.Module:
        """The model; without weights it needs no tokenizer.

        Raises: DataError where rows of this length have more places than the model has.
        """
        from experiments.models.huggingface import build_model

        pad = self.pad if weights else 0  # any: what is planned pads nothing
        model = build_model(self.config, self.kind, labels=labels, pad_token_id=pad, weights=weights)
        most = places(model)
        if most is not None and length > most:
            raise DataError(
                f"rows of {length} tokens are longer than the {most} places of model {self.config.name!r}; "
                f"set task.{self.length_knob}={most // 8 * 8}"
            )
        return model

    def heads(self, model: nn.Module) -> tuple[str, ...]:
        return head_modules(model, self.kind)

    @cached_property
    def facts(self) -> dict[str, str]:
        """Asked once: a branch on the Hub may move while a run trains."""
        from experiments.models.huggingface import content_of

        return content_of(self.config)

    def card(self, tokenizer_options: Mapping[str, Any], *, labels: tuple[str, ...] = (), rows: str = "") -> ModelCard:
        """How others load the model and its tokenizer; `tokenizer_options` are of the call that makes the inputs."""
        from experiments.models.huggingface import auto_class

        config = self.config
        name = config.name if config.folder is None else config.folder.name
        return ModelCard(
            name=name if config.weights == "pretrained" else None,
            auto_class=auto_class(config, self.kind).__name__,
            is_folder=config.folder is not None,
            revision=self.facts.get("model_commit"),
            dtype=config.dtype,
            remote_code=config.remote_code,
            pad_token=self.tokenizer.pad_token,
            tokenizer_options=tokenizer_options,
            pooling=config.pooling if self.kind == "classification" else None,
            labels=labels,
            rows=rows,
        )

    def use_gradient_checkpointing(self, model: nn.Module) -> None:
        from experiments.models.huggingface import use_gradient_checkpointing

        use_gradient_checkpointing(model)

    def sha256(self, model: nn.Module) -> dict[str, str]:
        """What W0's values do not say: the tokenizer, and the model's settings such as its number of heads."""
        settings = {key: value for key, value in settings_of(model).to_dict().items() if key not in NOT_CONTENT}
        text = json.dumps(settings, sort_keys=True, default=str)
        return {"tokenizer": self.tokenizer_sha256, "model_settings": hashlib.sha256(text.encode()).hexdigest()}
