"""What is doubtful in data that can be read: labels that may be none, classes that may be one, rows in two splits."""

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from experiments.data.reading import DataError

MISSING = (
    "", "nan", "none", "null", "nil", "na", "n/a", "n.a.", "#n/a", "<na>", "nat", "missing", "?", "-", "--", "."
)  # fmt: skip
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
FEWEST_ROWS = 2  # of a class: one alone is either learned or scored, never both
OVERLAP_TOLD, OVERLAP_REFUSED = 0.1, 0.9  # shares of the smaller split
SHOWN = 5

Suspicion = Literal["refuse_missing", "refuse_all", "warn"]


@dataclass(frozen=True)
class Doubt:
    """What is suspicious in the labels; `missing`: values that stand for none."""

    text: str
    missing: bool = False


def doubts_of_labels(labels: Sequence[str], known: Sequence[str] | None) -> list[Doubt]:
    """`labels`: those of the training rows; `known`: all classes, where the user lists them."""
    counts = Counter(labels)
    found = []
    if known is None:
        missing = [label for label in counts if label.casefold() in MISSING]
        if missing:
            found.append(Doubt(f"labels that look like missing values: {_counted(missing, counts)}", missing=True))
        spelled: dict[str, list[str]] = {}
        for label in counts:
            spelled.setdefault(_spelling(label), []).append(label)
        alike = [label for several in spelled.values() if len(several) > 1 for label in sorted(several)]
        if alike:
            found.append(Doubt(f"labels that differ in spelling only: {_counted(alike, counts)}"))
    rare = [label for label in known or sorted(counts) if counts[label] < FEWEST_ROWS]
    if rare:
        found.append(Doubt(f"classes with under {FEWEST_ROWS} training rows: {_counted(rare, counts)}"))
    return found


def settled(doubts: Sequence[Doubt], suspicion: Suspicion) -> list[str]:
    """The doubts as warnings. Raises: DataError for those that are to be refused."""
    refused = [
        doubt for doubt in doubts if suspicion == "refuse_all" or (doubt.missing and suspicion == "refuse_missing")
    ]
    if refused:
        way_out = "mend or remove the rows, list the classes with task.labels, or say task.suspicious_labels=warn"
        raise DataError(f"{'; '.join(doubt.text for doubt in refused)}: {way_out}")
    return [doubt.text for doubt in doubts]


def _spelling(label: str) -> str:
    """What labels have in common that differ by case, space or the format of a number."""
    plain = re.sub(r"[\s_]+", " ", label.casefold()).strip()
    return f"number {float(plain):g}" if NUMBER.fullmatch(plain) else plain


def _counted(labels: Sequence[str], counts: Mapping[str, int]) -> str:
    shown = ", ".join(f"{label!r} ({counts[label]:,})" for label in labels[:SHOWN])
    return shown + (f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else "")


def overlap_warnings(splits: Mapping[str, Sequence[Hashable]], *, allowed: bool) -> list[str]:
    """A warning for each two splits that have many rows in common.

    Raises: DataError where nearly all of the smaller is in the other, unless that is `allowed`.
    """
    found, names = [], list(splits)
    for i, name in enumerate(names):
        for other in names[:i]:
            smaller, larger = sorted((name, other), key=lambda split: len(splits[split]))
            rows, others = splits[smaller], set(splits[larger])
            common = sum(row in others for row in rows)
            if not rows or common < OVERLAP_TOLD * len(rows):
                continue
            text = f"{common:,} of {len(rows):,} rows of {smaller} are in {larger} too, text and label"
            if common >= OVERLAP_REFUSED * len(rows) and not allowed:
                raise DataError(f"{text}: its score says nothing; name other files, or insist: task.allow_overlap=true")
            found.append(text)
    return found
