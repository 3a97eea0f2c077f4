"""Data sets of the Hugging Face Hub, read with `datasets`, which only this file imports."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from experiments.data.reading import DataError
from experiments.data.rows import Row, Table
from experiments.user_cache import NotHereError, is_read_only


def hub_split_names(name: str, subset: str | None, revision: str | None) -> tuple[str, ...]:
    """The splits that a data set has."""
    return tuple(_ask_hub("get_dataset_split_names", name, subset, revision))


def read_hub_split(name: str, subset: str | None, revision: str | None, split: str, known_labels: set[str]) -> Table:
    """Every row of a split. A numbered label is its name where all names of its column are `known_labels`.

    Raises: DataError without `datasets`, without a network, and for what is not there.
    """
    loaded = _ask_hub("load_dataset", name, subset, revision, split=split)
    place = f"{name}{f'/{subset}' if subset else ''} {split}"
    named = {
        column: feature.names
        for column, feature in loaded.features.items()
        if known_labels and set(getattr(feature, "names", None) or ["\0"]) <= known_labels
    }
    rows = [Row(place, i, _with_names(dict(values), named), unit="row") for i, values in enumerate(loaded, 1)]
    return Table(place, tuple(loaded.column_names), rows)


def _with_names(values: dict[str, Any], named: dict[str, list[str]]) -> dict[str, Any]:
    for column, names in named.items():
        if isinstance(values[column], int) and 0 <= values[column] < len(names):
            values[column] = names[values[column]]
    return values


def _ask_hub(function: str, name: str, subset: str | None, revision: str | None, **more: str) -> Any:
    unknown = f"task.path: {name!r} is no file or folder here; as a data set of the Hub it is unknown until a run reads"
    try:
        import datasets
    except ImportError:
        needed = "needs datasets: pip install 'lora-rank-studies[hub]'"
        if is_read_only():
            raise NotHereError(f"{unknown} it, which {needed}") from None
        raise DataError(f"task.path: {name!r} is no file or folder here; reading it from the Hub {needed}") from None
    datasets.disable_progress_bars()
    try:
        with _from_cache(datasets.config):
            return getattr(datasets, function)(name, subset, revision=revision, **more)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        if is_read_only():
            raise NotHereError(f"{unknown} it") from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"task.path: the data set {name!r} cannot be had from the Hub ({reason}); a folder with its files takes "
            f"its place: task.path=FOLDER"
        ) from None


@contextmanager
def _from_cache(config: Any) -> Iterator[None]:
    """Inside, `datasets` asks no network where nothing may be downloaded."""
    before, config.HF_HUB_OFFLINE = config.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE or is_read_only()
    try:
        yield
    finally:
        config.HF_HUB_OFFLINE = before
