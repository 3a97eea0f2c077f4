"""The tables of every split of a data set, from files or from the Hub."""

from collections.abc import Sequence

from experiments.data.sources import Location
from experiments.data.tables import Form, Table, read_table


def read_splits(
    where: Location, form: Form, *, subset: str | None, revision: str | None, labels: Sequence[str] = ()
) -> dict[str, list[Table]]:
    """Every table of each split that is not a share of another.

    Raises: DataError for what is not there or cannot be read.
    """
    if where.is_local:
        sources = where.sources()
        return {split: [read_table(file, form) for file in source.files] for split, source in sources.items()}
    from experiments.data.hub import read_split, split_names

    sources = where.sources(split_names(where.path, subset, revision))
    return {
        split: [read_split(where.path, subset, revision, str(source.hub_split), set(labels))]
        for split, source in sources.items()
    }
