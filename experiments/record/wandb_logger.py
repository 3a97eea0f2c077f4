"""A copy of a run in Weights & Biases, which the run can lose without losing anything of its own."""

import contextlib
import os
import re
import secrets
import shutil
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.record.wandb_mode import (
    SILENT_SECONDS,
    import_wandb,
    in_short,
    is_silent,
    mode_to_try,
    offline_because,
    overrules,
    remember_silence,
    wanted_mode,
)

if TYPE_CHECKING:
    import wandb

# With the import of wandb and an offline start after it, it stays below the 20 s that a run may be made to wait.
START_SECONDS = 10.0
# Uploading an adapter may take minutes; waiting for a network that has gone must end.
UPLOAD_SECONDS = 300.0
# wandb's default of 15 s is what a killed run loses.
FLUSH_SECONDS = 1.0
# wandb cuts a longer table without a word (wandb.Table.MAX_ARTIFACT_ROWS).
TABLE_ROWS = 200_000


class WandbLogger:
    """One W&B run that follows one run of ours; several may be open at once, as the trials of a pack are.

    `mode` is "online", "offline", "disabled", or "failed" once W&B has raised: from then on every call does
    nothing. `warning` is what the user should be told, None while there is nothing to tell; it is never
    printed here. `folder` is W&B's own folder, `<folder>/wandb/...`, None where there is no W&B run.
    """

    def __init__(
        self,
        *,
        mode: str,
        project: str,
        group: str,
        name: str,
        config: Mapping[str, Any],
        folder: Path,
        job_type: str,
        tags: Sequence[str],
    ) -> None:
        """The W&B run is open, online or offline; or `mode` says that there is none, and `warning` why.

        "auto" is online where wandb finds a key for its host, and offline elsewhere without a warning. Nobody is
        asked for anything. Takes at most 20 s, whatever the network does. Raises ValueError for an unknown mode,
        nothing else.
        """
        wanted = self.mode = wanted_mode(mode)
        self.warning = overrules(mode)
        self.folder: Path | None = None
        self._run: wandb.Run | None = None
        self._record = folder
        if self.mode == "disabled":
            return
        described = {"project": project, "group": group, "name": name, "job_type": job_type, "tags": [*tags]}
        with self._border("start"):
            self.mode = mode_to_try(wanted)
            if self.mode == "online":
                self._run = self._open_online(described, dict(config), key_expected=wanted == "online")
                self.mode = "offline" if self._run is None else "online"
            if self.mode == "offline":
                self._run = self._open(secrets.token_hex(4), described, dict(config))
            if self._run is not None:
                self.folder = Path(self._run.settings.sync_dir)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """W&B has one more row, with `step` as a column and as the x-axis of every chart.

        Rows may share a step and come in any order: wandb's own step counts rows, because wandb drops rows
        that go back and keeps the latest one in memory, where a kill loses it.
        """
        if self._run is None or self.mode == "failed":
            return
        with self._border("log a row"):
            self._run.log({**{key: float(value) for key, value in metrics.items()}, "step": int(step)})

    def finish(
        self,
        *,
        summary: Mapping[str, float | int | str],
        spectra: Callable[[], Mapping[str, Sequence[float]]],
        ranks: Mapping[str, int],
        files: Sequence[Path],
        failed: bool,
    ) -> None:
        """The W&B run is closed, with exit code 1 when the run or its copy failed. Called again: nothing.

        It holds `summary`; the tables "spectra" (matrix, index, sigma: of ΔW, from the largest sigma, as many
        per matrix as W&B takes) and "ranks" (layer, rank); and `files` as one artifact of type "adapter",
        by reference to where they lie: they must stay there until they are uploaded. `spectra` is called only
        where there is a W&B run to write to, since singular values take time.
        """
        run, self._run = self._run, None
        if run is None:
            return
        if self.mode != "failed":
            with self._border("write the results"), _staged_under(self._record):
                run.summary.update(dict(summary))
                tables = {"spectra": _spectra_table(spectra()), "ranks": _ranks_table(ranks)}
                if filled := {name: table for name, table in tables.items() if table.data}:
                    run.log(filled)
                if files:
                    run.log_artifact(_adapter_artifact(run, files))
        with self._border("close the run"):
            run.finish(exit_code=int(failed or self.mode == "failed"))

    @contextlib.contextmanager
    def _border(self, doing: str) -> Iterator[None]:
        """Whatever wandb raises inside ends the mirror, not the run, and is kept in wandb_error.txt."""
        try:
            yield
        except Exception as error:
            if self.mode != "failed":
                self.mode = "failed"
                told = f"W&B could not {doing} ({in_short(error)})"
                self._tell(f"{told}; the run goes on without it, the traceback is in wandb_error.txt")
            try:
                self._record.mkdir(parents=True, exist_ok=True)
                with (self._record / "wandb_error.txt").open("a", encoding="utf-8") as file:
                    file.write(f"W&B could not {doing}\n{traceback.format_exc()}\n")
            except OSError as unwritable:
                self._tell(f"the traceback could not be kept: {unwritable}")

    def _tell(self, text: str) -> None:
        self.warning = text if self.warning is None else f"{self.warning}\n{text}"

    def _open_online(
        self, described: dict[str, Any], config: dict[str, Any], *, key_expected: bool
    ) -> "wandb.Run | None":
        """An open W&B run; None where there is no key, or no host that takes it, and then `warning` says why."""
        wandb = import_wandb()
        host = wandb.setup().settings.base_url
        if is_silent(host):
            self._tell(
                offline_because(f"{host} gave no answer when last asked, less than {SILENT_SECONDS / 60:g} minutes ago")
            )
            return None
        run_id, began = secrets.token_hex(4), time.monotonic()
        try:
            return self._open(run_id, described, config)
        except (wandb.errors.AuthenticationError, wandb.errors.UsageError) as error:
            if key_expected or isinstance(error, wandb.errors.AuthenticationError):
                self._tell(offline_because(f"there is no usable key for {host} ({in_short(error)})"))
        except wandb.errors.Error as error:
            if time.monotonic() - began < START_SECONDS:
                self._tell(offline_because(f"{host} started no run, is the key right? ({in_short(error)})"))
            else:
                remember_silence(host)
                self._tell(offline_because(f"{host} gave no answer in {START_SECONDS:g} s ({in_short(error)})"))
        for abandoned in (self._record / "wandb").glob(f"run-*-{run_id}"):
            shutil.rmtree(abandoned, ignore_errors=True)
        return None

    def _open(self, run_id: str, described: dict[str, Any], config: dict[str, Any]) -> "wandb.Run":
        wandb = import_wandb()
        # wandb would silently move to the system's temporary folder.
        (self._record / "wandb").mkdir(parents=True, exist_ok=True)
        quiet = {"silent": True, "console": "off", "symlink": False, "use_dot_wandb": False}
        bounded = {
            "init_timeout": START_SECONDS,
            "finish_timeout": UPLOAD_SECONDS,
            "finish_timeout_raises": True,
            "x_transaction_log_flush_interval": FLUSH_SECONDS,
        }
        # What the machine and the code were is in the run's environment.json.
        without = dict.fromkeys(("disable_git", "disable_code", "x_disable_meta", "x_disable_stats"), True)
        # An id of its own: a WANDB_RUN_ID in the environment would make one run of a whole study.
        run = wandb.init(
            **described,
            id=run_id,
            config=config,
            dir=self._record,
            reinit="create_new",
            settings=wandb.Settings(mode=self.mode, x_save_requirements=False, **quiet, **bounded, **without),
        )
        run.define_metric("*", step_metric="step")
        return run


def _spectra_table(spectra: Mapping[str, Sequence[float]]) -> "wandb.Table":
    kept = TABLE_ROWS // max(1, len(spectra))
    largest = {matrix: sigmas[:kept] for matrix, sigmas in spectra.items()}
    rows = [[matrix, i, float(sigma)] for matrix, sigmas in largest.items() for i, sigma in enumerate(sigmas)]
    return import_wandb().Table(columns=["matrix", "index", "sigma"], data=rows)


def _ranks_table(ranks: Mapping[str, int]) -> "wandb.Table":
    rows = [[layer, int(rank)] for layer, rank in ranks.items()]
    return import_wandb().Table(columns=["layer", "rank"], data=rows)


def _adapter_artifact(run: "wandb.Run", files: Sequence[Path]) -> "wandb.Artifact":
    name = re.sub(r"[^\w.-]", "-", f"adapter-{run.name or run.id}")[:128]
    artifact = import_wandb().Artifact(name, type="adapter")
    for file in files:
        # "immutable" and no cache: wandb would keep a second and a third copy in the user's home.
        artifact.add_file(str(file), policy="immutable", skip_cache=True)
    return artifact


@contextlib.contextmanager
def _staged_under(folder: Path) -> Iterator[None]:
    """Inside, wandb keeps what waits for upload in the run's folder, not in a home it may not write to."""
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder / "wandb")
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]
