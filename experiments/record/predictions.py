"""`predictions.parquet`: what a run predicted of every row that it was scored on, so that any metric can be had."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from experiments.record.atomic_files import replacing
from experiments.tasks.task import Predictions

PREDICTIONS = "predictions.parquet"
COLUMNS = ("split", "row", "file", "line", "label", "prediction", "tokens", "loss")  # a task has some of them
TEXTS = ["split", "file", "label", "prediction"]  # of few values, in regression apart from the first


def save_predictions(folder: Path, splits: Mapping[str, Predictions]) -> Path:
    """The whole file in a run directory or, after a crash, none."""
    with replacing(folder / PREDICTIONS) as partial:
        write_predictions(partial, splits)
    return folder / PREDICTIONS


def write_predictions(path: Path, splits: Mapping[str, Predictions]) -> None:
    """The rows of each split in turn."""
    import pyarrow as pa
    from pyarrow.parquet import write_table

    tables = [pa.table(_columns(split, found)) for split, found in splits.items()]
    write_table(pa.concat_tables(tables, promote_options="default"), path, compression="zstd", use_dictionary=TEXTS)


def read_predictions(path: Path) -> dict[str, Predictions]:
    """What such a file holds, by split; of a run of an earlier version, which has none, nothing."""
    import pyarrow.compute as pc
    from pyarrow.parquet import read_table

    if not path.exists():
        return {}
    table = read_table(path)
    of_split = {split: table.filter(pc.field("split") == split) for split in table["split"].unique().to_pylist()}
    return {split: dict(zip(part.column_names, part.columns, strict=True)) for split, part in of_split.items()}


def constant_warnings(splits: Mapping[str, Predictions]) -> list[str]:
    """A warning of each split whose rows have several labels and were all given one: such a score looks like some."""
    warnings = []
    for split, found in splits.items():
        labels, predicted = found.get("label"), found.get("prediction")
        if isinstance(labels, list) and isinstance(predicted, list) and len(set(labels)) > 1 == len(set(predicted)):
            warnings.append(
                f"all {len(predicted):,} rows of {split} were given the label {predicted[0]!r}: the score is that of a "
                "constant; more steps or another learning rate may help"
            )
    return warnings


def _columns(split: str, found: Predictions) -> dict[str, Any]:
    columns = {name: values.numpy() if isinstance(values, Tensor) else values for name, values in found.items()}
    columns["split"] = [split] * len(columns["row"])
    return {name: columns[name] for name in COLUMNS if name in columns}
