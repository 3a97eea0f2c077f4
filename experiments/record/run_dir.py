"""The directory of a run: written as it goes, finished when `result.json` is there."""

import json
import shutil
import traceback
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from experiments.config.errors import ConfigError
from experiments.config.loading import resolve
from experiments.config.retired_keys import rename_retired
from experiments.config.schema import RunConfig
from experiments.config.seed import describe_seed
from experiments.config.yaml_files import read_tree, yaml_text
from experiments.record.atomic_files import as_json, replacing, sync, write_atomically
from experiments.record.errors import RecordError, RunInUseError, shortened, train_again
from experiments.record.files_sha256 import KEY, UPDATE, difference, digest, digest_files, lost_without_sha256
from experiments.record.metrics_file import METRICS, MetricsFile
from experiments.record.predictions import PREDICTIONS, read_predictions, write_predictions
from experiments.record.result_file import Result, refuse_other_types
from experiments.tasks.task import Predictions

CONFIG_FILE, ENVIRONMENT, RESULT = "config.yaml", "environment.json", "result.json"
PRUNED = "pruned.txt"


def run_dir_name(config: RunConfig, *, rank_total: int | None, config_hash: str) -> str:
    """'<variant>-r<rank>-lr<rate>-s<seed>-<config hash>'; mixed ranks read 'rmix-<total>', no rank is left out.

    The seed of parts that differ reads as in 's0-init3'.
    """
    rank = getattr(config.variant, "rank", None)
    ranks = f"rmix-{rank_total}" if isinstance(rank, dict) else f"r{rank}"
    seed = f"s{describe_seed(config.seed)}"
    parts = [config.variant.name, *([] if rank is None else [ranks]), f"lr{config.learning_rate:g}", seed]
    return "-".join([*parts, config_hash])


class RunDirectory:
    """One run on disk. As a context manager it writes the traceback of a crash to `error.txt`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics = MetricsFile(path / METRICS)
        self._written: dict[str, bytes] = {}  # by this process, or found by it when it went on

    @contextmanager
    def locked(self, patience: float = 0.0) -> Iterator[None]:
        """Inside, no other process trains this run.

        Raises: RunInUseError if one does, and still does after `patience` seconds.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=patience):
                yield
        except Timeout:
            raise RunInUseError(f"another process is training this run now: {self.path}; wait for it to end") from None

    @property
    def finished(self) -> bool:
        return (self.path / RESULT).exists()

    @property
    def pruned(self) -> bool:
        return (self.path / PRUNED).exists()

    def start(self, config: RunConfig, environment: Mapping[str, Any]) -> None:
        """Begin from nothing: what an unfinished attempt left here is removed."""
        if self.path.is_symlink() or (self.path.exists() and not self.path.is_dir()):
            raise RecordError(f"{self.path} is no folder of its own but a link or a file; move it away")
        if self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True)
        self._describe(config, environment)
        self.metrics.begin()

    def go_on(self, config: RunConfig, environment: Mapping[str, Any]) -> list[str]:
        """Go on with an unfinished attempt, without what a kill left half written.

        Returns the names of the files that were lost or are not of this run, and were written again.
        """
        for left in (self.path / "error.txt", *self.path.glob("*.partial"), *self.path.glob(".tmp*")):
            left.unlink(missing_ok=True)  # .tmp*: safetensors' own
        return self._describe(config, environment)

    def _describe(self, config: RunConfig, environment: Mapping[str, Any]) -> list[str]:
        """Have the files that say what the run is, and keep in mind what stands in them."""
        texts = {CONFIG_FILE: yaml_text(config.tree()), ENVIRONMENT: as_json(environment)}
        again = [name for name in texts if not self._is_whole(name, config)]
        for name in again:
            write_atomically(self.path / name, texts[name])
        self._written = {name: (self.path / name).read_bytes() for name in texts}
        return again

    def _is_whole(self, name: str, config: RunConfig) -> bool:
        try:
            if name == ENVIRONMENT:
                return bool(self.environment())
            return resolve(self.config_tree()).hashed_config() == config.hashed_config()
        except (OSError, ValueError):
            return False

    def check(self) -> None:
        """Raise RecordError where somebody else has changed or deleted what says what the run is."""
        for name, content in self._written.items():
            path = self.path / name
            if not path.is_file() or path.read_bytes() != content:
                done = "changed" if path.is_file() else "deleted"
                raise RecordError(f"{path} was {done} by somebody else while the run went on")

    def log(self, row: Mapping[str, Any]) -> None:
        """Append a row of metrics, null for what is not finite; it is on its way to disk when this returns."""
        self.metrics.append(row)

    def history(self) -> list[dict[str, Any]]:
        """All rows of metrics; what was not finite is NaN. Raises: RecordError where they are not what was written."""
        if self.finished:
            self.check_files([METRICS])
        return self.metrics.rows()

    def finish(self, result: Mapping[str, Any], files: Sequence[Path] = ()) -> None:
        """Written last: its presence says that the run is finished; `files` are those that it must have left.

        Raises: RecordError where somebody else has changed or deleted what the run wrote.
        """
        self.check()
        self.metrics.check()
        sha256 = digest_files(self.path)
        for file in files:
            if file.relative_to(self.path).as_posix() not in sha256:
                raise RecordError(f"{file} was deleted by somebody else while the run went on")
        write_atomically(self.path / RESULT, as_json({**result, KEY: sha256}))

    def add_test(self, scores: Mapping[str, float], predictions: Predictions) -> None:
        """Write down what a finished run scores on the test split, and what it predicted there, if that is known.

        A kill may leave the new predictions beside the old ones that they replace; `check_files` puts them in place.
        """
        result, path = self._stored() | {"test": dict(scores)}, self.path / PREDICTIONS
        if not predictions:
            write_atomically(self.path / RESULT, as_json(result))
            return
        with replacing(path) as partial:
            write_predictions(partial, read_predictions(path) | {"test": predictions})
            sync(partial)
            if KEY in result:
                result[KEY] |= {PREDICTIONS: digest(partial)}
            write_atomically(self.path / RESULT, as_json(result))

    def fail(self, reason: str) -> None:
        """Say why there is no result."""
        write_atomically(self.path / "error.txt", reason.rstrip() + "\n")

    def prune(self, reason: str) -> None:
        """Say why the run was not trained to its end."""
        write_atomically(self.path / PRUNED, reason.rstrip() + "\n")

    def scores(self, name: str) -> dict[int, float]:
        """By step, a score on the validation split on the way."""
        wanted = f"validation/{name}"
        return {int(row["step"]): row[wanted] for row in self.history() if wanted in row}

    def result(self) -> dict[str, Any]:
        """The scores and facts of the finished run, under the names that keys have now.

        Raises: RecordError, naming the file, where it cannot be read, and later for a key that it lacks.
        """
        stored = {key: value for key, value in self._stored().items() if key != KEY}
        return Result(self.path / RESULT, rename_retired(stored))

    @property
    def has_sha256(self) -> bool:
        """Whether the finished run says what its files hold; those of earlier versions do not."""
        return KEY in self._stored()

    def check_files(self, names: Collection[str] | None = None) -> None:
        """Raise RecordError where a file of the finished run is not what it wrote; without `names` any of them.

        Of a run of an earlier version, which does not say what its files hold, only a lost file is noticed.
        """
        stored = self._stored()
        if KEY in stored:
            problem = difference(self.path, stored[KEY], stored[KEY] if names is None else names)
        else:
            problem = lost_without_sha256(self.path, stored, [METRICS] if names is None else names)
        if problem is not None:
            raise RecordError(f"{problem}; {train_again(self.path)}")

    def check_update(self, layout: str = "") -> None:
        """The same for the files that the run's update is read from; `layout` is a sub-folder that holds it too."""
        sha256 = self._stored().get(KEY, {})
        update = [Path(layout, name).as_posix() for name in UPDATE]
        if not layout or not sha256.keys().isdisjoint(update):
            self.check_files([name for name in update if name in sha256 or (self.path / name).exists()])

    def check_predictions(self) -> None:
        """The same for what a finished run predicted; those of earlier versions have not written it down."""
        if self.finished and PREDICTIONS in self._stored().get(KEY, {}):
            self.check_files([PREDICTIONS])

    def config_tree(self) -> dict[str, Any]:
        """The resolved configuration of the run, under the names that keys have now."""
        return rename_retired(self.written_config())

    def written_config(self) -> dict[str, Any]:
        """The same as it was written. Raises: RecordError, naming the file, where it cannot be read."""
        try:
            return read_tree(self.path / CONFIG_FILE)
        except ConfigError as error:
            raise RecordError(f"{error}; {train_again(self.path)}") from None

    def environment(self) -> dict[str, Any]:
        return self._read_json(ENVIRONMENT)

    def refuse_other(self, config: RunConfig) -> None:
        """Raise if the finished run here has another configuration than the one asked for."""
        try:
            there = resolve(self.config_tree()).hashed_config()
        except ConfigError as error:
            found = "; ".join(error.errors)
            raise RecordError(f"{self.path / CONFIG_FILE}: {found}; {train_again(self.path)}") from None
        differ = [key for key, value in config.hashed_config().items() if there.get(key) != value]
        if differ:
            raise RecordError(f"{self.path} holds a run whose {', '.join(differ)} differ; move the folder away")

    def _stored(self) -> dict[str, Any]:
        stored = self._read_json(RESULT)
        refuse_other_types(self.path / RESULT, stored)
        return stored

    def _read_json(self, name: str) -> dict[str, Any]:
        """A file of ours that holds one JSON object. Raises: RecordError where it does not."""
        try:
            content = (self.path / name).read_bytes()
        except FileNotFoundError:
            raise RecordError(f"{self.path / name} is missing; {train_again(self.path)}") from None
        with suppress(ValueError, RecursionError):
            if isinstance(found := json.loads(content), dict):
                return found
        raise RecordError(
            f"{self.path / name} is damaged, it holds no JSON object but {shortened(content)}; {train_again(self.path)}"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if isinstance(error, Exception) and self.path.exists() and not self.finished:
            with suppress(OSError):  # what happened first is what is told
                self.fail("".join(traceback.format_exception(error)))
