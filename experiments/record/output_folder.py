"""Whether a folder can be written to, seen before hours go into what is to be written there."""

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory


def refuse_unwritable(folder: Path, names: Sequence[str], *, way_out: str) -> None:
    """Raise OSError, in words, where files of these names could not be written; the folder need not be there.

    Nothing is left behind, whatever comes of it.
    """
    whole = folder.absolute()
    there = next(path for path in (whole, *whole.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise NotADirectoryError(f"{there} is no folder, so nothing can be written to {folder}; {way_out}")
    if blocked := [name for name in names if (folder / name).is_dir()]:
        raise IsADirectoryError(f"{folder / blocked[0]} is a folder where a file is to be written; {way_out}")
    try:
        with TemporaryDirectory(prefix=".", dir=there):
            pass
    except OSError as error:
        raise OSError(f"nothing can be written to {folder} ({error.strerror}); {way_out}") from None
