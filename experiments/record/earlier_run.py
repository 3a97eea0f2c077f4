"""A run that was finished before keys were renamed: its hash is another one, so it is not found by its name."""

from pathlib import Path

from experiments.config.loading import resolve
from experiments.config.retired_keys import RETIRED_KEYS
from experiments.config.schema import RunConfig
from experiments.record.run_description import RunDescription
from experiments.record.run_dir import RunDirectory

CONTENT = ("base_sha256", "data_sha256", "start_sha256")  # of environment.json: the hash covers it too


def find_earlier_run(config: RunConfig, run: RunDescription) -> Path | None:
    """The finished directory next to that of `run` that is the same run written with earlier keys; None without one."""
    stem = run.name.rpartition("-")[0]
    siblings = (path for path in sorted(run.run_dir.path.parent.glob("*")) if path.name.rpartition("-")[0] == stem)
    return next((path for path in siblings if _is_same(RunDirectory(path), config, run)), None)


def _is_same(earlier: RunDirectory, config: RunConfig, run: RunDescription) -> bool:
    if not earlier.finished:
        return False
    try:
        environment = earlier.environment()
        same_config = resolve(earlier.config_tree()).hashed_config() == config.hashed_config()
    except (OSError, ValueError):  # whatever that directory is, it is not this run
        return False
    return same_config and all(environment.get(name) == run.environment[name] for name in CONTENT)


def count_earlier_runs(folder: Path) -> int:
    """How many finished runs in a study's folder were written with earlier keys."""
    return sum(has_earlier_keys(RunDirectory(path)) for path in folder.iterdir() if path.is_dir())


def has_earlier_keys(run_dir: RunDirectory) -> bool:
    """Whether a finished run was written with keys that have other names now."""
    try:
        text = (run_dir.path / "config.yaml").read_text(encoding="utf-8")
        suspected = any(
            f"\n  {key}:" in text for key in RETIRED_KEYS["training"]
        )  # a study has thousands to look through
        return suspected and run_dir.finished and run_dir.written_config() != run_dir.config_tree()
    except (OSError, ValueError):
        return False
