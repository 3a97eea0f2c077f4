"""What is doubtful in data that can be read: labels that may be none, classes that may be one, rows that come twice."""

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal
from unicodedata import category, normalize

from experiments.data.reading import DataError

MISSING = frozenset((
    # what pandas takes for no value, other programs' words for none, and the errors of spreadsheets
    "nan", "-nan", "na", "n/a", "#n/a", "#na", "<na>", "null", "none", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan",
    "nil", "nat", "n.a.", "\\n", "missing", "undefined", "?", "-", "--", ".",
    "#value!", "#ref!", "#div/0!", "#name?", "#null!", "#num!",
))  # fmt: skip
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
TRUTH = {"true": 1.0, "false": 0.0}  # as the booleans of JSON and parquet are read
AROUND = " \"'`.,;:"  # quotes and punctuation that a label may have beside it
OF_CP1252 = {ord(mark): byte for byte in range(0x80, 0xA0) if (mark := bytes([byte]).decode("cp1252", "ignore"))}
FEWEST_ROWS = 2  # of a class: one alone is either learned or scored, never both
OVERLAP_TOLD, OVERLAP_REFUSED = 0.1, 0.9  # shares of the smaller split
REPEATS_TOLD = 0.1
ONE_LABEL_TOLD = 20  # rows; fewer may have one label by chance
SHOWN = 5

Suspicion = Literal["refuse_missing", "refuse_all", "warn"]


@dataclass(frozen=True)
class Doubt:
    """What is suspicious in the labels; `missing`: values that stand for none."""

    text: str
    missing: bool = False


def looks_missing(text: str) -> bool:
    """Whether a text is a word that programs write for no value."""
    return _folded(text) in MISSING


def doubts_of_labels(
    splits: Mapping[str, Sequence[str]], classes: Sequence[str], first: Mapping[str, str], *, given: bool
) -> list[Doubt]:
    """What is suspicious in the labels of the rows; `given`: the user lists the classes, so that they are some.

    `first`: where each label first stands.
    """
    counts, training = Counter(chain.from_iterable(splits.values())), Counter(splits["train"])
    found = []
    if not given:
        missing = [label for label in classes if looks_missing(label)]
        if missing:
            found.append(
                Doubt(f"labels that look like missing values: {_counted(missing, counts, first)}", missing=True)
            )
        spelled: dict[str | float, list[str]] = {}
        for label in classes:
            spelled.setdefault(_spelling(label), []).append(label)
        alike = [label for several in spelled.values() if len(several) > 1 for label in several]
        if alike:
            found.append(Doubt(f"labels that differ in spelling only: {_counted(alike, counts, first)}"))
    rare = [label for label in classes if training[label] < FEWEST_ROWS]
    if rare:
        found.append(Doubt(f"classes with under {FEWEST_ROWS} training rows: {_counted(rare, training, first)}"))
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


def _folded(text: str) -> str:
    """A text without what the eye does not see in it: case, the width of space, forms of a character."""
    visible = "".join(mark for mark in normalize("NFKC", text) if category(mark) != "Cf")
    return re.sub(r"[\s_]+", " ", visible.casefold()).strip()


def _spelling(label: str) -> str | float:
    """What labels have in common that differ by case, space, the format of a number, quotes or a full stop."""
    folded = _folded(label)
    if NUMBER.fullmatch(folded):
        return float(folded)
    bare = folded.strip(AROUND) or folded
    return TRUTH.get(bare, bare)


def _counted(labels: Sequence[str], counts: Mapping[str, int], first: Mapping[str, str]) -> str:
    """ "'nan' (2, first in train.csv:3)"; where there is none, no place."""
    at = {label: f", first in {first[label]}" if counts[label] else "" for label in labels[:SHOWN]}
    shown = ", ".join(f"{label!r} ({counts[label]:,}{at[label]})" for label in labels[:SHOWN])
    return shown + (f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else "")


def overlap_warnings(splits: Mapping[str, Sequence[Hashable]], *, unit: str, allowed: bool) -> list[str]:
    """A warning for each two splits that have many rows in common.

    Raises: DataError where nearly all of the smaller is in the other, unless that is `allowed`.
    """
    found: list[str] = []
    refused: list[str] = []
    for i, name in enumerate(names := list(splits)):
        for other in names[:i]:
            smaller, larger = sorted((name, other), key=lambda split: len(splits[split]))
            rows, others = splits[smaller], set(splits[larger])
            common = sum(row in others for row in rows)
            share = common / max(1, len(rows))
            if share < OVERLAP_TOLD:
                continue
            text = f"{common:,} of {len(rows):,} {unit} of {smaller} are in {larger} too"
            (found if allowed or share < OVERLAP_REFUSED else refused).append(text)
    if refused:
        way_out = "name other files or remove the duplicates; to use them all the same, say task.allow_overlap=true"
        raise DataError(*(f"{text}, so its score says nothing: {way_out}" for text in refused))
    return found


def one_label_warnings(split: str, labels: Sequence[str]) -> list[str]:
    """A warning of a split whose rows all have one label: nothing is told apart there, or it stands for unknown."""
    if len(labels) < ONE_LABEL_TOLD or len(set(labels)) > 1:
        return []
    return [f"all {len(labels):,} rows of {split} have the label {labels[0]!r}"]


def garbled_warnings(split: str, texts: Sequence[str]) -> list[str]:
    """A warning of texts that were once read in a wrong encoding, by this project or by who wrote them down."""
    found = [text for text in texts if not text.isascii() and _is_garbled(text)]
    if not found:
        return []
    first = next(i for i, mark in enumerate(found[0]) if not mark.isascii())
    shown = found[0][max(0, first - 10) : first + 10].strip()
    return [f"{len(found):,} of {len(texts):,} texts of {split} look as if read in a wrong encoding: {shown!r}"]


def _is_garbled(text: str) -> bool:
    """Whether a character was lost, or the bytes of the text in cp1252 or latin-1 are utf-8: 'Ã©' for 'é'."""
    if "\ufffd" in text:
        return True
    try:
        text.translate(OF_CP1252).encode("latin-1").decode()
    except UnicodeError:
        return False
    return True


def repeat_warnings(split: str, rows: Sequence[tuple[str, ...]], *, classes: bool) -> list[str]:
    """A warning of many rows (texts and label) that come again, or whose texts have another class elsewhere."""
    found: list[str] = []
    labels: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for *texts, label in rows:
        labels[tuple(texts)].add(label)
    again = len(rows) - sum(map(len, labels.values()))
    torn = sum(len(labels[tuple(texts)]) > 1 for *texts, _ in rows) if classes else 0
    for count, what in (
        (again, "repeat another, text and label"),
        (torn, "share their text with a row of another label"),
    ):
        if count / max(1, len(rows)) >= REPEATS_TOLD:
            found.append(f"{count:,} of {len(rows):,} rows of {split} {what}")
    return found
