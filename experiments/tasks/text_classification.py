"""The `text_classification` task: a pretrained model of the user's choice learns the labels of texts, or a number."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.data.batching import back_in_order, evaluation_order, padded_length, training_order
from experiments.data.description import describe_labels, describe_sources, describe_tokens
from experiments.data.encoding import encode_texts
from experiments.data.examples import Columns, Labelled, doubts_of, read_examples
from experiments.data.reading import DataError, errors_together, one_part
from experiments.data.sources import read_splits, unread_warnings
from experiments.data.tables import Form
from experiments.data.tokens import Tokens
from experiments.models.architecture import one_trial_reason
from experiments.models.first_row import compute_first_row_only
from experiments.models.model_card import ModelCard
from experiments.models.weights import Report, silent
from experiments.tasks.metrics import Metric, class_counts, metric_range, products, score, spearman
from experiments.tasks.task import Batch, Predictions, Split, Task, TaskConfig, names_of, permuted
from experiments.tasks.text_classification_config import TextClassificationConfig
from experiments.tasks.text_config import few_rows_warnings, location, notes_of
from experiments.tasks.text_model import TextModel, counting

EVALUATION_ROWS = 64
MODEL_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class TextClassification(Task):
    """Batches are {"input_ids", "attention_mask": (rows, length), "labels": (rows,)}.

    Pairs of texts have "token_type_ids" (rows, length) too where the model tells the texts apart by them.
    """

    config_class: ClassVar[type[TaskConfig]] = TextClassificationConfig
    needs_model: ClassVar[bool] = True
    steps_alike: ClassVar[bool] = False  # the length of the rows is that of the step
    higher_is_better: ClassVar[bool] = True
    false_labels: ClassVar[tuple[str, ...]] = ("shuffled",)
    config: TextClassificationConfig

    def __init__(self, config: TextClassificationConfig, model_config: Any = None) -> None:
        super().__init__(config, model_config)
        self.knobs = config.knobs()
        self.metric_names: list[Metric] = self.knobs["metrics"]
        self.score_name = self.metric_names[0]
        self.base = TextModel(model_config, "classification", length_knob="max_length")

    @cached_property
    def columns(self) -> Columns:
        labels, regression = self.knobs["labels"], self.knobs["regression"]
        text = tuple(str(column) for column in self.knobs["text"])
        return Columns(text, str(self.knobs["label"]), tuple(labels) if labels else None, regression)

    @cached_property
    def data(self) -> Labelled:
        knobs, config = self.knobs, self.config
        where = location(config, knobs["path"], knobs)
        form = Form(config.format, header=knobs["header"], quoted=knobs["quoted"], encoding=knobs["encoding"])
        shares = {split: at for split in ("validation", "test") if isinstance(at := getattr(where, split), float)}
        with errors_together():
            subset, revision, labels = knobs.get("subset"), knobs.get("revision"), self.columns.labels or ()
            tables = read_splits(where, form, subset=subset, revision=revision, labels=labels)
            found = read_examples(
                tables, self.columns, shares,
                seed=config.split_seed, limit=config.train_rows, skip_malformed=config.skip_malformed,
            )  # fmt: skip
        if "f1" in self.metric_names and len(found.labels) != 2:
            raise DataError(f"task.metrics: f1 is that of the second of two labels, the data have {len(found.labels)}")
        doubts = doubts_of(found, self.columns, config.suspicious_labels, overlap_allowed=config.allow_overlap)
        doubts += unread_warnings(where, tables)
        doubts += few_rows_warnings(config.train_rows, len(found.splits["train"].labels))
        return replace(found, warnings=(*found.warnings, *doubts))

    @cached_property
    def outputs(self) -> int:
        """Logits of a row; known without the data where the labels are."""
        return 1 if self.columns.regression else len(self.columns.labels or self.data.labels)

    def read_data(self, report: Report = silent) -> None:
        splits = self.data.splits
        with errors_together():
            for split in splits:
                with one_part():
                    self.tokens(split, report)  # so that a text without a token is known now

    def tokens(self, split: str, report: Report = silent) -> Tokens:
        """The texts of a split, with the model's special tokens, at most `max_length` long."""
        if split not in self._tokens:
            examples, length, count = self.data.splits[split], self.config.max_length, counting(split, report)
            self._tokens[split] = self.base.tokens(
                split,
                lambda tokenizer: encode_texts(tokenizer, examples.texts, length, count),
                text=examples.sha256(),
                max_length=length,
            )
        return self._tokens[split]

    @cached_property
    def _tokens(self) -> dict[str, Tokens]:
        return {}

    @cached_property
    def _targets(self) -> dict[str, Tensor]:
        return {split: self.data.targets(split) for split in self.data.splits}

    def data_sha256(self) -> dict[str, str]:
        self.read_data()
        labels = ",".join(self.data.labels)
        hashes = {
            split: hashlib.sha256(f"{labels} {examples.sha256()}".encode()).hexdigest()
            for split, examples in self.data.splits.items()
        }
        return hashes | self.base.sha256(self.architecture())

    def data_facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            split: {
                "rows": len(examples.labels),
                "malformed": examples.malformed,
                "sources": [asdict(source) for source in examples.read],
                "rows_by_label": {} if self.columns.regression else dict(sorted(Counter(examples.labels).items())),
                "truncated": int(self.tokens(split).truncated.sum()),
                "tokens_lost": int(self.tokens(split).cut.sum()),
            }
            for split, examples in self.data.splits.items()
        }
        return facts | {"labels": len(self.data.labels)}

    def describe_data(self) -> dict[str, dict[str, str]]:
        found = {}
        for split, examples in self.data.splits.items():
            found[split] = {"rows": f"{len(examples.labels):,}", "left out": f"{examples.malformed:,}"}
            found[split] |= {"labels": describe_labels(examples.labels, self.data.labels)}
            found[split] |= {"read from": describe_sources(examples.read, self._elsewhere(split))}
            if split in self._tokens:
                tokens = self._tokens[split]
                found[split] |= describe_tokens(tokens, torch.arange(len(tokens.lengths)), self.config.max_length)
        return found

    def _elsewhere(self, split: str) -> dict[str, int]:
        """How many rows of the training files are in other splits, or in none by task.train_rows."""
        of_split = self.data.splits
        found = {f"for {name}": len(of_split[name].labels) for name in of_split if not of_split[name].read}
        left = sum(source.rows for source in of_split["train"].read) - len(of_split["train"].labels)
        unused = left - sum(found.values())
        return found | ({"left by task.train_rows": unused} if unused else {}) if split == "train" else {}

    def data_notes(self) -> list[str]:
        return notes_of(self.describe_data())

    def data_warnings(self) -> list[str]:
        return list(self.data.warnings)

    def find_base(self) -> None:
        self.base.find()

    def architecture(self) -> nn.Module:
        return self.base.build(self.outputs, length=self.config.max_length, weights=False)

    def base_model(self, report: Report = silent) -> nn.Module:
        return self.base.build(self.outputs, length=self.config.max_length, weights=True)

    def head_names(self, model: nn.Module) -> tuple[str, ...]:
        return self.base.heads(model)

    def training_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        """Rows of like length together, every row once an epoch; at each step all seeds have the same length."""
        for places, longest in training_order(self.tokens("train").lengths, batch_size, seed, spare=self.base.spare):
            yield self._batch("train", places, longest)

    def shuffled_batches(self, seed: int, batch_size: int) -> Iterator[Batch]:
        labels = permuted(self._targets["train"], seed)
        for places, longest in training_order(self.tokens("train").lengths, batch_size, seed, spare=self.base.spare):
            yield self._batch("train", places, longest) | {"labels": labels[places]}

    def evaluation_batches(self, split: Split) -> Iterator[Batch]:
        for places, longest in evaluation_order(self.tokens(split).lengths, EVALUATION_ROWS):
            yield self._batch(split, places, longest)

    def _batch(self, split: str, places: Tensor, longest: int) -> Batch:
        batch = self.tokens(split).padded(places, padded_length(longest), self.base.pad)
        wanted = MODEL_INPUTS if self.base.takes_segments else MODEL_INPUTS[:2]
        found = {key: batch[key] for key in wanted if key in batch}
        return found | {"labels": self._targets[split][places]}

    def row_losses(self, model: nn.Module, batch: Batch) -> Tensor:
        return self._losses(self._logits(model, batch), batch["labels"])

    def row_counts(self, batch: Batch) -> Tensor:
        return torch.ones(len(batch["labels"]), device=batch["labels"].device)

    def row_quantities(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits, labels = self._logits(model, batch), batch["labels"]
        predictions = logits[:, 0] if self.columns.regression else logits.argmax(dim=1)
        return {"loss": self._losses(logits, labels), "label": labels, "prediction": predictions}

    def metrics(self, means: Mapping[str, float]) -> dict[str, float]:
        return {"loss": means["loss"]} | {name: score(name, means) for name in self.metric_names if name != "spearman"}

    def split_metrics(self, rows: Mapping[str, Tensor], counts: Tensor) -> dict[str, float]:
        guesses, labels = rows["prediction"], rows["label"]
        regression = self.columns.regression
        found = products(guesses, labels) if regression else class_counts(guesses, labels, self.outputs)
        scores = super().split_metrics({"loss": rows["loss"]} | found, counts)
        return scores | {"spearman": spearman(guesses, labels)} if "spearman" in self.metric_names else scores

    def predictions(self, split: Split, rows: Mapping[str, Tensor], counts: Tensor) -> Predictions:
        order = back_in_order(self.tokens(split).lengths)
        in_order = {name: values[order] for name, values in rows.items()}
        found = super().predictions(split, in_order, counts[order])
        examples = self.data.splits[split]
        found |= {"file": examples.files, "line": torch.tensor(examples.lines)}
        for side in ("label", "prediction"):
            found[side] = in_order[side] if self.columns.regression else names_of(self.data.labels, in_order[side])
        return found

    @property
    def scores(self) -> tuple[str, ...]:
        return "loss", *self.metric_names

    @property
    def score_range(self) -> tuple[float, float]:
        return metric_range(self.metric_names[0])

    def base_facts(self) -> dict[str, str]:
        return self.base.facts

    def model_card(self) -> ModelCard:
        segments = self.base.takes_segments and len(self.columns.text) > 1
        options = {"truncation": True, "max_length": self.config.max_length, "return_token_type_ids": segments}
        return self.base.card(options, labels=tuple(self.data.labels))

    def trains_alone(self) -> str | None:
        return self._alone

    @cached_property
    def _alone(self) -> str | None:
        return one_trial_reason(self.architecture())

    def leave_out_unread_rows(self, model: nn.Module, wanted: bool) -> None:
        compute_first_row_only(model, wanted)

    def use_gradient_checkpointing(self, model: nn.Module) -> None:
        self.base.use_gradient_checkpointing(model)

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(**{key: batch[key] for key in MODEL_INPUTS if key in batch}).logits.float()

    def _losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Surprise at the label; in regression the squared error."""
        if self.columns.regression:
            return (logits[:, 0] - labels).square()
        return F.cross_entropy(logits, labels, reduction="none")
