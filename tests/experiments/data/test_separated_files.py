"""Files of separated fields: the rows that were written are read, and of a damaged file none is lost or made up."""

import csv
import io
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow.csv import WriteOptions, write_csv

from experiments.data.columns import with_columns
from experiments.data.reading import DataError
from experiments.data.rows import Table
from experiments.data.tables import Form, read_table

CHARACTERS = st.sampled_from(["a", "b", '"', ",", "\n", "\r\n", " ", "\t", ";", "é", "„", "1"])
CELLS = st.lists(CHARACTERS, max_size=6).map("".join)
ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "cp1252"]


@st.composite
def tables(draw: st.DrawFn) -> list[list[str]]:
    """A header and rows; the cells of the first column are not empty, so that no row is a blank line."""
    width = draw(st.integers(2, 4))
    cells = st.tuples(CELLS.map(lambda cell: "x" + cell), *[CELLS] * (width - 1)).map(list)
    return [[f"c{i}" for i in range(width)], *draw(st.lists(cells, min_size=1, max_size=5))]


@st.composite
def written(draw: st.DrawFn) -> tuple[list[list[str]], str]:
    """A table, and its text as one of three programs writes it."""
    table, program = draw(tables()), draw(st.sampled_from(["csv", "pandas", "pyarrow"]))
    ends = draw(st.sampled_from(["\n", "\r\n"]))
    quoting = draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]))
    if program == "pyarrow":
        columns = [pa.array(column) for column in zip(*table[1:], strict=True)]
        options = WriteOptions(quoting_style=draw(st.sampled_from(["needed", "all_valid"])))
        write_csv(pa.table(columns, names=table[0]), sink := pa.BufferOutputStream(), write_options=options)
        return table, sink.getvalue().to_pybytes().decode()
    if program == "pandas":
        frame = pd.DataFrame(table[1:], columns=table[0])
        return table, frame.to_csv(index=False, quoting=quoting, lineterminator=ends)
    sheet = io.StringIO(newline="")
    csv.writer(sheet, quoting=quoting, lineterminator=ends).writerows(table)
    return table, sheet.getvalue()


def read(content: bytes, encoding: str = "utf-8") -> Table:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "t.csv"
        path.write_bytes(content)
        return read_table(path, Form(encoding="utf-8" if encoding == "utf-8-sig" else encoding))


def cells(table: Table) -> list[list[str]]:
    return [list(table.columns or ()), *(list(row.values.values()) for row in table.rows)]


@settings(max_examples=200, suppress_health_check=[HealthCheck.too_slow])
@given(table=written(), encoding=st.sampled_from(ENCODINGS))
def test_the_rows_of_a_file_are_those_that_were_written(table: tuple[list[list[str]], str], encoding: str) -> None:
    rows, text = table
    found = read(text.encode(encoding), encoding)
    assert cells(found) == rows
    assert not found.malformed
    assert found.lines == found.header + sum(row.lines for row in found.rows) + found.empty
    assert found.lines == len(list(io.StringIO(text, newline="")))


@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(table=written(), damage=st.data())
def test_a_byte_too_few_or_too_many_never_loses_or_makes_up_a_row_in_silence(
    table: tuple[list[list[str]], str], damage: st.DataObject
) -> None:
    rows, text = table
    content = text.encode()
    place = damage.draw(st.integers(0, len(content) - 1), label="place")
    byte = damage.draw(
        st.none() | st.sampled_from([b'"', b",", b"\n", b"\r", b"a", b" ", b"\0", b"\xff"]), label="byte"
    )
    spoiled = content[:place] + content[place + 1 :] if byte is None else content[:place] + byte + content[place:]
    try:
        found = cells(damaged := read(spoiled))
        with_columns({"train": [damaged]}, dict.fromkeys(rows[0], "task.text"))
    except DataError:
        return
    if not damaged.malformed:
        assert len(found) == len(rows)
        assert (
            sum(a != b for mine, theirs in zip(found, rows, strict=True) for a, b in zip(mine, theirs, strict=True))
            <= 1
        )
    assert not damaged.unaccounted
    assert damaged.lines == len(list(io.StringIO(spoiled.decode(), newline="")))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('a,b,c\nx",y",\n', "a quote is missing or one too many"),  # was x,",y", : a comma is lost
        ("a,b\r\nx,y\r,\nz,w\r\n", "line 2 ends with a carriage return alone, line 1 with a line feed"),
    ],
)
def test_a_lost_comma_and_a_split_line_end_are_refused(content: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read(content.encode())
