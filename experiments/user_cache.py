"""Where things are kept for the user between runs that can be made or found out again."""

from pathlib import Path

from platformdirs import user_cache_path


def cache_folder() -> Path:
    """The project's folder in the user's cache; it need not exist, and may not be writable."""
    return user_cache_path("lora-rank-studies")
