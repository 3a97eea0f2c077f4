"""The test split as a source of variance: read of the rows that runs predicted, and said beside the verdicts."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from project_paths import CONFIGS
from scipy import stats
from synthetic_studies import study_of, trained

from analysis.stats.crossed_effects import CrossedMean, crossed_mean
from analysis.study_results.conclusion import conclusion_of
from analysis.study_results.over_rows import RowsOfRuns, over_rows, row_scores
from analysis.study_results.results import results_table
from analysis.study_results.verdicts import evaluations, families
from experiments.studies.protocol.progress import StudyState
from experiments.studies.spec.study import Study

ROWS = 64


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Study, StudyState, Path]:
    folder = tmp_path_factory.mktemp("study")
    study = study_of(
        folder,
        "task.matrices=[{d_out: 16, d_in: 16, rank: 4}]", f"task.evaluation_rows={ROWS}", "training.steps=6",
        "training.batch_size=16", "wandb.mode=disabled", "training.evaluate_every=0",
        config=str(CONFIGS / "planted.yaml"), arms=[{"variant": "lora", "rank": [1, 8]}, {"variant": "full"}],
        protocol={
            "tuning": {"grid": {"learning_rate_multipliers": [1, 4, 1e32]}},
            "evaluation": {"seeds": list(range(5))}, "reference": {"variant": "full"}, "margin": 5.0,
        },
    )  # fmt: skip
    return study, trained(folder, study, pack=4), folder


def rows_of(state: StudyState, folder: Path, label: str, seed: int) -> pd.DataFrame:
    (trial,) = (
        trial
        for arm in state.arms
        if arm.arm.label == label
        for trial in arm.evaluations("tuned")
        if trial.seed == seed
    )
    table = pd.read_parquet(folder / "s" / str(state.entries[trial.key].facts["folder"]) / "predictions.parquet")
    return table[table["split"] == "test"]


def test_the_interval_over_rows_is_that_of_the_rows_that_were_predicted(
    finished: tuple[Study, StudyState, Path],
) -> None:
    study, state, folder = finished
    judged = families(study, state, evaluations(study, state, results_table(study, state, folder)))
    for each in over_rows(study, state, judged, folder / "s")["tuned"]:
        by_hand = np.stack(
            [
                rows_of(state, folder, each.arm.label, seed)["loss"].to_numpy(np.float64)
                - rows_of(state, folder, each.reference.label, seed)["loss"].to_numpy(np.float64)
                for seed in range(5)
            ]
        )
        expected = crossed_mean(by_hand)
        assert expected is not None
        assert each.over_rows is not None
        assert each.over_rows.rows == ROWS
        assert each.over_rows.interval == pytest.approx(expected.interval(0.05))
        assert expected.mean == pytest.approx(each.found.difference, rel=1e-4)


def test_tables_and_summary_show_it_and_say_how_many_rows_there_are(finished: tuple[Study, StudyState, Path]) -> None:
    study, state, folder = finished
    conclusion = conclusion_of(study, state, folder)
    said = "\n".join(conclusion.lines())
    assert f"for this test split of {ROWS} rows and this W0" in said
    assert "over rows too" in said
    (family,) = conclusion.summary["comparisons"]["families"].values()
    assert family["comparisons"][0]["over_test_rows"]["rows"] == ROWS


def test_without_the_files_nothing_is_said_of_rows(finished: tuple[Study, StudyState, Path], tmp_path: Path) -> None:
    study, state, folder = finished
    judged = families(study, state, evaluations(study, state, results_table(study, state, folder)))
    assert all(each.over_rows is None for each in over_rows(study, state, judged, tmp_path)["tuned"])


@pytest.mark.parametrize("left", [b"", b"PAR1 cut short"])
def test_a_damaged_file_takes_its_comparison_and_no_other_word(
    finished: tuple[Study, StudyState, Path], tmp_path: Path, left: bytes
) -> None:
    study, state, folder = finished
    shutil.copytree(folder / "s", tmp_path / "s")
    (arm,) = (arm for arm in state.arms if arm.arm.label == "lora r=1")
    first = arm.evaluations("tuned")[0]
    (tmp_path / "s" / str(state.entries[first.key].facts["folder"]) / "predictions.parquet").write_bytes(left)
    judged = families(study, state, evaluations(study, state, results_table(study, state, folder)))
    found = {each.arm.label: each.over_rows for each in over_rows(study, state, judged, tmp_path / "s")["tuned"]}
    assert found["lora r=1"] is None
    assert found["lora r=8"] is not None


def test_a_comparison_whose_rows_are_not_known_makes_no_other_word_stricter(
    finished: tuple[Study, StudyState, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, state, folder = finished
    judged = families(study, state, evaluations(study, state, results_table(study, state, folder)))["tuned"]
    clear = [replace(each, found=replace(each.found, p=1e-6, p_equivalence=1e-6)) for each in judged]
    alone = CrossedMean(0.0, study.protocol.margin / float(stats.t.isf(0.04, 8)), 8, 0, 0, 0)  # p of equivalence: .04
    of_arm = {"lora r=8": (alone, ROWS)}
    monkeypatch.setattr(RowsOfRuns, "crossed", lambda self, each: of_arm.get(each.arm.label))
    (found,) = (each.over_rows for each in over_rows(study, state, {"tuned": clear}, folder)["tuned"] if each.over_rows)
    assert found.verdict == "equivalent"


WORDS = pd.DataFrame({"row": [0, 1, 2, 3], "loss": 0.1, "label": list("aabb"), "prediction": list("abbb")})
LOSSES = pd.DataFrame({"row": [0, 1, 2], "loss": [0.1, 1.0, 2.0], "tokens": [1, 2, 3]})


@pytest.mark.parametrize(
    ("name", "rows", "score"),
    [
        (
            "accuracy",
            pd.DataFrame({"row": [0, 1, 2, 3], "loss": 0.1, "label": list("aabb"), "prediction": list("abbb")}),
            0.75,
        ),
        ("squared_error", LOSSES.drop(columns="tokens"), 3.1 / 3),
        ("bits_per_byte", LOSSES, 8.1 / 6 / math.log(2)),
        ("perplexity", LOSSES, math.exp(8.1 / 6)),
    ],
)
def test_the_weighted_mean_of_what_rows_come_to_is_the_score(name: str, rows: pd.DataFrame, score: float) -> None:
    found = row_scores(rows, name)
    assert found is not None
    assert np.average(found.values, weights=found.weights) == pytest.approx(score)


def test_a_score_that_is_no_mean_over_rows_has_none() -> None:
    assert row_scores(LOSSES, "mcc") is None
