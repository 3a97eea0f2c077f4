"""Folders that updates are read from: where one is of a finished run, its files must be what the run wrote."""

from pathlib import Path

from experiments.record.files_sha256 import KEY
from experiments.record.run_dir import CONFIG_FILE, RESULT, RunDirectory


def check_adapter(folder: Path) -> None:
    """Raise RecordError where the files of an update are not those that a finished run wrote there.

    `folder` may be that of a run, a variant's own layout in one, or that of an adapter from elsewhere, which says
    nothing of its files.
    """
    if _is_finished_run(folder):
        RunDirectory(folder).check_update()
    elif _holds_sha256(folder.parent):
        RunDirectory(folder.parent).check_update(folder.name)


def note_unchecked(folder: Path) -> str | None:
    """What the user should know of a finished run that does not say what its files hold; None for any other folder."""
    if not _is_finished_run(folder) or RunDirectory(folder).has_sha256:
        return None
    return f"{folder} was written by an earlier version: its result.json has no {KEY}, so its files are not checked"


def _is_finished_run(folder: Path) -> bool:
    """Other programs write a result.json too."""
    result_of_ours = (folder / RESULT).is_file() and (folder / CONFIG_FILE).is_file()
    return result_of_ours or _holds_sha256(folder)


def _holds_sha256(folder: Path) -> bool:
    result = folder / RESULT
    return result.is_file() and f'"{KEY}"' in result.read_text(encoding="utf-8", errors="replace")
