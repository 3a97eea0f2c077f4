"""The runs of a study that test the low-rank hypothesis, by what they are to it; what is missing is refused by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.low_rank.stored_tables import stored_table
from analysis.low_rank.summary_file import WRITTEN_AGAIN, read_summary
from analysis.study_results.summary import sha256_of
from experiments.config.loading import resolve
from experiments.config.schema import RunConfig
from experiments.record.ledger import lines_of_study
from experiments.record.run_dir import RunDirectory
from experiments.studies.protocol.trials import TUNED

SETTINGS_APART = ", "  # of the column `settings`
COLUMNS = {
    "arm": str, "stage": str, "settings": str, "seed": int, "key": str, "state": str, "folder": object,
    "failure": object,
}  # fmt: skip
Runs = Mapping[int, Path]  # seed -> run directory


class HypothesisError(ValueError):
    """A study that cannot be tested as it is, with what is missing and the way out."""


@dataclass(frozen=True)
class StudyRuns:
    """A finished study by the roles of its arms; every arm has a run at each seed."""

    name: str
    folder: Path
    hypothesis: Mapping[str, Any]  # the section of the study's file, with the arms by label
    frozen_sha256: str
    base_sha256: str
    test_sha256: str
    higher_is_better: bool
    seeds: tuple[int, ...]
    full: Runs
    capacity: Mapping[int, Runs]  # rank -> runs
    floor: Runs | None  # None: W0 itself
    nulls: Mapping[str, Runs]  # label of an arm on false labels -> runs
    not_tuned: Mapping[str, str]  # label of an arm -> why

    @property
    def score(self) -> str:
        return str(self.hypothesis["score"])

    @property
    def runs_dir(self) -> Path:
        return self.folder.parent

    def config(self) -> RunConfig:
        """That of a run of full fine-tuning."""
        return resolve(RunDirectory(self.full[self.seeds[0]]).config_tree())

    def scores(self, runs: Runs) -> Float[np.ndarray, " seeds"]:
        """Of the test split, in the order of the seeds. Raises: HypothesisError for a score that runs do not have."""
        found = [RunDirectory(runs[seed]).result()["test"] for seed in self.seeds]
        if self.score not in found[0]:
            raise HypothesisError(
                f"hypothesis.score: {self.score!r} is no score of {self.name}; it has {', '.join(found[0])}"
            )
        return np.array([test[self.score] for test in found], dtype=np.float64)


def read_study(folder: Path) -> StudyRuns:
    """The study in a folder that `study.py` left. Raises: HypothesisError, RecordError for what is damaged."""
    summary = _summary(folder)
    asked = summary["hypothesis"]
    table = stored_table(folder / "study.parquet", COLUMNS, key=("arm", "key"), way_out=WRITTEN_AGAIN)
    seeds = tuple(int(seed) for seed in summary["evaluation"]["seeds"])
    if len(seeds) < 2:
        raise HypothesisError(f"{folder}: one seed has no spread; a test needs two seeds, and a word needs five")
    lines_of_study(folder.parent, summary["study"])  # a damaged ledger is refused before anything is scored
    arms = asked["arms"]
    runs = {label: _runs_of(label, table, folder, seeds) for label in _labels(arms)}
    lower = asked["score"] == "loss"
    return StudyRuns(
        name=summary["study"],
        folder=folder,
        hypothesis=asked,
        frozen_sha256=summary["frozen_sha256"],
        base_sha256=_one_base(paths := [path for of_arm in runs.values() for path in of_arm.values()]),
        test_sha256=_one_test_split(paths),
        higher_is_better=False if lower else bool(summary["score"]["higher_is_better"]),
        seeds=seeds,
        full=runs[arms["full"]],
        capacity={rank: runs[label] for label, rank in sorted(arms["capacity"].items(), key=lambda each: each[1])},
        floor=None if arms["floor"] is None else runs[arms["floor"]],
        nulls={label: runs[label] for label in arms["false_labels"]},
        not_tuned={
            arm["arm"]: arm["reason"]
            for arm in summary["tuning"]["arms"]
            if arm["state"] == "not tuned"
            and "rate_of" not in arm["keys"]
            and arm["arm"] in (arms["full"], arms["floor"], *arms["capacity"])
        },
    )


def _summary(folder: Path) -> dict[str, Any]:
    path = folder / "summary.json"
    if not path.is_file():
        there = "" if folder.is_dir() else " (it is no folder)" if folder.exists() else " (it does not exist)"
        raise HypothesisError(
            f"{folder}{there} has no summary.json: give the folder of a study that study.py has finished, runs/<study>"
        )
    summary = read_summary(path)
    if "hypothesis" not in summary:
        raise HypothesisError(
            f"{folder}: the study's file has no section `hypothesis`, which says what is tested before the test split "
            "is read; add it to a study of another name"
        )
    _refuse_edited(summary, path)
    if not summary["complete"]:
        raise HypothesisError(f"{folder}: the study is not over; the same study.py command goes on with it")
    return summary


def _refuse_edited(summary: Mapping[str, Any], path: Path) -> None:
    """Raises: HypothesisError where the section is not the one that was settled before the test split was read."""
    settled, asked = summary.get("frozen"), summary["hypothesis"]
    if settled is None:
        return
    section = settled.get("hypothesis", {})
    other = [key for key in section if key not in ("arms", "score") and asked.get(key) != section[key]]
    if other or sha256_of(settled) != summary["frozen_sha256"]:
        raise HypothesisError(
            f"{path} was changed since the study wrote it ({', '.join(other) or 'frozen'}): what is tested was settled "
            "before the test split was read; the same study.py command writes it again"
        )


def _labels(arms: Mapping[str, Any]) -> list[str]:
    floor = [] if arms["floor"] is None else [arms["floor"]]
    return [arms["full"], *arms["capacity"], *floor, *arms["false_labels"]]


def _runs_of(label: str, table: pd.DataFrame, folder: Path, seeds: Sequence[int]) -> dict[int, Path]:
    """The run of each seed at the point that its tuning chose. Raises: HypothesisError where one is missing."""
    tuned = table["settings"].str.split(SETTINGS_APART).map(lambda settings: TUNED in settings)
    rows = table[(table["arm"] == label) & (table["stage"] == "evaluation") & tuned]
    found: dict[int, Path] = {}
    for row in rows.to_dict("records"):
        if row["state"] == "failed":
            raise HypothesisError(
                f"{label}, seed {row['seed']} failed ({row['failure']}): the others are not a fair sample; "
                "study.py --retry-failed tries again"
            )
        run = RunDirectory(folder / str(row["folder"]))
        if not run.finished:
            raise HypothesisError(
                f"{label}, seed {row['seed']}: {run.path} is not here; study.py --collect FOLDER brings it"
            )
        run.check_files()
        found[int(row["seed"])] = run.path
    if lacking := [seed for seed in seeds if seed not in found]:
        raise HypothesisError(f"{label} has no run at seed {', '.join(map(str, lacking))}; the same study.py goes on")
    return {seed: found[seed] for seed in seeds}


def _one_base(paths: Sequence[Path]) -> str:
    """The sha256 of W0. Raises: HypothesisError where runs adapted different base models."""
    found = {str(RunDirectory(path).environment()["base_sha256"]): path for path in reversed(paths)}
    return _only(found, "adapted different base models", "a gain is measured from one W0: train them again over one")


def _one_test_split(paths: Sequence[Path]) -> str:
    """The sha256 of the test split. Raises: HypothesisError where runs were scored on different ones."""
    found = {str(RunDirectory(path).environment()["data_sha256"]["test"]): path for path in reversed(paths)}
    return _only(found, "were scored on different test splits", "train them again on one")


def _only(found: Mapping[str, Path], differ: str, way_out: str) -> str:
    """What all runs have; `found`: value -> a run that has it."""
    if len(found) > 1:
        (one, first), (other, second) = list(found.items())[:2]
        raise HypothesisError(f"the runs {differ}: {first.name} {one[:12]}, {second.name} {other[:12]}; {way_out}")
    return next(iter(found))
