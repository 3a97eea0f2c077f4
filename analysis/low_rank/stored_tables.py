"""Tables of ours on disk, as they were written: a file that is damaged or another one is named with the way out."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from experiments.data.reading import DataError
from experiments.data.tables import Form, read_table
from experiments.record.errors import RecordError


def stored_table(path: Path, columns: Mapping[str, type], *, key: Sequence[str], way_out: str) -> pd.DataFrame:
    """The table, whose `columns` hold a str, an int, a finite float or any object in every row, and no `key` twice.

    Raises: RecordError with the file, what is wrong with it and `way_out`.
    """

    def damaged(what: str) -> RecordError:
        return RecordError(f"{what}; {way_out}")

    try:
        found = read_table(path, Form("parquet"))
        found.need(list(columns))
    except DataError as error:
        raise damaged(str(error)) from None
    table = pd.DataFrame([row.values for row in found.rows], columns=found.columns)
    for column, kind in columns.items():
        for row, value in enumerate(table[column].tolist()):
            if not _is_a(kind, value):
                where = ", ".join(f"{name} {table[name].tolist()[row]}" for name in key)
                raise damaged(f"{path} is damaged, {column} is {value!r} in the row of {where}")
    if (twice := table.duplicated(list(key))).any():
        where = ", ".join(f"{name} {value}" for name, value in table.loc[twice, list(key)].iloc[0].items())
        raise damaged(f"{path} is damaged, {int(twice.sum())} of {len(table)} rows are there twice, first {where}")
    return table


def _is_a(kind: type, value: object) -> bool:
    if kind in (str, object):
        return isinstance(value, kind)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        return False
    return kind is float or value == int(value)
