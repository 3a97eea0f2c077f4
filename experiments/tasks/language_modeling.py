"""The `language_modeling` task: a causal language model of the user's choice learns a text of the user's choice."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.data.batching import back_in_order, evaluation_order, padded_length, training_order
from experiments.data.description import describe_sources, describe_tokens
from experiments.data.encoding import encode_lines, encode_stream
from experiments.data.passages import Layout, Texts, doubts_of, passages_sha256, read_passages, read_plain
from experiments.data.reading import DataError, errors_together, one_part
from experiments.data.rows import Malformed, refuse_malformed
from experiments.data.sources import enough, read_splits, unread_warnings
from experiments.data.tables import Form
from experiments.data.tokens import Tokens
from experiments.models.architecture import one_trial_reason
from experiments.models.model_card import ModelCard
from experiments.models.weights import Report, silent
from experiments.tasks.language_modeling_config import LanguageModelingConfig
from experiments.tasks.task import DIVERGED, Batch, Predictions, Split, Task, TaskConfig, permuted
from experiments.tasks.text_config import few_rows_warnings, location, notes_of
from experiments.tasks.text_model import TextModel, counting
from lora_variants.interface.rng import stream

LARGEST_EXPONENT = 700.0  # of a float64


class LanguageModeling(Task):
    """Batches are {"input_ids", "attention_mask", "marked": (rows, length + 1)}; marked tokens are predicted."""

    config_class: ClassVar[type[TaskConfig]] = LanguageModelingConfig
    needs_model: ClassVar[bool] = True
    steps_alike: ClassVar[bool] = False  # the length of the rows is that of the step
    score_name = "perplexity"
    higher_is_better: ClassVar[bool] = False
    false_labels: ClassVar[tuple[str, ...]] = ("shuffled", "base_model")
    config: LanguageModelingConfig

    def __init__(self, config: LanguageModelingConfig, model_config: Any = None) -> None:
        super().__init__(config, model_config)
        self.base = TextModel(model_config, "causal_lm", length_knob="context")
        self._tokens: dict[str, Tokens] = {}

    @cached_property
    def data(self) -> Texts:
        config, encoding = self.config, self.config.encoding or "utf-8"
        where = location(config, str(config.path), {})
        form = Form(config.format, encoding=encoding, of_txt="text")
        layout = Layout(
            config.layout, config.split, config.document_separator, config.prompt_separator, config.text, config.prompt
        )
        shares = {split: at for split in ("validation", "test") if isinstance(at := getattr(where, split), float)}
        found, forgetting = Texts({}), None
        with errors_together():
            with one_part():
                tables = read_splits(where, form, subset=config.subset, revision=config.revision)
                found = read_passages(
                    tables, layout, shares,
                    seed=config.split_seed, limit=config.train_rows, skip_malformed=config.skip_malformed,
                )  # fmt: skip
            if config.forgetting is not None:
                forgetting = read_plain(config.forgetting.path, encoding)
        doubts = doubts_of(found.passages, layout, allowed=config.allow_overlap) + unread_warnings(where, tables)
        passages = found.passages | ({"forgetting": forgetting} if forgetting else {})
        return replace(found, passages=passages, warnings=(*found.warnings, *doubts))

    def read_data(self, report: Report = silent) -> None:
        splits = self.data.passages
        with errors_together():
            for split in splits:
                with one_part():
                    self.tokens(split, report)  # so that a line without a token to score is known now

    def tokens(self, split: str, report: Report = silent) -> Tokens:
        """The rows of a split.

        Raises: DataError where there is nothing to predict, in all of it or in a line that is not to be skipped.
        """
        if split not in self._tokens:
            passages, config = self.data.passages[split], self.config
            in_lines, all_scored = config.layout == "lines" and split != "forgetting", config.score == "all"
            count = counting(split, report)

            def encode(tokenizer: Any) -> Tokens:
                if in_lines:
                    return encode_lines(tokenizer, passages, config.context, count, score_prompts=all_scored)
                return encode_stream(tokenizer, passages, config.context, count)

            found = self.base.tokens(
                split, encode, text=passages_sha256(passages), context=config.context, lines=in_lines,
                all_scored=all_scored,
            )  # fmt: skip
            if not found.scored.any():
                raise DataError(f"the {split} split has no token to score within task.context={config.context}")
            spared = split == "train" and in_lines and enough(int((found.scored > 0).sum()), {}, config.train_rows)
            if not config.skip_malformed and not spared:
                refuse_malformed(self._unscored(split, found), len(passages))
            self._tokens[split] = found
        return self._tokens[split]

    def _unscored(self, split: str, tokens: Tokens) -> list[Malformed]:
        """The lines without a token to score: their means would be 0 / 0."""
        most, passages, found = self.config.context + 1, self.data.passages[split], []
        for i in (tokens.scored == 0).nonzero().flatten().tolist():
            short = "has no second token to predict"
            long = f"none of its first {most} tokens is scored; shorten the prompt or raise task.context"
            reason = short if tokens.lengths[i] < 2 else long
            found.append(Malformed(passages[i].place, passages[i].line, reason))
        return found

    def rows_of(self, split: str) -> Tensor:
        """Places of the rows of a split that are used; limits are drawn by the split seed or spread evenly."""
        usable, config = self.tokens(split).scored.nonzero().flatten(), self.config
        rows = len(usable)
        if split == "train":
            limit = min(rows, config.train_rows or rows)
            return usable[torch.randperm(rows, generator=stream(config.split_seed, "limit"))[:limit].sort().values]
        most = config.forgetting.windows if split == "forgetting" and config.forgetting else config.evaluation_rows
        return usable[torch.arange(min(rows, most or rows)) * rows // min(rows, most or rows)]

    def data_sha256(self) -> dict[str, str]:
        self.read_data()
        hashes = {split: passages_sha256(passages) for split, passages in self.data.passages.items()}
        return hashes | self.base.sha256(self.architecture())

    def data_facts(self) -> dict[str, Any]:
        return {
            split: {
                "rows": len(self.rows_of(split)),
                "tokens": int((self.tokens(split).lengths[self.rows_of(split)] - 1).sum()),
                "malformed": self.data.malformed(split) + int((self.tokens(split).scored == 0).sum()),
                "sources": [asdict(source) for source in self.data.read.get(split, [])],
                "truncated": int(self.tokens(split).truncated[self.rows_of(split)].sum()),
                "tokens_lost": int(self.tokens(split).cut[self.rows_of(split)].sum()),
            }
            for split in self.data.passages
        }

    def describe_data(self) -> dict[str, dict[str, str]]:
        found = {}
        for split, passages in self.data.passages.items():
            found[split] = {"passages": f"{len(passages):,}"}
            if split != "forgetting":
                found[split] |= {"read from": describe_sources(self.data.read.get(split, []), self._elsewhere(split))}
            if split in self._tokens:
                used, tokens = self.rows_of(split), self._tokens[split]
                malformed = self.data.malformed(split) + int((tokens.scored == 0).sum())
                found[split] |= {"rows": f"{len(used):,} of {self._all(split)}", "left out": f"{malformed:,}"}
                found[split] |= describe_tokens(tokens, used, self.config.context + 1)
        return found

    def _elsewhere(self, split: str) -> dict[str, int]:
        """How many passages of the training files are in other splits."""
        shares = self.data.passages.keys() - self.data.read.keys() - {"forgetting"}
        return {f"for {name}": len(self.data.passages[name]) for name in sorted(shares)} if split == "train" else {}

    def _all(self, split: str) -> str:
        """How many rows there are, and the knob for which not all of them are used."""
        tokens = self._tokens[split]
        limit = {"train": "task.train_rows", "forgetting": "task.forgetting.windows"}.get(split, "task.evaluation_rows")
        is_limited = len(self.rows_of(split)) < int((tokens.scored > 0).sum())
        return f"{len(tokens.lengths):,}{f' ({limit})' * is_limited}"

    def data_notes(self) -> list[str]:
        return notes_of(self.describe_data())

    def data_warnings(self) -> list[str]:
        few = few_rows_warnings(self.config.train_rows, len(self.rows_of("train"))) if "train" in self._tokens else []
        return [*self.data.warnings, *few]

    @property
    def has_forgetting_split(self) -> bool:
        return self.config.forgetting is not None

    def architecture(self) -> nn.Module:
        return self.base.build(0, length=self.config.context, weights=False)

    def base_model(self, report: Report = silent) -> nn.Module:
        return self.base.build(0, length=self.config.context, weights=True)

    def find_base(self) -> None:
        self.base.find()

    def base_facts(self) -> dict[str, str]:
        return self.base.facts

    def training_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        """Rows of like length together, every row once an epoch; at each step all seeds have the same length."""
        used = self.rows_of("train")
        for places, longest in training_order(
            self.tokens("train").lengths[used], batch_size, seed, spare=self.base.spare
        ):
            yield self._batch("train", used[places], longest)

    def shuffled_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        """The tokens that are predicted, permuted over all rows."""
        tokens, used = self.tokens("train"), self.rows_of("train")
        flat = tokens.flat.clone()
        flat[tokens.marked] = permuted(tokens.flat[tokens.marked], seed)
        others = replace(tokens, flat=flat)
        for places, longest in training_order(tokens.lengths[used], batch_size, seed, spare=self.base.spare):
            batch = self._batch("train", used[places], longest)
            targets = others.padded(used[places], batch["input_ids"].shape[1], self.base.pad)["input_ids"]
            yield batch | {"targets": targets[:, 1:]}

    def targets_shape(self, batch: Batch) -> tuple[int, ...]:
        rows, length = batch["input_ids"].shape
        return rows, length - 1

    def target_logits(self, model: nn.Module, batch: Batch) -> Tensor:
        seen = batch["attention_mask"][:, 1:]  # a row's last token predicts none, so it counts as padding
        found: Tensor = model(input_ids=batch["input_ids"][:, :-1], attention_mask=seen).logits.float()
        return found

    def evaluation_batches(self, split: Split) -> Iterator[Batch]:
        used = self.rows_of(split)
        rows = max(1, 8192 // self.config.context)  # about as many tokens in any context
        for places, longest in evaluation_order(self.tokens(split).lengths[used], rows):
            yield self._batch(split, used[places], longest)

    def _batch(self, split: str, places: Tensor, longest: int) -> Batch:
        return self.tokens(split).padded(places, padded_length(longest - 1) + 1, self.base.pad)

    def row_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        scored, targets = batch["marked"][:, 1:], batch.get("targets", batch["input_ids"][:, 1:])
        logits = self.target_logits(model, batch)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return (losses.view(scored.shape) * scored).sum(dim=1)

    def row_counts(self, batch: Batch) -> Tensor:
        return batch["marked"][:, 1:].sum(dim=1).float()

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        return {"loss": means["loss"], "perplexity": _perplexity(means["loss"])}

    def predictions(self, split: Split, rows: Mapping[str, Tensor], counts: Tensor) -> Predictions:
        used = self.rows_of(split)
        order = back_in_order(self.tokens(split).lengths[used])
        found = super().predictions(split, {"loss": rows["loss"][order]}, counts[order])
        found |= {"row": used, "tokens": counts[order].long()}
        if self.config.layout == "lines" and split != "forgetting":
            passages = [self.data.passages[split][i] for i in used.tolist()]
            found["file"] = [Path(passage.place).name for passage in passages]
            found["line"] = torch.tensor([passage.line for passage in passages])
        return found

    @property
    def score_range(self) -> tuple[float, float]:
        return 1.0, _perplexity(DIVERGED * math.log(self.base.vocabulary))

    def model_card(self) -> ModelCard:
        in_lines = "a row is the begin token, the prompt, the text and the end token, where the tokenizer has them"
        rows = in_lines if self.config.layout == "lines" else "a row is a window of the text, without special tokens"
        options = {"add_special_tokens": False, "return_token_type_ids": False}
        return self.base.card(options, rows=rows)

    def trains_alone(self) -> str | None:
        return self._alone

    @cached_property
    def _alone(self) -> str | None:
        return one_trial_reason(self.architecture())

    def use_gradient_checkpointing(self, model: nn.Module) -> None:
        self.base.use_gradient_checkpointing(model)


def _perplexity(loss: float) -> float:
    return math.exp(min(loss, LARGEST_EXPONENT))
