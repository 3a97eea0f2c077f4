"""Would a verdict hold on another test split of that size? The rows of the test split as a source of variance.

A study's intervals are over seeds, for one test split. Where the score is a mean over rows, and the run directories are
here, `predictions.parquet` says what each row came to: the difference of two arms then has an interval over seeds and
rows, and its tests a p over both.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from analysis.stats.crossed_effects import CrossedMean, crossed_mean
from analysis.stats.sequential import Looks
from analysis.study_results.verdicts import Judged, OverRows
from experiments.record.predictions import PREDICTIONS
from experiments.studies.protocol.progress import StudyState
from experiments.studies.spec.study import Study

CLOSE = 1e-4  # relative: of the mean of what rows came to, to the score of the run


@dataclass(frozen=True, eq=False)
class RowScores:
    """What a run came to on every row of the test split: their weighted mean is its score."""

    rows: np.ndarray
    values: np.ndarray
    weights: np.ndarray

    def counts_alike(self, other: "RowScores") -> bool:
        """Whether it has the same rows, with the same weights."""
        return np.array_equal(self.rows, other.rows) and np.array_equal(self.weights, other.weights)


class RowsOfRuns:
    """What the runs of a study came to on the rows of the test split, each file read once."""

    def __init__(self, study: Study, study_state: StudyState, folder: Path) -> None:
        self.study, self.folder = study, folder
        self.runs = {
            (arm.arm.config_hash, setting, trial.seed): study_state.entries[trial.key].facts
            for arm in study_state.arms
            for trial in arm.wanted
            if trial.stage == "evaluation" and study_state.state(trial.key) == "done"
            for setting in trial.settings
        }
        self._known: dict[str, RowScores | None] = {}

    def of(self, config_hash: str, setting: str, seed: int) -> RowScores | None:
        """Those of a run; None where its file is not here or damaged, or its score is no mean over rows."""
        facts = self.runs.get((config_hash, setting, seed), {})
        name = str(facts.get("folder"))
        if name not in self._known:
            self._known[name] = _read(self.folder / name / PREDICTIONS, self.study.score_name, facts.get("test"))
        return self._known[name]

    def crossed(self, each: Judged) -> tuple[CrossedMean, int] | None:
        """The difference arm - reference over the seeds of a comparison and test rows, and how many rows there are."""
        pairs = [
            [self.of(arm.config_hash, each.setting, seed) for arm in (each.arm, each.reference)] for seed in each.seeds
        ]
        runs = [run for pair in pairs for run in pair if run is not None]
        if each.verdict is None or self.study.config.search is not None or len(runs) < 2 * len(pairs):
            return None
        first = runs[0]
        if len(first.rows) < 2 or not all(first.counts_alike(run) for run in runs):
            return None
        arm, reference = (np.stack([run.values for run in runs[side::2]]) for side in (0, 1))
        found = crossed_mean(arm - reference, first.weights)
        return None if found is None else (found, len(first.rows))


def over_rows(
    study: Study, study_state: StudyState, judged: Mapping[str, Sequence[Judged]], folder: Path
) -> dict[str, list[Judged]]:
    """Every comparison with its difference over seeds and test rows, where that is known."""
    rows = RowsOfRuns(study, study_state, folder)
    return {name: _family(study, family, [rows.crossed(each) for each in family]) for name, family in judged.items()}


def _family(study: Study, family: Sequence[Judged], crossed: Sequence[tuple[CrossedMean, int] | None]) -> list[Judged]:
    """By the tests of the study, at the looks at which its comparisons stopped.

    Where rows are not known p is that over seeds, so that no word changes for want of another comparison's files.
    """
    if not any(crossed):
        return list(family)
    alpha, margin = study.protocol.alpha, study.protocol.margin
    p, p_equivalence, sides = np.ones(len(family)), np.ones(len(family)), np.zeros(len(family))
    for i, (each, known) in enumerate(zip(family, crossed, strict=True)):
        weight = each.found.weight
        if known is not None:
            mean = known[0]
            p[i], p_equivalence[i] = mean.p / weight, mean.p_equivalence(margin) / weight
            sides[i] = mean.mean if study.higher_is_better else -mean.mean
        elif each.found.p is not None and each.found.p_equivalence is not None:
            p[i], p_equivalence[i] = each.found.p / weight, each.found.p_equivalence / weight
    looks = Looks((len(family),), alpha=alpha)
    looks.look(sides, p, p_equivalence, ready=np.ones(len(family), dtype=bool), weight=1.0)
    found = []
    for each, known, word in zip(family, crossed, looks.words, strict=True):
        if known is not None:
            mean, rows = known
            level = alpha * each.found.weight
            each = replace(each, over_rows=OverRows(rows, mean.interval(level), mean.interval(alpha), str(word)))
        found.append(each)
    return found


def _read(path: Path, score_name: str, score: float | None) -> RowScores | None:
    if score is None or not path.is_file():
        return None
    try:
        table = pd.read_parquet(path)
        rows = table[table["split"] == "test"]
        found = row_scores(rows, score_name)
    except (OSError, ValueError, KeyError):  # cut short, or of a version with other columns
        return None
    if found is None or not len(rows):
        return None
    mean = float(np.average(found.values, weights=found.weights))
    return found if abs(mean - score) <= CLOSE * max(abs(score), CLOSE) else None


def row_scores(rows: pd.DataFrame, score_name: str) -> RowScores | None:
    """What each row comes to, of a score that is a mean over rows, or a smooth function of one (perplexity)."""
    counts = rows["tokens"].to_numpy(dtype=np.float64) if "tokens" in rows else np.ones(len(rows))
    losses = rows["loss"].to_numpy(dtype=np.float64)
    if score_name == "accuracy":
        values = (rows["label"] == rows["prediction"]).to_numpy(dtype=np.float64)
    elif score_name == "bits_per_byte":
        values = losses / np.log(2)
    elif score_name == "squared_error":
        values = losses
    elif score_name == "perplexity":
        mean = float(np.average(losses, weights=counts)) if len(losses) else 0.0
        values = np.exp(mean) * (1 + losses - mean)
    else:
        return None
    return RowScores(rows["row"].to_numpy(), values, counts)
