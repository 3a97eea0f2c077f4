"""Plain text for language models: a stream that is cut into windows, or lines that are rows of their own.

A line may be a prompt and a reference, which alone may be what the model is scored on.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from experiments.data.columns import with_columns
from experiments.data.doubts import garbled_warnings, overlap_warnings
from experiments.data.reading import DataError, errors_together, kind_of, one_part, read_text
from experiments.data.rows import Malformed, Row, SourceRead, Table, refuse_malformed, refuse_without_rows, source_read
from experiments.data.sources import enough, split_rows
from experiments.data.tables import LINE

LINE_BREAK = "\n"
FEWEST_CHARACTERS = 20  # of a line that is in two streams by no chance: blank and short ones are in many texts


@dataclass(frozen=True)
class Layout:
    """How texts are made of the lines of text files or of the rows of tables."""

    rows: Literal["stream", "lines"] = "stream"
    split: Literal["contiguous", "documents"] = "contiguous"
    document_separator: str = "\n\n"
    prompt_separator: str | None = None  # of the lines of text files: ends the prompt
    text: str = "text"  # columns of tables
    prompt: str | None = None

    def knobs(self) -> dict[str, str]:
        """Each column, and the knob that names it."""
        return {self.text: "task.text"} | ({self.prompt: "task.prompt"} if self.prompt else {})


@dataclass(frozen=True)
class Passage:
    """A text and its prompt: one row in `lines`, a line or a document of a `stream`."""

    text: str
    prompt: str = ""
    place: str = ""  # the file and the line it is from
    line: int = 0


@dataclass(frozen=True)
class Texts:
    """The passages of every split; by split read from files, what they hold; what is doubtful in them."""

    passages: dict[str, list[Passage]]
    read: dict[str, list[SourceRead]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def malformed(self, split: str) -> int:
        return sum(source.left_out for source in self.read.get(split, []))


def doubts_of(splits: Mapping[str, Sequence[Passage]], layout: Layout, *, allowed: bool) -> list[str]:
    """A warning for each two splits with many passages in common, and of passages in a wrong encoding.

    Of a stream those passages are compared that few texts have.
    Raises: DataError where nearly all of the smaller split is in the other, unless that is `allowed`.
    """
    fewest = 0 if layout.rows == "lines" else FEWEST_CHARACTERS
    unit = f"passages of {fewest} or more characters" if fewest else "rows"
    keys = {
        split: [(part.prompt, part.text) for part in passages if len(part.text.strip()) >= fewest]
        for split, passages in splits.items()
    }
    found = overlap_warnings(keys, unit=unit, allowed=allowed)
    for split, passages in splits.items():
        found += garbled_warnings(split, [passage.prompt + passage.text for passage in passages])
    return found


def passages_sha256(passages: Sequence[Passage]) -> str:
    digest = hashlib.sha256()
    for passage in passages:
        digest.update(f"{passage.prompt}\x1f{passage.text}\x1e".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def read_passages(
    tables: Mapping[str, Sequence[Table]], layout: Layout, shares: Mapping[str, float], *,
    seed: int, limit: int | None, skip_malformed: bool,
) -> Texts:  # fmt: skip
    """The passages of every split.

    Shares of the training text are its end (contiguous), or documents drawn by the seed; in `lines` a document is
    a line. With a `limit`, malformed training lines are left out and counted while so many others are there.
    Raises: DataError, of all splits together, for a column that is not there, a split without text, and
    malformed rows unless they are to be skipped.
    """
    read: dict[str, list[Passage]] = {}
    sources: dict[str, list[SourceRead]] = {}
    malformed, rows = [], 0
    if layout.rows == "lines":
        tables = {split: [_without_blank_lines(table) for table in parts] for split, parts in tables.items()}
    all_tables = [table for parts in tables.values() for table in parts]
    with errors_together():
        _refuse_prompts_of_other_form(all_tables, layout)
        in_columns = {split: [table for table in parts if table.columns != (LINE,)] for split, parts in tables.items()}
        for split in with_columns(in_columns, layout.knobs()):
            parts = tables[split]
            with one_part():
                passages, errors, sources[split] = _passages(parts, layout)
                if skip_malformed:
                    refuse_without_rows(split, len(passages), errors)
                in_lines = split == "train" and layout.rows == "lines"
                spared = in_lines and enough(len(passages), shares, limit)
                malformed += [] if spared else errors
                rows += sum(len(table.rows) + len(table.malformed) for table in parts)
                if not errors or skip_malformed or spared:  # what else is wrong may follow from those
                    read |= _parts_of_train(passages, shares, layout, seed) if split == "train" else {split: passages}
        for split, passages in read.items():
            with one_part():
                if not any(passage.text.strip() for passage in passages):
                    raise DataError(f"the {split} split has no text")
        if not skip_malformed:
            refuse_malformed(malformed, rows)
    warnings = [warning for table in all_tables for warning in table.warnings]
    warnings += _separators_again(all_tables, layout)
    return Texts(read, sources, (*warnings, *_columns_of_none(all_tables, layout)))


def _parts_of_train(
    train: list[Passage], shares: Mapping[str, float], layout: Layout, seed: int
) -> dict[str, list[Passage]]:
    if not shares:
        return {"train": train}
    places = split_rows(len(train), shares, seed=seed, contiguous=layout.split == "contiguous")
    return {split: [train[i] for i in rows] for split, rows in places.items()}


def read_plain(path: str, encoding: str) -> list[Passage]:
    """All text of a file, or of the .txt files of a folder in the order of their names.

    Raises: DataError where there is none.
    """
    place = Path(path)
    files = sorted(file for file in place.iterdir() if kind_of(file) == "txt") if place.is_dir() else [place]
    if not files:
        raise DataError(f"task.forgetting.path: {path} is a folder without .txt files")
    try:
        return [Passage(read_text(file, encoding)) for file in files]
    except DataError as error:
        raise DataError(f"task.forgetting.path: {error}") from None


def _without_blank_lines(table: Table) -> Table:
    """Of a text file the lines that are rows of their own; a table is as it was."""
    if table.columns != (LINE,):
        return table
    blank = [row for row in table.rows if not str(row.values[LINE]).strip()]
    rows = [row for row in table.rows if str(row.values[LINE]).strip()]
    return replace(table, rows=rows, empty=table.empty + sum(row.lines for row in blank))


def _passages(tables: Sequence[Table], layout: Layout) -> tuple[list[Passage], list[Malformed], list[SourceRead]]:
    malformed = [message for table in tables for message in table.malformed]
    passages, sources = [], []
    for table in tables:
        left_out = []
        for row in table.rows:
            found = _passage(row, layout)
            if isinstance(found, str):
                left_out.append(row.malformed(found))
            else:
                passages.append(found)
        malformed += left_out
        sources.append(source_read(table, left_out))
    if layout.rows == "stream" and layout.split == "documents":
        whole = "".join(passage.text for passage in passages)
        documents = [part for part in whole.split(layout.document_separator) if part.strip()]
        passages = [Passage(part + layout.document_separator) for part in documents]
    return passages, malformed, sources


def _refuse_prompts_of_other_form(tables: Sequence[Table], layout: Layout) -> None:
    """Raises: DataError where prompts are looked for where this form of data has none, so that all would be text."""
    lines, columns = ([table for table in tables if (table.columns == (LINE,)) == is_line] for is_line in (True, False))
    if lines and layout.prompt and not layout.prompt_separator:
        raise DataError(f"{lines[0].place} has lines, no columns: say what ends their prompts, task.prompt_separator")
    if columns and layout.prompt_separator and not layout.prompt:
        way_out = "leave task.prompt_separator out and say which one is the prompt, task.prompt"
        raise DataError(f"{columns[0].place} has columns, no lines: {way_out}")
    if columns and layout.prompt_separator and not lines:
        way_out = "leave task.prompt_separator out; a text follows its prompt with nothing between them"
        raise DataError(f"{columns[0].place} has columns, no lines: {way_out}")


def _columns_of_none(tables: Sequence[Table], layout: Layout) -> list[str]:
    """A warning of columns that are named where no file has columns: then all of every line is text."""
    usual = Layout()
    named = [
        f"task.{knob}={at}" for knob in ("text", "prompt") if (at := getattr(layout, knob)) != getattr(usual, knob)
    ]
    if not tables or not named or any(table.columns != (LINE,) for table in tables):
        return []
    return [
        f"{tables[0].place} has lines, no columns: {' and '.join(named)} without effect; a table is task.format=tsv"
    ]


def _separators_again(tables: Sequence[Table], layout: Layout) -> list[str]:
    """A warning of each text file with lines in which more than one place could end the prompt."""
    found, mark = [], layout.prompt_separator
    for table in tables:
        if mark is None or table.columns != (LINE,):
            continue
        again = [row.line for row in table.rows if str(row.values[LINE]).count(mark) > 1]
        if again:
            lines = f"{len(again):,} of {len(table.rows):,} lines of {Path(table.place).name}"
            found.append(f"{lines} have {mark!r} more than once, first line {again[0]}: the first one ends the prompt")
    return found


def _passage(row: Row, layout: Layout) -> Passage | str:
    """The passage of a row, or why it has none."""
    is_line = row.values.keys() == {LINE}
    text = row.values.get(LINE if is_line else layout.text)
    prompt = row.values.get(layout.prompt) if layout.prompt and not is_line else ""
    if not isinstance(text, str) or not isinstance(prompt, str):
        return f"{layout.text if isinstance(prompt, str) else layout.prompt!r} is not a text"
    if layout.rows == "stream":
        text = text.removesuffix(LINE_BREAK) + LINE_BREAK
    elif not is_line and not text.strip():
        return f"{layout.text!r} is empty"
    elif is_line and layout.prompt_separator is not None:
        before, separator, text = text.partition(layout.prompt_separator)
        if not separator:
            return f"no {layout.prompt_separator!r}, which ends a prompt: {before[:40]!r}"
        if not text.strip():
            return f"no text behind {layout.prompt_separator!r}: {before[:40]!r}"
        text, prompt = text.strip(), before + separator
    return Passage(text, prompt, row.place, row.line)
