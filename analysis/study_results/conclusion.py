"""What a study comes to: its table, its summary, its figures, and what is said of them at the end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.figures.registry import save_drawn
from analysis.study_results.allocation_files import export_allocation
from analysis.study_results.choices_at_ends import choices_at_ends
from analysis.study_results.figure_tables import figure_tables
from analysis.study_results.findings import findings, findings_table, findings_tree
from analysis.study_results.over_rows import over_rows
from analysis.study_results.results import ELSEWHERE, results_table, write_table
from analysis.study_results.summary import summary_of
from analysis.study_results.verdict_tables import TextTable, arms_tables, verdict_table
from analysis.study_results.verdicts import Judged, evaluations, families
from experiments.record.atomic_files import as_json, write_atomically
from experiments.studies.protocol.progress import StudyState
from experiments.studies.protocol.trials import PlannedTrial
from experiments.studies.spec.study import Study

FAILURES_SHOWN = 10


@dataclass(frozen=True)
class Conclusion:
    """What there is to say about a study; `files` is all that was written of it, `summary.json` last."""

    complete: bool
    table: pd.DataFrame  # of `results_table`
    summary: Mapping[str, Any]
    drawn: Mapping[str, pd.DataFrame]  # name of a figure -> what it shows
    tables: tuple[TextTable, ...]
    warnings: tuple[str, ...]
    exports: tuple[tuple[str, PlannedTrial], ...]  # label of an arm whose search has chosen -> a run of its choice
    files: tuple[Path, ...]

    def lines(self) -> list[str]:
        """Everything as plain text."""
        shown = [line for table in self.tables for line in [*table.lines(), ""]]
        return [*shown, *(f"warning: {warning}" for warning in self.warnings)]


def conclude(study: Study, study_state: StudyState, runs_dir: Path) -> Conclusion:
    """`study.parquet`, `figures/` and `summary.json` are in the study's folder, and are those of `study_state`.

    Of a study that is not over they say what there is, and what is missing.
    """
    folder = runs_dir / study.name
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    conclusion = conclusion_of(study, study_state, runs_dir)
    write_table(conclusion.table, folder / "study.parquet")
    files = [folder / "study.parquet"]
    for name, drawn in conclusion.drawn.items():
        files += save_drawn(name, drawn, folder / "figures")
    for label, trial in conclusion.exports:
        files += export_allocation(label, trial, study_state, folder)
    write_atomically(folder / "summary.json", as_json(conclusion.summary))
    return replace(conclusion, files=(*files, folder / "summary.json"))


def conclusion_of(study: Study, study_state: StudyState, runs_dir: Path) -> Conclusion:
    """What there is to say, with nothing written."""
    table = results_table(study, study_state, runs_dir)
    evaluated = evaluations(study, study_state, table)
    judged = over_rows(study, study_state, families(study, study_state, evaluated), runs_dir / study.name)
    found = findings(study, study_state, table, evaluated)
    verdicts = [verdict_table(study, family) for family in judged.values()]
    return Conclusion(
        complete=study_state.complete,
        table=table,
        summary=summary_of(study, study_state, evaluated, judged)
        | ({"searches": findings_tree(found)} if found else {}),
        drawn=figure_tables(study, study_state, table, evaluated, judged, found),
        tables=(*arms_tables(study, table, evaluated), *([findings_table(study, found)] if found else []), *verdicts),
        exports=tuple((each.label, each.chosen) for each in found if each.chosen is not None),
        warnings=tuple(_warnings(study, study_state, table, judged)),
        files=(),
    )


def _same_configurations(study: Study) -> list[str]:
    """The pairs that are not tested, at the points that tuning chose or only where a rate is fixed."""
    if not study.protocol.fixed_learning_rates:
        settings = {"": study.same()}
    else:
        tuned, fixed = study.same(), study.same(tuned=False)
        settings = {
            "": [pair for pair in tuned if pair in fixed],
            " at the points that tuning chose": [pair for pair in tuned if pair not in fixed],
            " at a fixed learning rate": [pair for pair in fixed if pair not in tuned],
        }
    return [
        f"{arm.label} and {reference.label} are the same configuration{where}: not tested, nor counted in the family"
        for where, pairs in settings.items()
        for arm, reference in pairs
    ]


def _warnings(
    study: Study, study_state: StudyState, table: pd.DataFrame, judged: Mapping[str, Sequence[Judged]]
) -> list[str]:
    """What is missing, what failed, what to know of the verdicts."""
    found = list(study.warnings)
    left = int(table["state"].isin(["waiting", "running"]).sum())
    if not study_state.complete:
        found.append(f"the study is not over: {left} trials that are wanted so far have not ended")
    failed = table[table["state"] == "failed"]
    for row in failed.head(FAILURES_SHOWN).to_dict("records"):
        found.append(f"{row['arm']} at {row['learning_rate']:g}, seed {row['seed']} ({row['stage']}): {row['failure']}")
    if len(failed) > FAILURES_SHOWN:
        found.append(f"{len(failed) - FAILURES_SHOWN} more trials failed; study.parquet has them")
    for progress in study_state.arms:
        if progress.tuning.state == "not tuned":
            found.append(f"{progress.arm.label} is not tuned: {progress.tuning.reason}")
    found += choices_at_ends(study, study_state)
    found += _same_configurations(study)
    excluded = sum(each.excluded is not None for family in judged.values() for each in family)
    if excluded:
        planned = sum(map(len, judged.values()))
        found.append(f"{excluded} of {planned} comparisons have no verdict; they count in their family all the same")
    missing = int((table["note"] == ELSEWHERE).sum())
    if missing:
        found.append(
            f"{missing} run directories are not in this runs folder; --collect FOLDER brings them from another"
        )
    return found + [str(note) for note in table["note"].dropna().unique() if note != ELSEWHERE]
