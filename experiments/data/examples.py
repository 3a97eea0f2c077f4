"""Labelled texts: rows of tables become texts with a number each; what is malformed is found before anything runs."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from experiments.data.columns import NO_HEADER, with_columns
from experiments.data.doubts import (
    NUMBER,
    SHOWN,
    Suspicion,
    doubts_of_labels,
    garbled_warnings,
    looks_missing,
    one_label_warnings,
    overlap_warnings,
    repeat_warnings,
    settled,
)
from experiments.data.reading import DataError, errors_together, one_part
from experiments.data.rows import (
    Malformed,
    Row,
    SourceRead,
    Table,
    refuse_malformed,
    refuse_without_rows,
    source_read,
)
from experiments.data.sources import enough, split_rows

MOST = torch.finfo(torch.float32).max  # of the numbers that are predicted


@dataclass(frozen=True)
class Columns:
    """Where text (one column, or a pair) and label are, and what the labels are; None: those of the training rows."""

    text: tuple[str, ...]
    label: str
    labels: tuple[str, ...] | None = None
    regression: bool = False

    def knobs(self) -> dict[str, str]:
        """Each column, and the knob that names it."""
        return dict.fromkeys(self.text, "task.text") | {self.label: "task.label"}


@dataclass
class Examples:
    """Texts of one split with their labels as they stand in the data, where they do, and the rows left out."""

    texts: list[tuple[str, ...]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    malformed: int = 0
    read: list[SourceRead] = field(default_factory=list)
    files: list[str] = field(default_factory=list)  # the name of each row's
    lines: list[int] = field(default_factory=list)  # in them, counted from 1

    def sha256(self) -> str:
        """What is learned from: texts and labels in order."""
        digest = hashlib.sha256()
        for texts, label in zip(self.texts, self.labels, strict=True):
            digest.update("\x1f".join((*texts, label)).encode("utf-8", "surrogatepass") + b"\x1e")
        return digest.hexdigest()

    def keys(self) -> list[tuple[str, ...]]:
        """What makes a row the same as another: its texts and its label."""
        return [(*texts, label) for texts, label in zip(self.texts, self.labels, strict=True)]

    def chosen(self, places: Sequence[int]) -> "Examples":
        texts, labels = [self.texts[i] for i in places], [self.labels[i] for i in places]
        files, lines = [self.files[i] for i in places], [self.lines[i] for i in places]
        return Examples(texts, labels, files=files, lines=lines)


@dataclass(frozen=True)
class Labelled:
    """The splits of a data set, the names of its labels (of regression none), and what is doubtful in them."""

    splits: dict[str, Examples]
    labels: tuple[str, ...]
    warnings: tuple[str, ...] = ()

    def targets(self, split: str) -> Tensor:
        """Numbers of the labels, int64; for regression their values, float32."""
        given = self.splits[split].labels
        if not self.labels:
            return torch.tensor([float(label) for label in given], dtype=torch.float32)
        number = {label: i for i, label in enumerate(self.labels)}
        return torch.tensor([number[label] for label in given], dtype=torch.int64)


def read_examples(
    tables: Mapping[str, Sequence[Table]], columns: Columns, shares: Mapping[str, float], *,
    seed: int, limit: int | None, skip_malformed: bool,
) -> Labelled:  # fmt: skip
    """Every split, those that are `shares` of the training rows included.

    With a `limit`, malformed training rows are left out and counted while so many others are there.
    Raises: DataError, of all splits together, for a column that is not there, a split without a row, and malformed
    rows unless they are to be skipped: a label that is not known, no text, no number in regression, a line that is
    no row.
    """
    splits: dict[str, Examples] = {}
    malformed, rows, labels = [], 0, columns.labels
    with errors_together():
        for split, parts in with_columns(tables, columns.knobs(), no_header=NO_HEADER).items():
            with one_part():
                examples, errors = _examples(parts, columns, labels)
                if skip_malformed:
                    refuse_without_rows(split, len(examples.labels), errors)
                rows += len(examples.labels) + len(errors)
                spared = split == "train" and enough(len(examples.labels), shares, limit)
                malformed += [] if spared else errors
                if errors and not skip_malformed and not spared:
                    continue  # what else is wrong may follow from that
                if split == "train" and labels is None and not columns.regression:
                    labels = _classes(examples)
                splits |= _parts_of_train(examples, shares, seed, limit) if split == "train" else {split: examples}
        for split, examples in splits.items():
            with one_part():
                _refuse_too_few(split, examples)
        if not skip_malformed:
            refuse_malformed(malformed, rows)
    warnings = tuple(warning for parts in tables.values() for table in parts for warning in table.warnings)
    return Labelled(splits, () if columns.regression else labels or (), warnings)


def doubts_of(found: Labelled, columns: Columns, suspicion: Suspicion, *, overlap_allowed: bool) -> list[str]:
    """What is doubtful in data that could be read. Raises: DataError for what of it is to be refused."""
    keys, doubts = {split: examples.keys() for split, examples in found.splits.items()}, []
    with errors_together():
        with one_part():
            labels = {split: examples.labels for split, examples in found.splits.items()}
            first = _first_places(found.splits)
            suspicious = doubts_of_labels(labels, found.labels, first, given=columns.labels is not None)
            doubts += settled(suspicious, suspicion)
        with one_part():
            doubts += overlap_warnings(keys, unit="rows (text and label)", allowed=overlap_allowed)
    for split, rows in keys.items():
        texts = [text for texts in found.splits[split].texts for text in texts]
        doubts += one_label_warnings(split, found.splits[split].labels)
        doubts += repeat_warnings(split, rows, classes=bool(found.labels))
        doubts += _texts_missing(split, texts) + garbled_warnings(split, texts)
    return doubts


def _first_places(splits: Mapping[str, Examples]) -> dict[str, str]:
    """Where each label first stands: 'train.csv:3'."""
    found: dict[str, str] = {}
    for examples in splits.values():
        for label, file, line in zip(examples.labels, examples.files, examples.lines, strict=True):
            found.setdefault(label, f"{file}:{line}")
    return found


def _texts_missing(split: str, texts: Sequence[str]) -> list[str]:
    words = Counter(text for text in texts if looks_missing(text))
    shown = ", ".join(repr(word) for word, _ in words.most_common(3))
    return [f"{words.total():,} texts of {split} look like missing values: {shown}"] if words else []


def _parts_of_train(train: Examples, shares: Mapping[str, float], seed: int, limit: int | None) -> dict[str, Examples]:
    places = split_rows(len(train.labels), shares, seed=seed, limit=limit)
    splits = {split: train.chosen(rows) for split, rows in places.items()}
    splits["train"].malformed, splits["train"].read = train.malformed, train.read
    return splits


def _refuse_too_few(split: str, examples: Examples) -> None:
    if len(examples.labels) < 2:
        raise DataError(
            f"the {split} split has {'one' if examples.labels else 'no'} usable row; training and scores need two"
        )


def _examples(
    tables: Sequence[Table], columns: Columns, labels: Sequence[str] | None
) -> tuple[Examples, list[Malformed]]:
    examples, malformed = Examples(), []
    known = None if labels is None else dict.fromkeys(labels)
    for table in tables:
        left_out, file = [], Path(table.place).name
        for row in table.rows:
            message = _error_in(row, columns, known)
            if message:
                left_out.append(row.malformed(message))
            else:
                examples.texts.append(tuple(str(row.values[column]).strip() for column in columns.text))
                examples.labels.append(_as_text(row.values[columns.label]))
                examples.files.append(file)
                examples.lines.append(row.line)
        malformed += [*table.malformed, *left_out]
        examples.read.append(source_read(table, left_out))
    examples.malformed = len(malformed)
    return examples, malformed


def _error_in(row: Row, columns: Columns, known: Mapping[str, None] | None) -> str | None:
    """Why a row cannot be used."""
    for column in (*columns.text, columns.label):
        if column not in row.values:
            return f"has no {column!r}"
        value = row.values[column]
        if value is None or not str(value).strip():
            return f"{column!r} is empty"
        if isinstance(value, float) and math.isnan(value) and column in columns.text:
            return f"{column!r} is NaN, not a text"
        if not isinstance(value, str | int | float):  # the brackets of a list would be read as text
            kind = "dict" if isinstance(value, dict) else type(value).__name__
            return f"{column!r} is a {kind}, not a text or a number"
    label = _as_text(row.values[columns.label])
    if columns.regression:
        if isinstance(row.values[columns.label], bool):
            return f"{columns.label!r} is {bool(int(label))}, not a number; write 1 or 0"
        if not NUMBER.fullmatch(label):  # float() would take 1_0 and the digits of other scripts
            return f"{columns.label!r} is not a number: {label!r}"
        return None if abs(float(label)) <= MOST else f"{columns.label!r} is {label}, beyond {MOST:.2g}"
    return None if known is None or label in known else f"unknown label {label!r}; {_known(list(known), columns)}"


def _known(labels: Sequence[str], columns: Columns) -> str:
    """'the training rows have neg, pos'; `labels` are those of `columns` or, where it has none, of the rows."""
    shown = ", ".join(labels[:SHOWN]) + (f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else "")
    return f"{'the training rows have' if columns.labels is None else 'task.labels lists'} {shown}"


def _as_text(label: object) -> str:
    return str(int(label)) if isinstance(label, bool) else str(label).strip()


def _classes(train: Examples) -> tuple[str, ...]:
    """The labels of the training rows. Raises: DataError where they are unlike classes."""
    labels = tuple(sorted(set(train.labels)))
    if not labels:
        raise DataError("the train split has no row")
    if len(labels) < 2:
        raise DataError(f"all training rows have the label {labels[0]}: there is nothing to tell apart")
    if len(labels) > 2 and len(labels) > len(train.labels) / 2:
        raise DataError(
            f"{len(labels):,} different labels in {len(train.labels):,} rows: is task.label the right column? "
            f"Numbers to predict are task.regression=true"
        )
    return labels
