"""The folder that run directories go into."""

import os
from pathlib import Path

from experiments.config.shown import is_utf8
from experiments.record.errors import RecordError


def refuse_unusable(folder: Path) -> None:
    """Raise where no run directory can be written in a folder, there or not, or read again; nothing is written.

    Raises: RecordError for a path that is not UTF-8, since safetensors and parquet read no other; OSError.
    """
    if not is_utf8(str(folder.resolve())):
        raise RecordError(f"--runs-dir {folder.resolve()}: the path is not UTF-8; give a folder whose path is")
    there = folder.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    way_out = "choose another --runs-dir"
    if not there.is_dir():
        raise NotADirectoryError(f"{folder}: run directories cannot be written there: {there} is a file; {way_out}")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder}: run directories cannot be written there: {there} is not writable; {way_out}")
