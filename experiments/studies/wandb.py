"""Copies of a study in Weights & Biases, made from the run directories of its trials when they have ended."""

import time
from collections.abc import Mapping, Set
from pathlib import Path
from statistics import median
from typing import Any

from experiments.record.adapter_spectra import read_spectra
from experiments.record.errors import RecordError, RunInUseError
from experiments.record.run_dir import RunDirectory
from experiments.record.run_logger import flat
from experiments.record.wandb_logger import WandbLogger
from experiments.record.wandb_mode import wanted_mode
from experiments.studies.protocol.progress import StudyState
from experiments.studies.protocol.trials import PlannedTrial
from experiments.studies.queue.entries import ENDED, Entry
from experiments.studies.spec.study import Study
from experiments.studies.status import StudyStatus

MOST_TRIALS = 200  # a study with more becomes one W&B run


def study_mode(asked: str) -> str:
    """Where trials of a study are copied to: auto is offline, for a study starts many runs and waits for nobody.

    Raises: ValueError for a mode that does not exist.
    """
    wanted = wanted_mode(asked)
    return "offline" if wanted == "auto" else wanted


class StudyWandbLogger:
    """The W&B runs of one study: one for each trial, or one for all."""

    def __init__(self, study: Study, runs_dir: Path, *, mode: str, planned: int, every_trial: bool) -> None:
        self.study, self.folder, self.mode = study, runs_dir / study.name, study_mode(mode)
        self.of_trials = every_trial or planned <= MOST_TRIALS
        self.warnings: list[str] = []
        self._seen: set[int] = set()

    def follow(self, study_state: StudyState, *, seconds: float) -> None:
        """Copy trials that have ended and have no copy, for about so long; the others another time."""
        if self.mode == "disabled" or not self.of_trials:
            return
        since, over = time.monotonic(), {each.arm.config_hash for each in study_state.arms if each.complete}
        for key, entry in study_state.entries.items():
            ended = entry.state in ENDED and key in study_state.wanted and entry.number not in self._seen
            if ended and "folder" in entry.facts and self._is_over(study_state.wanted[key], over):
                if time.monotonic() - since > seconds:
                    return
                self._seen.add(entry.number)
                self._copy(study_state.wanted[key], entry)

    def conclude(self, status: StudyStatus) -> None:
        """The study as one W&B run, where its trials have none of their own."""
        if self.mode == "disabled" or self.of_trials or (self.folder / "wandb").exists():
            return
        config = self.study.config
        mirror = self._opened(self.study.name, config.model_dump(mode="json"), self.folder, "study", [])
        scores = {f"validation/{arm.label}": arm.score for arm in status.arms if arm.score is not None}
        rates = {f"learning_rate/{arm.label}": median(arm.rates) for arm in status.arms if arm.rates}
        mirror.finish(summary={**status.counts, **scores, **rates}, spectra=dict, ranks={}, files=[], failed=False)
        self._note(mirror)

    def _is_over(self, trial: PlannedTrial, over: Set[str]) -> bool:
        """Whether nothing comes to the trial's run any more: a run of replicated tuning may be read on test later."""
        if self.study.config.search is not None or self.study.protocol.tuning.shared:
            return True
        return trial.stage != "rung" and trial.arm.config_hash in over

    def _copy(self, trial: PlannedTrial, entry: Entry) -> None:
        run_dir = RunDirectory(self.folder / str(entry.facts["folder"]))
        if not run_dir.path.exists() or (run_dir.path / "wandb").exists():
            return
        try:
            with run_dir.locked():  # so that another start on this folder does not copy it too
                self._copy_locked(trial, run_dir, entry)
        except RunInUseError:
            return
        except RecordError as error:
            self.warnings.append(f"not copied to W&B: {error}")

    def _copy_locked(self, trial: PlannedTrial, run_dir: RunDirectory, entry: Entry) -> None:
        config, rows = run_dir.config_tree(), run_dir.history()
        run = trial.arm.config
        mirror = self._opened(
            run_dir.path.name, config, run_dir.path, run.variant.name, [run.task.name, run.variant.name, trial.stage]
        )
        for row in rows:
            mirror.log(int(row.pop("step")), row)
        if run_dir.finished:
            result = run_dir.result()
            files = [*sorted(run_dir.path.glob("*.safetensors")), *run_dir.path.glob("adapter_config.json")]
            mirror.finish(
                summary=flat(result),
                spectra=lambda: read_spectra(run_dir.path),
                ranks=result["ranks"],
                files=files,
                failed=False,
            )
        else:
            pruned = entry.state == "pruned"
            summary = {"pruned": entry.facts["steps"]} if pruned else {"failure": str(entry.facts.get("failure"))}
            mirror.finish(summary=summary, spectra=dict, ranks={}, files=[], failed=not pruned)
        self._note(mirror)

    def _opened(
        self, name: str, config: Mapping[str, Any], folder: Path, job_type: str, tags: list[str]
    ) -> WandbLogger:
        project = self.study.arms[0].config.wandb.project
        return WandbLogger(
            mode=self.mode, project=project, group=self.study.name, name=name, config=config, folder=folder,
            job_type=job_type, tags=tags,
        )  # fmt: skip

    def _note(self, mirror: WandbLogger) -> None:
        if mirror.warning and mirror.warning not in self.warnings:
            self.warnings.append(mirror.warning)
