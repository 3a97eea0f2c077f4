"""Git LFS: where `git lfs pull` was not run, a few lines of text lie in the place of a file of weights."""

from pathlib import Path

MARK = b"version https://git-lfs.github.com/spec/v1"
WAY_OUT = "is a pointer of Git LFS, not the file itself: run `git lfs pull` where it was cloned, or download the file"


def is_lfs_pointer(path: Path) -> bool:
    """Whether a regular file holds a pointer of Git LFS. Raises: OSError where it cannot be read."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MARK)) == MARK
