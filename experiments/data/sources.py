"""Where the splits of a data set are: files of a folder, one file, or the splits of a data set on the Hub."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from experiments.data.reading import DataError, bare_name, kind_of

USUAL = {"train": "train*", "validation": "validation*|valid*|dev*|val|val.*", "test": "test*"}
Where = str | float | None


@dataclass(frozen=True)
class Source:
    """Files that are read one after another, or one split on the Hub."""

    files: tuple[Path, ...] = ()
    hub_split: str | None = None


@dataclass(frozen=True)
class Location:
    """A path or a name on the Hub, and where each split is in it.

    A split is patterns of file names without their endings, or names of Hub splits, tried in turn
    ('dev*|validation*'); a number: this share of the training rows; None: the usual names.
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
        for split in ("train", "validation", "test"):
            asked = getattr(self, split)
            if isinstance(asked, float):
                continue
            found[split] = self._find(split, asked or USUAL[split], there, given=asked is not None)
        _refuse_shared(found)
        return found

    def _of_one_file(self, file: Path) -> dict[str, Source]:
        for split in ("validation", "test"):
            if not isinstance(getattr(self, split), float):
                raise DataError(f"{file} is one file: say which share of it is for {split}, e.g. task.{split}=0.1")
        return {"train": Source(files=(file,))}

    def _find(self, split: str, patterns: str, there: dict[str, Source], *, given: bool) -> Source:
        for pattern in patterns.split("|"):
            names = [name for name in there if fnmatchcase(name.lower(), pattern.lower())]
            files = tuple(file for name in names for file in there[name].files)
            if len({kind_of(file) for file in files}) > 1:
                listed = ", ".join(file.name for file in files)
                raise DataError(f"{self.path}: {listed} could all be the {split} split; name one: task.{split}=NAME")
            if files:
                return Source(files=files)
            if names:
                return there[names[0]]
        share = "" if split == "train" else f", or take a share of the training rows with task.{split}=0.1"
        what = f"matches {patterns!r}" if given else f"is the {split} split"
        known = ", ".join(sorted(there)) or "nothing that holds text"
        raise DataError(f"{self.path}: nothing {what}; there is: {known}. Name it with task.{split}=NAME{share}")


def is_local(path: str) -> bool:
    """Whether a path is of this machine: it is there, or it can be no name on the Hub."""
    return Path(path).exists() or path.startswith((".", "/", "~")) or path.count("/") > 1


def whole(path: str) -> str:
    """A path of this machine from the root on; a name on the Hub as it is."""
    place = Path(path).expanduser()
    return str(place.resolve()) if is_local(str(place)) else path


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
