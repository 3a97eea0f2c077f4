"""Where the splits of a data set are, and how each is read: files of a folder, one file, the Hub, or shares of rows."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from experiments.data.hub import hub_split_names, read_hub_split
from experiments.data.reading import DataError, bare_name, errors_together, kind_of, one_part
from experiments.data.rows import Table
from experiments.data.tables import KINDS, Form, read_table
from lora_variants.interface.rng import stream

USUAL = {"train": "train*", "validation": "validation*|valid*|dev*|val|val.*", "test": "test*"}
NAMES = {"train": "train", "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation"}
NAMES |= {"test": "test"}  # of files, and the split that such a file is
SHOWN_FILES = 10
SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)")  # a numbered part of one set of rows
HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?", re.ASCII)
OF_ROWS = {*KINDS, "txt"}  # endings of files that may hold rows
Where = str | float | None


@dataclass(frozen=True)
class Source:
    """Files that are read one after another, or one split on the Hub."""

    files: tuple[Path, ...] = ()
    hub_split: str | None = None


@dataclass(frozen=True)
class Location:
    """A path or a name on the Hub, and where each split is in it.

    A split is patterns of file names without their endings, whole names of files, or names of Hub splits, tried in
    turn ('dev*|validation*'); a number: this share of the training rows; None: the usual names.
    """

    path: str
    train: Where = None
    validation: Where = None
    test: Where = None

    @property
    def is_local(self) -> bool:
        return is_local(self.path)

    def sources(self, hub_splits: tuple[str, ...] = ()) -> dict[str, Source]:
        """The source of each split that is not a share of another; 'train' is always there.

        Raises: DataError for a path or a split that is not there, and for one source in two splits.
        """
        place = Path(self.path)
        if self.is_local and place.is_file():
            return self._of_one_file(place)
        there = _files_in(place) if self.is_local else {name: Source(hub_split=name) for name in hub_splits}
        found: dict[str, Source] = {}
        with errors_together():
            for split in ("train", "validation", "test"):
                asked = getattr(self, split)
                if not isinstance(asked, float):
                    with one_part():
                        found[split] = self._find(split, asked or USUAL[split], there, given=asked is not None)
            _refuse_shared(found)
        return found

    def _of_one_file(self, file: Path) -> dict[str, Source]:
        with errors_together():
            for split in ("validation", "test"):
                if not isinstance(getattr(self, split), float):
                    with one_part():
                        way_out = f"say which share of it is for {split}, e.g. task.{split}=0.1"
                        raise DataError(f"{file} is one file: {way_out}")
        return {"train": Source(files=(file,))}

    def _find(self, split: str, patterns: str, there: dict[str, Source], *, given: bool) -> Source:
        for pattern in patterns.split("|"):
            if named := [file for source in there.values() for file in source.files if file.name == pattern]:
                return Source(files=tuple(named))
            names = _meant(pattern, [name for name in there if fnmatchcase(name.lower(), pattern.lower())])
            names.sort(key=_number_of)
            files = tuple(file for name in names for file in there[name].files)
            unlike = len({kind_of(file) for file in files}) > 1 or len({_set_of(name) for name in names}) > 1
            if unlike or len(files) > len(names):  # one name twice: train.csv and train.csv.gz
                listed = ", ".join(file.name for file in files) or ", ".join(names)
                raise DataError(f"{self.path}: {listed} could all be the {split} split; name one: task.{split}=NAME")
            self._refuse_missing_shards(names)
            if names:
                return Source(files=files) if files else there[names[0]]
        share = "" if split == "train" else f", or take a share of the training rows with task.{split}=0.1"
        what = f"{'file' if self.is_local else 'split'} {f'matches {patterns!r}' if given else f'is the {split} split'}"
        raise DataError(f"{self.path}: no {what}; there is: {_listed(there)}. Name it with task.{split}=NAME{share}")

    def _refuse_missing_shards(self, names: Sequence[str]) -> None:
        numbers = [tuple(map(int, found.groups()[1:])) for name in names if (found := SHARD.fullmatch(name))]
        if not numbers:
            return
        there, most = [number for number, _ in numbers], sorted({most for _, most in numbers})
        first = 0 if 0 in there else 1
        if len(most) > 1 or there != list(range(first, first + most[0])):
            raise DataError(
                f"{self.path}: of {_set_of(names[0])} there are the shards {', '.join(map(str, there))} of "
                f"{' and of '.join(map(str, most))}; fetch the others too, or name the files of another set"
            )


def _listed(there: Mapping[str, Source]) -> str:
    """The names of the files, endings included, or of the splits of the Hub."""
    names = sorted(file.name for source in there.values() for file in source.files) or sorted(there)
    more = f" and {len(names) - SHOWN_FILES:,} more" if len(names) > SHOWN_FILES else ""
    return ", ".join(names[:SHOWN_FILES]) + more if names else "nothing that holds text"


def _meant(pattern: str, names: list[str]) -> list[str]:
    """Of the names that match, those of the pattern's own name where there are any, shards of it as the last choice."""
    own = pattern.rstrip("*").lower()
    return (
        [name for name in names if name.lower() == own]
        or [name for name in names if _set_of(name).lower() == own and name.lower() != own]
        or names
    )


def _number_of(name: str) -> int:
    """Which shard of its set a file is; of another file 0."""
    found = SHARD.fullmatch(name)
    return int(found.group(2)) if found else 0


def _set_of(name: str) -> str:
    """What a shard is one of: 'train' of 'train-00000-of-00003'; of another name itself."""
    found = SHARD.fullmatch(name)
    return found.group(1) if found else name


def is_local(path: str) -> bool:
    """Whether a path is of this machine: it is there, or it can be no name of a data set on the Hub."""
    return Path(path).exists() or not HUB_NAME.fullmatch(path) or kind_of(Path(path)) in OF_ROWS


def whole(path: str) -> str:
    """A path of this machine from the root on; a name on the Hub as it is.

    A file that is a link keeps its own name, which says its form: caches link train.csv.gz to one that says nothing.
    """
    place = Path(path).expanduser()
    if not is_local(str(place)):
        return path
    return str(place.resolve() if place.is_dir() else place.parent.resolve() / place.name)


def _files_in(folder: Path) -> dict[str, Source]:
    """The files of a folder by name, endings apart; files of one name and different endings are told apart later."""
    if not folder.is_dir():
        raise DataError(f"task.path: there is no file or folder {folder}")
    found: dict[str, list[Path]] = {}
    for file in sorted(folder.iterdir()):
        if file.is_file() and kind_of(file) and not file.name.startswith("."):
            found.setdefault(bare_name(file), []).append(file)
    return {name: Source(files=tuple(files)) for name, files in found.items()}


def _refuse_shared(found: dict[str, Source]) -> None:
    splits = list(found.items())
    for i, (split, source) in enumerate(splits):
        for other, theirs in splits[:i]:
            if set(source.files) & set(theirs.files) or (source.hub_split and source == theirs):
                what = source.hub_split or source.files[0].name
                raise DataError(f"{what} is both the {other} and the {split} split; name them with task.{split}=NAME")


def read_splits(
    where: Location, form: Form, *, subset: str | None, revision: str | None, labels: Sequence[str] = ()
) -> dict[str, list[Table]]:
    """Every table of each split that is not a share of another.

    Raises: DataError for what is not there or cannot be read, of all splits together; NotHereError.
    """
    tables: dict[str, list[Table]] = {}
    with errors_together():
        names = () if where.is_local else hub_split_names(where.path, subset, revision)
        for split, source in where.sources(names).items():
            with one_part():
                tables[split] = [read_table(file, form) for file in source.files] or [
                    read_hub_split(where.path, subset, revision, str(source.hub_split), set(labels))
                ]
    return tables


def unread_warnings(where: Location, tables: Mapping[str, Sequence[Table]]) -> list[str]:
    """A warning of each file of the folder that has the name of a split and is none, though nobody named another."""
    folder = Path(where.path)
    read = {bare_name(Path(table.place)) for parts in tables.values() for table in parts}
    found = []
    for name, source in _files_in(folder).items() if folder.is_dir() else ():
        split, files = NAMES.get(_set_of(name).lower()), [file for file in source.files if kind_of(file) in OF_ROWS]
        asked = getattr(where, split or "train")
        if split is None or name in read or not files or isinstance(asked, str):
            continue
        other = f"{asked:g} of the training rows" if asked else Path(tables[split][0].place).name
        found.append(f"{files[0].name} is not read: {split} is {other}; task.{split}={files[0].name} would read it")
    return found


def split_rows(
    rows: int, shares: Mapping[str, float], *, seed: int, contiguous: bool = False, limit: int | None = None
) -> dict[str, list[int]]:
    """Places of the rows of each split, in order: `shares` of all go to those splits, the rest is for training.

    Shuffled by the seed, which is not the run's; contiguous: training first, then each share in turn. With a
    `limit`, training keeps that many of its rows, drawn by the same seed; the other splits do not depend on it.
    Raises: DataError for a split without a row.
    """
    order = torch.arange(rows) if contiguous else torch.randperm(rows, generator=stream(seed, "split"))
    sizes = {split: round(share * rows) for split, share in shares.items()}
    kept = rows - sum(sizes.values())
    if none := [split for split, size in {"train": kept, **sizes}.items() if size < 1]:
        raise DataError(
            *(f"{split} has none of {rows} rows: give it a larger share, or the data more rows" for split in none)
        )
    found, after = {}, kept
    for split, size in sizes.items():
        found[split] = sorted(order[after : after + size].tolist())
        after += size
    train = order[:kept]
    if limit is not None and limit < kept:
        train = train[torch.randperm(kept, generator=stream(seed, "limit"))[:limit]] if contiguous else train[:limit]
    return {"train": sorted(train.tolist()), **found}


def enough(usable: int, shares: Mapping[str, float], limit: int | None) -> bool:
    """Whether the rows that are asked for are there without the malformed ones."""
    return limit is not None and usable - sum(round(share * usable) for share in shares.values()) >= limit
