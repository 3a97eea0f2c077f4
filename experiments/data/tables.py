"""Tables as rows of named columns: csv, tsv, jsonl, parquet, the 'LABEL:fine question' lines of TREC, plain lines."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.data.reading import DataError, Malformed, kind_of, read_bytes, read_text

KINDS = {"csv": "csv", "tsv": "tsv", "jsonl": "jsonl", "json": "jsonl", "parquet": "parquet", "label": "trec"}
LINE = ""  # the one column of a text file


@dataclass(frozen=True)
class Form:
    """How a table is written; None: what the file's name says."""

    form: str | None = None
    encoding: str = "utf-8"
    header: bool = True
    quoted: bool | None = None  # None: in csv, not in tsv
    of_txt: str = "tsv"  # what a name in .txt says


@dataclass(frozen=True)
class Row:
    """The values of one row under the names of their columns; columns without a header are '0', '1', ..."""

    place: str
    line: int
    values: dict[str, Any]


@dataclass
class Table:
    """The rows of one source; `columns` is None where each row names its own."""

    place: str
    columns: tuple[str, ...] | None
    rows: list[Row] = field(default_factory=list)
    malformed: list[Malformed] = field(default_factory=list)

    def need(self, columns: Sequence[str]) -> None:
        """Raises: DataError where one of these columns is in no row."""
        there = self.columns
        if there is None:
            there = tuple(dict.fromkeys(name for row in self.rows for name in row.values))
        if missing := [name for name in columns if name not in there]:
            raise DataError(f"{self.place} has no column {', '.join(missing)}; it has: {', '.join(there) or 'none'}")


def read_table(path: Path, form: Form) -> Table:
    """Every row of a file, and every line that is none.

    Raises: DataError where the file as a whole cannot be used.
    """
    kinds = KINDS | {"txt": form.of_txt}
    name = form.form or kinds.get(kind_of(path))
    if name is None:
        known = ", ".join(sorted(kinds))
        raise DataError(f"{path}: its name does not say what it is (known: {known}); say task.format=csv or another")
    if name == "parquet":
        return _parquet(path)
    text = read_text(path, form.encoding)
    if name in ("csv", "tsv"):
        quoted = name == "csv" if form.quoted is None else form.quoted
        return _separated(path, text, "," if name == "csv" else "\t", header=form.header, quoted=quoted)
    if name == "text":
        lines = text.removesuffix("\n").split("\n")
        return Table(str(path), (LINE,), [Row(str(path), i, {LINE: line}) for i, line in enumerate(lines, 1)])
    return _lines(path, text, _json_object if name == "jsonl" else _trec_question)


def _separated(path: Path, text: str, delimiter: str, *, header: bool, quoted: bool) -> Table:
    table, names = Table(str(path), None), None
    for line, fields in _fields(table, text, delimiter, quoted):
        if names is None:
            names = tuple(fields) if header else tuple(str(i) for i in range(len(fields)))
            table.columns = names
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise DataError(f"{path} line {line}: the header has {', '.join(twice)} more than once; rename one")
            if header:
                continue
        if len(fields) != len(names):
            first = "the header" if header else "the first row"
            reason = f"has {len(fields)} fields, {first} has {len(names)}"
            table.malformed.append(Malformed(table.place, line, reason))
        else:
            table.rows.append(Row(table.place, line, dict(zip(names, fields, strict=True))))
    return table


def _fields(table: Table, text: str, delimiter: str, quoted: bool) -> Iterator[tuple[int, list[str]]]:
    """(line, fields) of each line that is not blank; a quoted field may go over several lines."""
    if not quoted:
        for line, content in enumerate(text.split("\n"), 1):
            if content.strip():
                yield line, content.split(delimiter)
        return
    reader, line = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True), 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            table.malformed.append(Malformed(table.place, line, str(error)))
        else:
            if fields:
                yield line, fields
        line = reader.line_num + 1


def _lines(path: Path, text: str, parse: Any) -> Table:
    table = Table(str(path), None)
    for line, content in enumerate(text.split("\n"), 1):
        if content.strip():
            found = parse(content)
            if isinstance(found, str):
                table.malformed.append(Malformed(table.place, line, found))
            else:
                table.rows.append(Row(table.place, line, found))
    return table


def _json_object(content: str) -> dict[str, Any] | str:
    try:
        found = json.loads(content)
        json.dumps(found, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        return f"not JSON: {error.msg} at column {error.colno}"
    except UnicodeEncodeError:
        return "has half of a character, a lone surrogate"
    except RecursionError:
        return "nested too deep"
    return found if isinstance(found, dict) else f"a {type(found).__name__}, not an object of columns"


def _trec_question(content: str) -> dict[str, Any] | str:
    label, _, question = content.partition(" ")
    coarse, colon, _ = label.partition(":")
    if not colon or not question.strip():
        return f"not 'LABEL:fine question': {content[:40]!r}"
    return {"text": question.strip(), "fine_label": label, "coarse_label": coarse}


def _parquet(path: Path) -> Table:
    from pyarrow import ArrowException, BufferReader
    from pyarrow.parquet import read_table as read_parquet

    try:
        found = read_parquet(BufferReader(read_bytes(path)))
    except ArrowException as error:
        raise DataError(f"{path} is no whole parquet file ({str(error).splitlines()[0]})") from None
    rows = [Row(str(path), i, values) for i, values in enumerate(found.to_pylist(), 1)]
    return Table(str(path), tuple(found.column_names), rows)
