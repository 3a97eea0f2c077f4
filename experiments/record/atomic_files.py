"""Files that are written whole or not at all, and are on the disk once they are written: power may fail any moment."""

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

PARTIAL = ".partial"


def write_atomically(path: Path, text: str) -> None:
    """The whole text or, after a crash, what was there before."""
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")  # of a path that is no UTF-8


def save_atomically(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """The same for tensors, as safetensors."""
    with replacing(path) as partial:
        written = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            save_file(written, partial, metadata=None if metadata is None else dict(metadata))
        except SafetensorError as error:
            raise _os_error(error, path) from None


def _os_error(error: SafetensorError, path: Path) -> OSError:
    """The same as Python says it; safetensors gives the number in its text alone."""
    number = re.search(r"os error (\d+)", str(error))
    return OSError(str(error)) if number is None else OSError(int(number[1]), os.strerror(int(number[1])), str(path))


def as_json(tree: Mapping[str, Any]) -> str:
    return json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def sync(path: Path) -> None:
    """What was written to a file, or the names in a folder, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which then takes the place of `path`; after an error there is none, and no disk space lost."""
    partial = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    except OSError as error:
        error.filename = error.filename or str(path)  # that of a write has none
        raise
    finally:
        partial.unlink(missing_ok=True)
    with suppress(OSError):  # some file systems sync no folder
        sync(path.parent)


def put_in_place(path: Path, is_meant: Callable[[Path], bool]) -> bool:
    """Whether a kill has left beside `path` what is meant to be there; then it is there now."""
    for partial in path.parent.glob(f"{path.name}.*{PARTIAL}"):
        if is_meant(partial):
            content = partial.read_bytes()  # its writer may be alive, and move it there itself
            with replacing(path) as ours:
                ours.write_bytes(content)
            return True
    return False
