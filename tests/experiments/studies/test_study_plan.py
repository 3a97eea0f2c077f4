"""The plan of a study: numbers of each group's own, and what a launch would refuse, before anything is made."""

import io
from pathlib import Path
from typing import Any

import pytest
import yaml
from project_paths import CONFIGS
from rich.console import Console
from text_data import write_labelled, write_model
from tiny_studies import start, study_file

from experiments.studies.plan import _row
from experiments.studies.spec.study import load_study
from experiments.studies.terminal import StudyView
from experiments.terminal import Display


def test_an_arm_that_trains_nothing_says_so_and_leaves_the_other_groups_their_own_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.studies.plan.PATIENCE_SECONDS", 0.0)  # all but the first group are estimated
    arms = [{"variant": "lora", "rank": 4}, {"variant": "head"}, {"variant": "lora", "rank": 16}]
    plan = start(study_file(tmp_path, arms=arms), tmp_path / "runs", plan=True)
    assert (plan.error, plan.code) == (None, 0)
    costs = [line for line in plan.said.partition("measuring")[2].splitlines() if "trained trials" not in line]
    first, head, last = (line.split() for line in costs if " 5 " in line)
    assert "trains nothing" in plan.said
    assert "trains nothing" in " ".join(head)
    assert int(first[-4]) == int(last[-5]) > 1  # trials of a pack
    assert last[-4] == "≈"
    assert float(last[-3]) > 0
    assert "≈: measured alone" in plan.said


def runs_in(folder: Path, left: str) -> Path:
    """A runs folder where the study's own is a file, or has a journal that is none."""
    study = folder / left / "tiny"
    study.parent.mkdir()
    if left == "a file":
        study.write_text("")
    if left == "damaged":
        study.mkdir()
        (study / "journal.log").write_text("no journal\n{\n")
    return study.parent


@pytest.mark.parametrize(
    ("arms", "left", "mode"),
    [
        ([{"rank": 4}, {"rank": 8, "targets": [["nothing.*"]]}], "nothing", None),
        ([{"rank": 4, "start": [{"path": "/nowhere"}]}], "nothing", None),
        ([{"rank": 4}], "nothing", "sometimes"),
        ([{"rank": 4}], "a file", None),
        ([{"rank": 4}], "damaged", None),
    ],
)
def test_a_plan_refuses_what_a_launch_refuses_in_the_same_words(
    tmp_path: Path, arms: list[dict[str, object]], left: str, mode: str | None
) -> None:
    file = study_file(tmp_path, arms=[{"variant": "lora", **arm} for arm in arms])
    runs_dir = runs_in(tmp_path, left)
    planned, launched = (start(file, runs_dir, plan=plan, wandb=mode) for plan in (True, False))
    assert planned.error is not None
    assert (str(planned.error), type(planned.error)) == (str(launched.error), type(launched.error))


def study_on_text(folder: Path) -> dict[str, Any]:
    """What a study of two steps a trial changes, with its data, its model and its configuration in the folder."""
    write_labelled(folder / "data")
    task = {"name": "text_classification", "path": str(folder / "data"), "text": ["sentence"], "max_length": 8}
    tree = {"task": task, "model": {"name": write_model(folder / "model", "bert"), "pooling": "mean"}}
    (folder / "c.yaml").write_text(yaml.safe_dump(tree | {"targets": ["all-linear"], "variant": {"name": "lora"}}))
    knobs = {"training.steps": 2, "training.batch_size": 8, "training.learning_rate": 0.01, "rank": 2}
    return {"config": str(folder / "c.yaml"), "set": knobs, "arms": [{"variant": ["lora", "head"]}]}


def test_the_plan_of_a_study_on_text_shows_the_data_and_what_it_has_not_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    study = study_on_text(tmp_path)
    plan = start(study_file(tmp_path, **study), tmp_path / "runs", plan=True, pack=2)
    assert (plan.error, plan.code) == (None, 0)
    assert "53 rows (66.2%), 105 tokens" in plan.said
    elsewhere = {"set": study["set"] | {"model.name": "some/model"}}
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    plan = start(study_file(tmp_path, **(study | elsewhere)), tmp_path / "runs", plan=True)
    assert (plan.error, plan.code) == (None, 0)
    assert "0: 53, 1: 27" in plan.said
    assert "not checked: model.name: 'some/model' is no folder here" in plan.said
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "cache").exists()
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "data" / "test.tsv").write_text("sentence\tlabel\n")
    for said in ("the test split has no usable row", "has no weights in model"):
        plan = start(study_file(tmp_path, **study), tmp_path / "runs", plan=True)
        assert said in str(plan.error)
        write_labelled(tmp_path / "data")


def test_a_plan_that_is_wider_than_the_terminal_is_not_cut() -> None:
    output = io.StringIO()
    view = StudyView(Display(Console(file=output, width=40)))
    columns = ("arm", *(f"column {letter}" for letter in "abcdef"))
    rows = [
        (f"a label of an arm that is long {n}", *(f"1{n}{n}{n},{letter * 8}" for letter in "abcdef")) for n in range(3)
    ]
    view.plan(columns, rows, title="a plan")
    lines = output.getvalue().splitlines()
    for _, *cells in rows:
        assert any(all(cell in line for cell in cells) for line in lines)
    assert any(all(column in line for column in columns) for line in lines)
    assert "a label of an arm" in output.getvalue()


def test_what_a_plan_says_of_fixed_rates_stands_under_its_heading_whatever_the_grid_has() -> None:
    overrides = ["protocol.fixed_learning_rates=[6e-3, 1.2e-2]"]
    study = load_study(CONFIGS / "studies" / "learning_rate.yaml", overrides)
    rows = {arm.label: _row(study, arm, None) for arm in study.arms}
    assert {len(row) for row in rows.values()} == {len(rows["full"])}
    assert (rows["lora r=4"]["fixed"], rows["lora r=4"]["reads"]) == ("0", "48")  # both are of its grid
    assert (rows["full"]["fixed"], rows["full"]["reads"]) == ("24", "24")


def test_a_launch_on_text_says_what_it_read_and_how_much_of_it_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise ValueError("before anything is trained")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("experiments.studies.launch.refuse_other_bases", stop)
    said = " ".join(start(study_file(tmp_path, **study_on_text(tmp_path)), tmp_path / "runs").said.split())
    assert "train: rows 80; left out 0; labels 0: 53, 1: 27; read from train.tsv" in said
    assert "cut at 8 tokens 53 rows (66.2%), 105 tokens (15.2%)" in said
