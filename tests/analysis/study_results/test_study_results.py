"""What a study concludes: its table is its records, its verdicts are the comparisons' own, and nothing is hidden."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
from project_paths import CONFIGS
from scipy import stats
from synthetic_studies import Ending, Outcome, planted_study, study_of, study_state_of, trained, valley

from analysis.stats.comparisons import compare
from analysis.stats.paired_scores import PairedScores
from analysis.study_results.conclusion import Conclusion, conclude, conclusion_of
from analysis.study_results.results import CIRCUMSTANCES, results_table
from experiments.config.yaml_files import read_tree, yaml_text
from experiments.record.run_dir import RunDirectory
from experiments.studies.protocol.progress import StudyState
from experiments.studies.protocol.trials import PlannedTrial
from experiments.studies.spec.study import Study


class Planted(NamedTuple):
    """A study that was trained, in packs of up to eight, and what was concluded."""

    study: Study
    study_state: StudyState
    folder: Path
    conclusion: Conclusion


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    folder = tmp_path_factory.mktemp("planted")
    study = planted_study(folder)
    study_state = trained(folder, study, pack=8)
    return Planted(study, study_state, folder, conclude(study, study_state, folder))


def concluded(folder: Path, study: Study, outcome: Outcome = valley) -> Conclusion:
    """Without a word on disk."""
    return conclusion_of(study, study_state_of(study, outcome), folder)


def family(conclusion: Conclusion, setting: str = "tuned") -> dict[tuple[str, str], dict[str, Any]]:
    """The comparisons of a setting in the summary, by the labels of arm and reference."""
    found = conclusion.summary["comparisons"]["families"][setting]["comparisons"]
    return {(each["arm"], each["reference"]): each for each in found}


def test_the_table_has_what_the_record_of_each_trial_says(planted: Planted) -> None:
    study, study_state, folder, conclusion = planted
    table = conclusion.table
    assert len(table) == len(study_state.wanted)
    order = [(list(dict.fromkeys(table["arm"])).index(row.arm), row.stage == "evaluation", row.learning_rate, row.seed)
             for row in table.itertuples()]  # fmt: skip
    assert order == sorted(order)
    assert list(dict.fromkeys(table["arm"])) == [arm.label for arm in study.arms]
    assert set(table["state"]) == {"done", "failed"}
    for row in table.to_dict("records"):
        record = RunDirectory(folder / "s" / row["folder"])
        if row["state"] == "failed":
            assert (record.path / "error.txt").read_text().strip() == row["failure"]
            assert pd.isna(row["score"])
            continue
        result = record.result()
        assert (row["score"], row["loss"]) == (result["score"], result["validation"]["loss"])
        assert (row["best_score"], row["best_step"]) == (result["best"]["score"], result["best"]["step"])
        assert row["learning_rate"] == result["learning_rate"]
        for name in ("seed", "steps", "ranks_total", "trainable_parameters", "update_parameters", "steps_executed"):
            assert row[name] == result[name]
        assert row["multiplier"] == pytest.approx(row["learning_rate"] / study.arms[0].centre) or row["arm"] == "full"
        if row["stage"] == "evaluation":
            assert row["test_score"] == result["test"]["loss"]
        else:
            assert pd.isna(row["test_score"])


def test_packs_leave_no_trace_in_table_and_summary(planted: Planted, tmp_path: Path) -> None:
    study, _, _, of_eight = planted
    of_one = conclusion_of(study, trained(tmp_path, study, pack=1), tmp_path)
    tables = [each.table.drop(columns=list(CIRCUMSTANCES)) for each in (of_one, of_eight)]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    assert of_one.summary == of_eight.summary
    for name, drawn in of_one.drawn.items():
        pd.testing.assert_frame_equal(drawn, of_eight.drawn[name], check_exact=True)


def test_the_files_are_the_conclusion(planted: Planted) -> None:
    _, _, folder, conclusion = planted
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "s" / "study.parquet"), conclusion.table)
    assert list(conclusion.table)[-len(CIRCUMSTANCES) :] == list(CIRCUMSTANCES)
    assert json.loads((folder / "s" / "summary.json").read_text()) == conclusion.summary
    figures = {f"{name}.{kind}" for name in conclusion.drawn for kind in ("csv", "pdf", "png")}
    assert {path.name for path in (folder / "s" / "figures").iterdir()} == figures
    assert {path.name for path in conclusion.files} == figures | {"study.parquet", "summary.json"}
    assert all(path.exists() for path in conclusion.files)
    assert not list((folder / "s").rglob("*.partial"))


def test_records_of_another_folder_are_told_by_the_queue_with_a_way_to_bring_them(
    planted: Planted, tmp_path: Path
) -> None:
    study, study_state, _, conclusion = planted
    here, elsewhere = conclusion.table, conclusion_of(study, study_state, tmp_path)
    same = ["arm", "key", "state", "score", "loss", "test_score", "failure", "folder"]
    pd.testing.assert_frame_equal(elsewhere.table[same], here[same])
    done = elsewhere.table["state"] == "done"
    assert elsewhere.table.loc[done, "note"].str.contains("--collect").all()
    assert elsewhere.table.loc[~done, "note"].isna().all()
    assert any(f"{done.sum()} run directories" in warning and "--collect" in warning for warning in elsewhere.warnings)


def test_a_record_that_is_other_than_the_queue_says_is_told(planted: Planted, tmp_path: Path) -> None:
    study, study_state, folder, _ = planted
    key, entry = next((key, entry) for key, entry in study_state.entries.items() if entry.state == "done")
    record = RunDirectory(tmp_path / "s" / entry.facts["folder"])
    record.path.mkdir(parents=True)
    record.finish(RunDirectory(folder / "s" / entry.facts["folder"]).result() | {"score": 77.0})
    conclusion = conclusion_of(study, study_state, tmp_path)
    assert conclusion.table.set_index("key").at[key, "score"] == 77.0
    assert any("result.json has score 77.0" in warning for warning in conclusion.warnings)


@pytest.mark.parametrize("metric", ["bytes.yaml", "digits.yaml"])  # lower is better, higher is better
def test_the_verdicts_are_those_of_the_comparisons_on_the_test_scores(tmp_path: Path, metric: str) -> None:
    study = study_of(tmp_path, config=str(CONFIGS / metric), protocol={"margin": 0.004, "fixed_learning_rates": [1e-4]})
    conclusion = concluded(tmp_path, study)
    words = set()
    for setting, summary in conclusion.summary["comparisons"]["families"].items():
        rows = conclusion.table[conclusion.table["settings"].str.split(", ").map(lambda s, w=setting: w in s)]
        rows = rows[rows["stage"] == "evaluation"].set_index(["arm", "seed"])["test_score"]
        pairs = [
            PairedScores("", *(rows[arm.label].loc[range(6)].to_numpy() for arm in pair), study.higher_is_better, 0.004)
            for pair in study.comparisons()
        ]
        assert summary["tests"] == len(pairs) == 4
        for ours, theirs in zip(summary["comparisons"], compare(pairs), strict=True):
            for name in ("verdict", "n", "difference", "sd", "p", "p_holm", "p_sign_flip", "p_equivalence",
                         "p_equivalence_holm", "minimum_detectable_difference", "seeds_to_settle", "note"):  # fmt: skip
                assert ours[name] == getattr(theirs, name)
            words.add(ours["verdict"])
        for (arm, to), pair, ours in zip(study.comparisons(), pairs, summary["comparisons"], strict=True):
            assert (ours["arm"], ours["reference"], ours["excluded"]) == (arm.label, to.label, None)
            low, high = stats.ttest_rel(pair.arm, pair.reference).confidence_interval(0.95)
            assert ours["interval"] == pytest.approx([low, high])
            assert low < ours["difference"] < high
    assert len(words) > 1
    printed = [row[4] for table in conclusion.tables if "verdict" in table.columns for row in table.rows]
    families = conclusion.summary["comparisons"]["families"].values()
    assert printed == [each["verdict"] for of in families for each in of["comparisons"]]


def test_means_have_the_t_interval_of_their_seeds(tmp_path: Path) -> None:
    conclusion = concluded(tmp_path, study_of(tmp_path))
    for each in conclusion.summary["evaluation"]["settings"]["tuned"]:
        scores = np.array(list(each["test_scores"].values()))
        low, high = stats.ttest_1samp(scores, 0).confidence_interval(0.95)
        assert each["test"] == pytest.approx({"mean": scores.mean(), "half_width": (high - low) / 2})
        assert (each["n"], each["failed"], each["pending"]) == (6, 0, 0)
        drawn = conclusion.drawn["score_by_rank"].query("kind == 'mean' and arm == @each['arm']")
        assert drawn[["value", "low", "high", "n"]].to_numpy() == pytest.approx(
            np.array([[scores.mean(), low, high, 6]])
        )


def test_a_failed_evaluation_run_keeps_its_arm_out_and_the_family_as_large_as_planned(tmp_path: Path) -> None:
    def outcome(trial: PlannedTrial) -> Ending:
        broken = trial.arm.label == "rslora r=4" and trial.stage == "evaluation" and trial.seed == 3
        return {"failure": "not finite at step 9"} if broken else valley(trial)

    study = study_of(tmp_path, protocol={"margin": 0.004})
    whole, broken = concluded(tmp_path, study), concluded(tmp_path, study, outcome)
    excluded = family(broken)["rslora r=4", "lora r=4"]
    assert (excluded["verdict"], excluded["excluded"]) == (None, "1 of 6 evaluation runs failed")
    assert excluded["difference"] is None  # the seeds that finished are not a fair sample
    assert broken.summary["comparisons"]["families"]["tuned"]["tests"] == 4
    surest = min(family(whole), key=lambda pair: family(whole)[pair]["p"])
    assert family(broken)[surest]["p_holm"] == pytest.approx(4 * family(whole)[surest]["p"])
    assert broken.summary["excluded"] == [
        {"setting": "tuned", "arm": "rslora r=4", "reason": "1 of 6 evaluation runs failed"}
    ]
    [row] = [each for each in broken.summary["evaluation"]["settings"]["tuned"] if each["arm"] == "rslora r=4"]
    assert (row["n"], row["failed"]) == (5, 1)
    assert any("not finite at step 9" in warning and "seed 3" in warning for warning in broken.warnings)


def test_a_reference_that_is_excluded_leaves_its_comparisons_without_verdict(tmp_path: Path) -> None:
    def outcome(trial: PlannedTrial) -> Ending:
        broken = trial.arm.label == "lora r=2" and trial.stage == "evaluation" and trial.seed < 2
        return {"failure": "out of memory"} if broken else valley(trial)

    found = family(concluded(tmp_path, study_of(tmp_path), outcome))
    reasons = {pair: each["excluded"] for pair, each in found.items()}
    assert reasons["rslora r=2", "lora r=2"] == "lora r=2: 2 of 6 evaluation runs failed"
    assert reasons["full", "lora r=2"] == reasons["rslora r=2", "lora r=2"]
    assert reasons["rslora r=4", "lora r=4"] is None


def test_an_arm_that_is_not_tuned_has_a_difference_and_no_verdict_but_one_at_a_rate_that_was_fixed(
    tmp_path: Path,
) -> None:
    study = study_of(tmp_path, protocol={"fixed_learning_rates": [1e-3]})
    conclusion = concluded(tmp_path, study, lambda t: valley(t, best=64 if t.arm.label == "rslora r=2" else 1))
    pair = "rslora r=2", "lora r=2"
    not_tuned, fixed = family(conclusion)[pair], family(conclusion, "fixed 0.001")[pair]
    assert (not_tuned["verdict"], not_tuned["excluded"], not_tuned["p"]) == (None, "not tuned", None)
    assert not_tuned["interval"][0] < not_tuned["difference"] < not_tuned["interval"][1]
    assert fixed["verdict"] is not None
    [tuning] = [each for each in conclusion.summary["tuning"]["arms"] if each["arm"] == "rslora r=2"]
    assert (tuning["state"], tuning["trials"], len(tuning["added_learning_rate_multipliers"])) == ("not tuned", 10, 2)
    assert tuning["chosen"][0]["multiplier"] == max(tuning["added_learning_rate_multipliers"])
    assert all(other["trials"] == 6 for other in conclusion.summary["tuning"]["arms"] if other is not tuning)
    assert any("rslora r=2 is not tuned" in warning for warning in conclusion.warnings)


def test_an_evaluation_that_is_not_over_gives_no_verdict_and_says_what_is_missing(tmp_path: Path) -> None:
    def outcome(trial: PlannedTrial) -> Ending:
        if trial.arm.label == "full":
            return {"state": "waiting"}
        pending = trial.arm.label == "rslora r=2" and trial.stage == "evaluation" and trial.seed == 5
        return {"state": "running"} if pending else valley(trial)

    conclusion = concluded(tmp_path, study_of(tmp_path), outcome)
    reasons = {pair: each["excluded"] for pair, each in family(conclusion).items()}
    assert reasons == {
        ("rslora r=2", "lora r=2"): "1 of 6 evaluation runs pending",
        ("rslora r=4", "lora r=4"): None,
        ("full", "lora r=2"): "its tuning is not over",
        ("full", "lora r=4"): "its tuning is not over",
    }
    assert not conclusion.complete
    assert conclusion.summary["complete"] is False
    assert conclusion.summary["trials"] == {
        "done": 47, "pruned": 0, "failed": 0, "running": 1, "waiting": 6,
    }  # fmt: skip
    assert any("7 trials" in warning for warning in conclusion.warnings)


def test_a_study_of_which_nothing_has_ended_concludes_nothing(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    conclusion = conclude(study, study_state_of(study, lambda _: {"state": "waiting"}), tmp_path)
    assert not list((tmp_path / "s" / "figures").iterdir())
    assert all(each["difference"] is None and each["verdict"] is None for each in family(conclusion).values())


def test_fewer_than_five_seeds_give_a_difference_and_no_verdict(tmp_path: Path) -> None:
    study = study_of(tmp_path, protocol={"evaluation": {"seeds": [0, 1, 2]}})
    found = family(concluded(tmp_path, study))["rslora r=2", "lora r=2"]
    assert (found["verdict"], found["excluded"]) == (None, "a verdict needs 5 seeds, there are 3")
    assert (found["n"], found["p"]) == (3, None)
    assert math.isfinite(found["difference"])


def test_arms_that_differ_in_their_own_rates_alone_are_tested_tuned_and_not_at_a_rate_that_was_fixed(
    tmp_path: Path,
) -> None:
    arms = [{"variant": "lora", "rank": 2}, {"variant": "lora_plus", "rank": 2, "learning_rate_ratio": 1.0}]
    study = study_of(tmp_path, arms=arms, protocol={"fixed_learning_rates": [1e-3]})
    conclusion = concluded(tmp_path, study)
    assert {name: found["tests"] for name, found in conclusion.summary["comparisons"]["families"].items()} == {
        "tuned": 1
    }
    same = "lora_plus r=2 and lora r=2 are the same configuration at a fixed learning rate"
    assert any(same in warning for warning in conclusion.warnings)
    assert conclusion.summary["comparisons"]["same_configuration"] == {
        "tuned": [], "fixed 0.001": [["lora_plus r=2", "lora r=2"]]
    }  # fmt: skip


def test_arms_that_the_grid_alone_makes_equal_are_tested_at_a_fixed_rate_and_the_warning_says_where_not(
    tmp_path: Path,
) -> None:
    base = yaml_text(
        read_tree(CONFIGS / "bytes.yaml") | {"variant": {"name": "lora", "rank": 16, "alpha_per_rank": 8.0}}
    )
    (tmp_path / "base.yaml").write_text(base)
    grid = {"learning_rate_multipliers": [0.5, 1, 2], "alpha_per_rank": [2, 8]}
    study = study_of(
        tmp_path, config="base.yaml", arms=[{"variant": ["lora", "rslora"], "rank": 16}],
        protocol={"tuning": {"grid": grid}, "fixed_learning_rates": [1e-3], "reference": {"variant": "lora"}},
    )  # fmt: skip
    conclusion = concluded(tmp_path, study)
    assert list(conclusion.summary["comparisons"]["families"]) == ["fixed 0.001"]
    same = "rslora r=16 and lora r=16 are the same configuration at the points that tuning chose"
    assert any(same in warning for warning in conclusion.warnings)


def test_a_rate_that_is_fixed_and_chosen_counts_in_both_settings(tmp_path: Path) -> None:
    study = study_of(tmp_path)
    centre = study.arms[0].centre
    study = study_of(tmp_path, protocol={"fixed_learning_rates": [centre]})
    settings = concluded(tmp_path, study).summary["evaluation"]["settings"]
    assert settings["tuned"][0] == settings[f"fixed {centre:g}"][0]


def test_keys_of_arms_are_columns_of_one_kind_and_hide_no_other(tmp_path: Path) -> None:
    arms = [{"variant": "lora", "rank": [2, {"*": 1, "*.query": 3}], "steps": [100, 200]}, {"variant": "full"}]
    study = study_of(tmp_path, arms=arms, protocol={"reference": {"variant": "full"}})
    table = results_table(study, study_state_of(study, valley), tmp_path)
    by_arm = table.drop_duplicates("config_hash")
    assert by_arm["rank"].fillna("").tolist() == ["2", "2", "*:1,*.query:3", "*:1,*.query:3", ""]
    assert by_arm["arm.steps"].fillna(0).tolist() == [100, 200, 100, 200, 0]
    assert str(table["arm.steps"].dtype) == "Int64"


def test_the_summary_comes_last(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "figures").touch()  # in the way of the figures
    protocol = {"reference": {"variant": "full"}, "evaluation": {"seeds": [0, 1]}}
    study = study_of(tmp_path, arms=[{"variant": "full"}], protocol=protocol)
    study_state = study_state_of(study, valley)
    with pytest.raises(FileExistsError):
        conclude(study, study_state, tmp_path)
    assert not (tmp_path / "s" / "summary.json").exists()
    (tmp_path / "s" / "figures").unlink()
    files = conclude(study, study_state, tmp_path).files
    assert files[-1] == tmp_path / "s" / "summary.json"
    assert all(file.stat().st_mtime_ns <= files[-1].stat().st_mtime_ns for file in files)


def test_lines_are_the_tables_and_warnings_as_text(tmp_path: Path) -> None:
    conclusion = concluded(tmp_path, study_of(tmp_path))
    lines = conclusion.lines()
    for table in conclusion.tables:
        at = lines.index(table.title)
        shown = lines[at + 2 : at + 2 + len(table.rows)]
        for row, line in zip(table.rows, shown, strict=True):
            assert line.split() == " ".join(row).split()
    assert [line for line in lines if line.startswith("warning: ")] == [f"warning: {w}" for w in conclusion.warnings]


def replicated_study(folder: Path, **changed: Any) -> Study:
    tuning = {"grid": {"learning_rate_multipliers": [0.5, 1, 2]}}
    return study_of(folder, **changed | {"protocol": {"tuning": tuning, **changed.get("protocol", {})}})


def test_verdicts_of_methods_are_on_the_test_scores_at_each_seeds_own_choice(tmp_path: Path) -> None:
    def outcome(trial: PlannedTrial) -> Ending:
        best = 2 ** ((trial.seed % 3) - 1) * (0.99 if trial.arm.config.variant.name == "full" else 1)
        return valley(trial, best=best)

    study = replicated_study(tmp_path)
    study_state = study_state_of(study, outcome)
    conclusion = conclusion_of(study, study_state, tmp_path)
    for progress in study_state.arms:
        (each,) = [
            of for of in conclusion.summary["evaluation"]["settings"]["tuned"] if of["arm"] == progress.arm.label
        ]
        chosen = {seed: one.multiplier for one in progress.tuning.replications for seed in one.seeds}
        assert len(set(chosen.values())) > 1
        expected = {
            str(trial.seed): outcome(trial)["test"]
            for trial in progress.wanted
            if trial.stage == "evaluation" and trial.multiplier == chosen[trial.seed]
        }
        assert each["test_scores"] == expected
        assert len(each["test_scores_at_best_point"]) == 6
    text = "\n".join(conclusion.lines())
    assert "verdicts of methods" in text
    assert "over tuning and training seeds, for this test split and this W0" in text
    assert "keeps the point that is best on its validation split" in text
    assert conclusion.summary["comparisons"]["verdicts"] == "of methods"


def test_the_difference_to_the_best_point_for_all_seeds_is_shown_beside_each_arm(tmp_path: Path) -> None:
    def outcome(trial: PlannedTrial) -> Ending:
        ending = dict(valley(trial))
        if trial.seed == 0 and trial.multiplier == 2:  # its luck: the other seeds' best point is 1
            ending |= {"score": 0.0, "loss": 0.0, **({"test": 0.5} if trial.stage == "evaluation" else {})}
        return ending

    conclusion = concluded(tmp_path, replicated_study(tmp_path, protocol={}), outcome)
    [arm] = [each for each in conclusion.summary["evaluation"]["settings"]["tuned"] if each["arm"] == "lora r=2"]
    gain = np.mean([arm["test_scores"][s] - arm["test_scores_at_best_point"][s] for s in arm["test_scores"]])
    assert gain < 0
    table = conclusion.tables[0]
    [row] = [row for row in table.rows if row[0] == "lora r=2"]
    assert row[table.columns.index("- best point")].split(" ± ")[0] == pytest.approx(f"{gain:.1f}", abs=0.06) or (
        float(row[table.columns.index("- best point")].split(" ± ")[0]) == pytest.approx(gain, abs=0.06)
    )


def test_a_shared_tuning_says_that_its_verdicts_are_of_points(tmp_path: Path) -> None:
    conclusion = concluded(tmp_path, study_of(tmp_path))
    text = "\n".join(conclusion.lines())
    assert "verdicts of the chosen points, not of the methods" in text
    assert any("forget the noise of tuning" in warning for warning in conclusion.warnings)
    assert conclusion.drawn["comparisons"]["holds"].str.contains("not of the methods").all()


def test_arms_that_come_after_an_evaluation_was_seen_are_a_family_of_their_own(tmp_path: Path) -> None:
    arms = [{"variant": ["lora", "rslora"], "rank": 4}]
    first = replicated_study(tmp_path, arms=arms)
    before = family(concluded(tmp_path, first))
    later = replicated_study(tmp_path, arms=[*arms, {"variant": ["adalora", "lora_plus"], "rank": 4}])
    of_first = dict.fromkeys((arm.config_hash for arm in first.arms), 1)
    late = dict.fromkeys((arm.config_hash for arm in later.arms if arm.config_hash not in of_first), 2)
    conclusion = conclusion_of(later, study_state_of(later, valley, of_first | late), tmp_path)
    assert family(conclusion) == before  # no word of the others has changed
    assert conclusion.summary["comparisons"]["families"]["tuned, family 2"]["tests"] == 2
    assert "Holm over 2 comparisons of arms that came later" in "\n".join(conclusion.lines())
    together = family(concluded(tmp_path, later))
    assert len(together) == 3
