"""Where things are kept for the user between runs that can be made or found out again; planning adds nothing."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from platformdirs import user_cache_path

_read_only: ContextVar[bool] = ContextVar("read_only", default=False)


class NotHereError(ValueError):
    """What is not on this machine and may not be fetched or made now; whoever plans says so and goes on."""


def cache_folder() -> Path:
    """The project's folder in the user's cache; it need not exist, and may not be writable."""
    return user_cache_path("lora-rank-studies")


@contextmanager
def read_only() -> Iterator[None]:
    """Inside, nothing is downloaded, pretrained or written to a cache: what would need it is a NotHereError."""
    token = _read_only.set(True)
    try:
        yield
    finally:
        _read_only.reset(token)


def is_read_only() -> bool:
    return _read_only.get()
