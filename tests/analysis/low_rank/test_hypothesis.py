"""The low-rank test on studies whose answer is known: every verdict, what is refused, and what is kept."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from planted_hypothesis import SEEDS, SIDE, finished_study
from project_paths import CONFIGS
from safetensors.torch import load_file, save_file

from analysis.figures.registry import FIGURES, read_drawn, save_drawn
from analysis.hypothesis import main
from analysis.low_rank.family import assess_family
from analysis.low_rank.record import tree_of
from analysis.study_results.summary import sha256_of
from experiments.config.errors import ConfigError
from experiments.record.ledger import LEDGER
from experiments.record.run_dir import RunDirectory
from experiments.studies.consistency import shared_context, warnings_of_arms
from experiments.studies.spec.frozen import changes, frozen
from experiments.studies.spec.study import load_study
from experiments.study import main as study_main
from experiments.terminal import Display


@pytest.fixture(scope="module")
def low(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of true rank 2 of 16: k0 is 4."""
    return finished_study(tmp_path_factory.mktemp("low"), rank=2, name="low")


@pytest.fixture(scope="module")
def high(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_study(tmp_path_factory.mktemp("high"), rank=SIDE, name="high")


@pytest.fixture
def copy(low: Path, tmp_path: Path) -> Path:
    shutil.copytree(low.parent, tmp_path / "runs")
    return tmp_path / "runs" / low.name


def judged(*folders: Path) -> dict[str, Any]:
    """What `hypothesis.json` would say."""
    family = assess_family(folders, Display.silent())
    return tree_of(family.tasks, family.judged)


def written(folder: Path, out: Path) -> dict[str, Any]:
    """The same by the command, which also draws."""
    assert main([str(folder), "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads((out / "hypothesis.json").read_text())
    return found


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(folder), "--out", str(folder.parent / "out")]) == 2
    assert not (folder.parent / "out").exists()
    return capsys.readouterr().err


def with_summary(folder: Path, **changed: Any) -> None:
    """As if the study's file had said so from the start."""
    path = folder / "summary.json"
    summary = json.loads(path.read_text()) | changed
    summary["frozen"]["hypothesis"] |= {key: summary["hypothesis"][key] for key in summary["frozen"]["hypothesis"]}
    path.write_text(json.dumps(summary | {"frozen_sha256": sha256_of(summary["frozen"])}))


def hypothesis_of(folder: Path, **changed: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())["hypothesis"]
    return found | changed


def shares(task: dict[str, Any], kind: str) -> dict[int, float]:
    return {row["k"]: row["share"] for row in task["truncation"] if row["kind"] == kind}


def test_an_update_of_low_true_rank_supports_the_hypothesis_and_shows_its_rank(low: Path) -> None:
    (task,) = judged(low)["tasks"]
    assert task["verdict"] == "SUPPORTED"
    assert (task["p"], task["k0"], task["k95"]["least"], task["r95"]["least"]) == (SIDE, 4, 2, 2)
    assert shares(task, "top")[1] == pytest.approx(0.5, abs=0.05)
    assert shares(task, "top")[SIDE] == pytest.approx(1, abs=1e-3)
    assert shares(task, "removed")[4] < 0.1
    assert [matrix["k_rep"] for matrix in task["reproducible"]] == [2]
    assert task["verdict_by_rho0"]["0.05"] == "CONTRADICTED"  # k0 = 1 keeps half


def test_an_update_of_full_rank_contradicts_it(high: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (task,) = written(high, tmp_path)["tasks"]
    assert task["verdict"] == "CONTRADICTED"
    assert task["h1"]["word"] == task["h2"]["word"] == "fails"
    assert task["k95"]["least"] == SIDE
    said = capsys.readouterr().out
    assert "high: CONTRADICTED at rho0 0.25, for this W0 and this budget of steps" in said
    assert "p = 16; k0 = 4" in said


def test_what_has_no_gain_is_not_testable_and_nothing_else_is_computed(tmp_path: Path) -> None:
    tuning = {"grid": {"learning_rate_multipliers": [8, 32, 128]}}  # a small rate would do a little good
    knobs = {"training.labels": "shuffled"}
    arms = [{"variant": "full"}, {"variant": "lora", "rank": 1}]
    folder = finished_study(tmp_path, rank=SIDE, name="none", set=knobs, protocol={"tuning": tuning}, arms=arms)
    (task,) = written(folder, tmp_path / "out")["tasks"]
    assert task["verdict"] == "NOT TESTABLE"
    assert task["gate"]["gain"] < 0
    assert (task["truncation"], task["capacity"], task["verdict_by_rho0"]) == ([], [], {})
    assert set(pd.read_parquet(folder / "truncations.parquet")["kind"]) == {"base"}
    assert not list((tmp_path / "out").glob("*.png"))
    tuning = json.loads((folder / "summary.json").read_text())["tuning"]
    tuning["arms"][0] |= {"state": "not tuned", "reason": "its best rate is at an end of the grid"}
    with_summary(folder, tuning=tuning)
    assert judged(folder)["tasks"][0]["missing"][0].startswith("full on shuffled labels is not tuned (its best rate")


def test_three_seeds_are_inconclusive_whatever_their_p_values(copy: Path) -> None:
    with_summary(copy, evaluation={"seeds": [0, 1, 2]})
    (task,) = judged(copy)["tasks"]
    assert task["verdict"] == "INCONCLUSIVE"
    assert next(row for row in task["truncation"] if row["kind"] == "top" and row["k"] == 4)["p_holds"] < 1e-3
    assert task["seeds_to_settle"]["H1"] >= 5


def test_a_family_of_both_kinds_is_partial_and_counts_all_its_tests(
    low: Path, high: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in (low, high):
        shutil.copytree(folder, tmp_path / "runs" / folder.name)
        with_summary(tmp_path / "runs" / folder.name, hypothesis=hypothesis_of(folder, family=["low", "high"]))
    family = assess_family([tmp_path / "runs" / name for name in ("low", "high")], Display.silent())
    found = tree_of(family.tasks, family.judged)
    assert found["family"]["verdict"] == "PARTIAL"
    assert found["tests_in_family"] == 4
    alone = judged(low)["tasks"][0]
    assert found["tasks"][0]["h1"]["p_holds_holm"] >= alone["h1"]["p_holds_holm"]
    assert "family of 2: PARTIAL" in family.lines()[-1]
    assert main([str(tmp_path / "runs" / "low")]) == 2  # a member alone is not what was planned
    assert "give all of these folders" in capsys.readouterr().err


def test_scores_that_are_there_are_read_again_and_every_read_of_the_test_split_is_in_the_ledger(
    copy: Path, tmp_path: Path
) -> None:
    (copy / "truncations.parquet").unlink(missing_ok=True)
    before = (copy.parent / LEDGER).read_text().splitlines()
    first = written(copy, tmp_path / "a")
    after = (copy.parent / LEDGER).read_text().splitlines()
    table = pd.read_parquet(copy / "truncations.parquet")
    assert len(after) - len(before) == len(table)
    purposes = {json.loads(line)["purpose"] for line in after[len(before) :]}
    assert {"hypothesis: W0 alone", "hypothesis: top 4", "hypothesis: removed 4"} <= purposes
    assert written(copy, tmp_path / "b") == first
    assert (copy.parent / LEDGER).read_text().splitlines() == after
    for name in ("retention.png", "retention.csv", "retention_by_energy.pdf"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_the_whole_update_scores_what_its_run_did_and_none_of_it_what_the_base_does(low: Path) -> None:
    judged(low)
    table = pd.read_parquet(low / "truncations.parquet").set_index(["kind", "seed", "k"])
    for seed in SEEDS:
        run = table.at[("top", seed, SIDE), "run"]
        test = RunDirectory(low / run).result()["test"]
        assert table.at[("top", seed, SIDE), "squared_error"] == pytest.approx(test["squared_error"], rel=1e-5)
        assert table.at[("top", seed, SIDE), "energy"] == pytest.approx(1)
    assert table.loc["base"]["squared_error"].nunique() == 1
    assert np.allclose(table.loc["shrunk"]["energy"], table.loc["top"]["energy"], rtol=1e-5)


def test_a_control_that_keeps_as_much_is_told(copy: Path) -> None:
    assert judged(copy)["tasks"][0]["missing"] == []
    path = copy / "truncations.parquet"
    table = pd.read_parquet(path).set_index(["kind", "k", "seed"])
    for seed in SEEDS:
        table.loc[("random", 4, seed), "squared_error"] = table.at[("top", 4, seed), "squared_error"]
    table.reset_index().to_parquet(path)
    (told,) = judged(copy)["tasks"][0]["missing"]
    assert told == "the control 'random' at 4 may keep 0.95 as well, so H1 says little here"


@pytest.mark.parametrize("name", ["retention", "retention_by_energy"])
def test_the_figures_come_again_from_their_tables_alone(low: Path, tmp_path: Path, name: str) -> None:
    written(low, tmp_path)
    (tmp_path / "again").mkdir()
    save_drawn(name, read_drawn(tmp_path / f"{name}.csv"), tmp_path / "again")
    assert (tmp_path / "again" / f"{name}.png").read_bytes() == (tmp_path / f"{name}.png").read_bytes()
    axes = FIGURES[name](read_drawn(tmp_path / f"{name}.csv")).axes[0]
    assert axes.get_title(loc="left") == "low"


def test_a_study_that_says_nothing_of_a_hypothesis_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((copy / "summary.json").read_text())
    del summary["hypothesis"]
    (copy / "summary.json").write_text(json.dumps(summary))
    assert "has no section `hypothesis`" in refused(copy, capsys)


def test_a_study_that_is_not_over_or_not_one_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_summary(copy, complete=False)
    assert "the study is not over" in refused(copy, capsys)
    assert "has no summary.json" in refused(copy.parent, capsys)


def test_one_seed_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_summary(copy, evaluation={"seeds": [0]})
    assert "one seed has no spread" in refused(copy, capsys)


def test_runs_of_different_base_models_are_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = next(path for path in copy.glob("lora-r1-*") if (path / "result.json").exists() and chosen(copy, path))
    environment = json.loads((run / "environment.json").read_text()) | {"base_sha256": "0" * 64}
    (run / "environment.json").write_text(json.dumps(environment))
    assert "adapted different base models" in refused(copy, capsys)


def chosen(folder: Path, run: Path) -> bool:
    table = pd.read_parquet(folder / "study.parquet")
    rows = table[(table["stage"] == "evaluation") & table["settings"].str.contains("tuned")]
    return run.name in set(rows["folder"])


def test_an_arm_that_is_not_tuned_is_refused_where_there_is_a_gain(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuning = json.loads((copy / "summary.json").read_text())["tuning"]
    tuning["arms"][1]["state"] = "not tuned"
    with_summary(copy, tuning=tuning)
    assert "arms that are not tuned (lora r=1" in refused(copy, capsys)


def test_an_update_with_nan_is_refused_by_run_and_matrix(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = next(path for path in copy.glob("full-*") if chosen(copy, path))
    tensors = load_file(run / "delta.safetensors")
    tensors["matrices.0"][0, 0] = float("nan")
    save_file(tensors, run / "delta.safetensors")
    told = refused(copy, capsys)
    assert run.name in told
    assert "delta.safetensors" in told  # its sha256 is not what the run wrote
    result = json.loads((run / "result.json").read_text())
    del result["files_sha256"]
    (run / "result.json").write_text(json.dumps(result))
    (copy / "truncations.parquet").unlink(missing_ok=True)
    assert f"{run.name}: ΔW of matrices.0 has entries that are not finite" in refused(copy, capsys)


@pytest.mark.parametrize(
    ("hypothesis", "told"),
    [
        ({"rho0": 0.6}, "even a random projection keeps most of the gain"),
        ({"full": {"variant": "full_all"}}, "hypothesis.full: variant=full_all selects no arm"),
        ({"capacity": {"variant": "rslora"}}, "hypothesis.capacity: no arm has variant=rslora"),
        ({"floor": {"variant": "head"}}, "hypothesis.floor: variant=head selects no arm"),
        ({"false_labels": {"variant": "lora"}}, "hypothesis.false_labels: arms with false training.labels"),
        (
            {"full": {"label": "null"}},
            "full, capacity and floor train on the same labels; here they are shuffled, true",
        ),
        ({"rho": 0.1}, "hypothesis.rho: unknown key"),
    ],
)
def test_a_section_that_names_no_test_is_an_error_before_anything_is_trained(
    copy: Path, hypothesis: dict[str, Any], told: str
) -> None:
    null = {"variant": "full", "training.labels": "shuffled", "rate_of": {"variant": "full"}, "label": "null"}
    tree = yaml.safe_load((copy.parent / "tiny.yaml").read_text()) | {"hypothesis": hypothesis}
    (copy.parent / "tiny.yaml").write_text(yaml.safe_dump(tree | {"arms": [*tree["arms"], null]}))
    with pytest.raises(ConfigError) as error:
        load_study(copy.parent / "tiny.yaml")
    assert told in "\n".join(error.value.errors)


def test_what_is_tested_is_frozen_with_the_first_evaluation(copy: Path) -> None:
    path = copy.parent / "tiny.yaml"
    tree = yaml.safe_load(path.read_text())
    before = frozen(load_study(path))
    for changed in ({"rho0": 0.1}, {"rho0": 0.25, "score": "loss"}):
        path.write_text(yaml.safe_dump({**tree, "hypothesis": changed}))
        after = frozen(load_study(path))
        assert any(told.startswith("hypothesis.") for told in changes(before, after))
        assert any(told.startswith("hypothesis.") for told in changes(after, before))
    path.write_text(yaml.safe_dump({**tree, "hypothesis": None}))
    without = frozen(load_study(path))
    assert changes(before, without) == ["the section hypothesis was taken out"]
    assert changes(without, before) == ["the section hypothesis was added after the first evaluation"]
    assert changes(before, before) == []


def test_a_task_with_a_head_needs_the_arm_that_trains_it_alone_as_its_floor(tmp_path: Path) -> None:
    arms = [{"variant": "full"}, {"variant": "lora", "rank": [1, 4]}]
    protocol = {"margin": 0.01, "reference": {"variant": "full"}}
    tree = {"name": "heads", "config": str(CONFIGS / "digits.yaml"), "arms": arms, "protocol": protocol}
    (tmp_path / "heads.yaml").write_text(yaml.safe_dump({**tree, "hypothesis": {}}))
    study = load_study(tmp_path / "heads.yaml")
    with pytest.raises(ConfigError) as error:
        warnings_of_arms(study, shared_context(study))
    assert "hypothesis.floor: base is W0 with a head that nobody trained" in "\n".join(error.value.errors)
    tree |= {"arms": [*arms, {"variant": "head"}], "hypothesis": {"floor": {"variant": "head"}}}
    (tmp_path / "heads.yaml").write_text(yaml.safe_dump(tree))
    study = load_study(tmp_path / "heads.yaml")
    warnings_of_arms(study, shared_context(study))


@pytest.mark.acceptance
@pytest.mark.parametrize(
    ("planted", "verdict", "least"),
    [("2", "SUPPORTED", 2), ("8", "SUPPORTED", 8), ("48", "CONTRADICTED", 48), ("shuffled", "NOT TESTABLE", None)],
)
def test_the_shipped_planted_studies_come_to_what_was_planted(
    tmp_path: Path, planted: str, verdict: str, least: int | None
) -> None:
    file = CONFIGS / "studies" / f"low_rank_planted_{planted}.yaml"
    asked = [str(file), "--runs-dir", str(tmp_path), "--workers", "1", "--wandb", "disabled"]
    assert study_main(asked) == 0
    (task,) = written(tmp_path / file.stem, tmp_path / "out")["tasks"]
    assert task["verdict"] == verdict
    assert [(task[name] or {}).get("least") for name in ("k95", "r95")] == [least, least]
