"""Several studies that are judged together: each assessed by itself, and the words of all adjusted for one another."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.figures.registry import save_drawn
from analysis.low_rank.assessment import Assessment, assess
from analysis.low_rank.descriptions import describe_matrices
from analysis.low_rank.record import drawn_table, tree_of
from analysis.low_rank.report import family_line, lines_of
from analysis.low_rank.study_runs import HypothesisError, StudyRuns, read_study
from analysis.low_rank.truncated_scores import TruncatedScores, updates_of
from analysis.stats.rank_hypothesis import Judgement, judge
from experiments.record.atomic_files import as_json, write_atomically
from experiments.terminal import Display
from experiments.training.context import TrainingContext

ALIKE = ("rho0", "retention", "alpha")  # of all studies of a family


@dataclass(frozen=True)
class Family:
    tasks: tuple[Assessment, ...]
    judged: tuple[Judgement, ...]

    def lines(self) -> list[str]:
        """What it says, for the terminal."""
        blocks = [[*lines_of(task, each), ""] for task, each in zip(self.tasks, self.judged, strict=True)]
        closing = [family_line(self.tasks, self.judged)] if len(self.tasks) > 1 else []
        return [line for block in blocks for line in block] + closing


def assess_family(folders: Sequence[Path], display: Display) -> Family:
    """Raises: HypothesisError for what is missing; what the runs and the base raise."""
    studies = [read_study(folder) for folder in folders]
    _refuse_other_family(studies)
    tasks = [_assessed(study, display) for study in studies]
    return Family(tuple(tasks), tuple(judge([task.task for task in tasks], alpha=studies[0].hypothesis["alpha"])))


def write_family(family: Family, folder: Path) -> list[Path]:
    """`hypothesis.json`, and where there is anything to draw the figures with their tables."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "hypothesis.json"
    write_atomically(path, as_json(tree_of(family.tasks, family.judged)))
    table = drawn_table(family.tasks)
    drawn = [] if table.empty else [*save_drawn("retention", table, folder)]
    drawn += [] if table.empty else save_drawn("retention_by_energy", table, folder)
    return [path, *drawn]


def _assessed(study: StudyRuns, display: Display) -> Assessment:
    loaded: list[TrainingContext] = []

    def load() -> TrainingContext:
        if not loaded:
            loaded.append(_base_of(study, display))
        return loaded[0]

    def on_score(done: int, total: int) -> None:
        display.report(f"{study.name}: {total} updates to score", done, total)

    def on_matrix(done: int, total: int) -> None:
        display.report(f"{study.name}: matrices described", done, total)

    updates = updates_of(study.full, study, load)
    nulls = next((updates_of(runs, study, load) for runs in study.nulls.values()), None)
    with display.live():
        found = assess(study, updates, TruncatedScores(study, updates, load), on_score)
        if not found.testable:
            return found
        return replace(found, described=tuple(describe_matrices(updates, nulls, study, on_matrix)))


def _base_of(study: StudyRuns, display: Display) -> TrainingContext:
    """The task with W0. Raises: HypothesisError where W0 or the test split are not those of the runs."""
    context = TrainingContext(study.config())
    context.read_data(display.report)
    context.load(display.report)
    if context.base_sha256 != study.base_sha256:
        raise HypothesisError(
            f"{study.name}: its runs adapted W0 {study.base_sha256[:12]}, here it is {context.base_sha256[:12]}; test "
            "it where it was trained"
        )
    if (test := context.data_sha256["test"]) != study.test_sha256:
        raise HypothesisError(
            f"{study.name}: its runs were scored on the test split {study.test_sha256[:12]}, here it is {test[:12]}; "
            "the data have changed since: test it with those that it was trained with"
        )
    return context


def _refuse_other_family(studies: Sequence[StudyRuns]) -> None:
    given = [study.name for study in studies]
    for study in studies:
        named = list(study.hypothesis["family"]) or [study.name]
        if sorted(named) != sorted(given):
            raise HypothesisError(
                f"{study.name} is judged with {', '.join(named)}, as its file says; given: {', '.join(given)}. The "
                "words of a family are adjusted for all of it: give all of these folders, and no other"
            )
        for key in ALIKE:
            if study.hypothesis[key] != studies[0].hypothesis[key]:
                raise HypothesisError(
                    f"{study.name} has hypothesis.{key} {study.hypothesis[key]}, {given[0]} has "
                    f"{studies[0].hypothesis[key]}; a family has one"
                )
