"""Another variant than the file's: stated knobs that are shared carry over, others are dropped, and both are said."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from project_paths import CONFIGS
from tiny_studies import start, study_file

from experiments.config.errors import ConfigError
from experiments.config.loading import load
from experiments.config.yaml_files import yaml_text
from experiments.run import main
from experiments.studies.spec.study import Study, load_study
from lora_variants import VARIANTS

PLANTED = CONFIGS / "planted.yaml"
ADAPTERS = ("lora", "rslora", "adalora", "lora_plus")
WITHOUT_RANK = ("head", "full", "full_all")
SHARED: tuple[dict[str, Any], ...] = (
    {"rank": 2},
    {"rank": {"*": 2, "matrices.0": 3}, "dropout": 0.25},
    {"rank": 2, "alpha": 3.0},
    {"alpha_per_rank": 5.0},
)


def file_with(folder: Path, **variant: Any) -> Path:
    """A run on `planted` whose variant section is this."""
    path = folder / "run.yaml"
    path.write_text(yaml_text({"task": {"name": "planted"}, "targets": ["*"], "variant": variant}))
    return path


def changed(path: Path, variant: str, *overrides: str) -> tuple[dict[str, Any], list[str]]:
    """The variant section that a file has with another variant, and what is said of it."""
    notes: list[str] = []
    tree: dict[str, Any] = load(path, variant=variant, overrides=overrides, notes=notes).tree()["variant"]
    return tree, notes


def alone(variant: str, **knobs: Any) -> dict[str, Any]:
    """The section of a variant with these knobs, and its own defaults for all others."""
    tree: dict[str, Any] = VARIANTS[variant].load().config_class(name=variant, **knobs).model_dump(mode="json")
    return tree


@pytest.mark.parametrize("knobs", SHARED, ids=lambda knobs: "+".join(knobs))
@pytest.mark.parametrize("old", ADAPTERS)
@pytest.mark.parametrize("new", ADAPTERS)
def test_what_the_file_states_of_the_shared_knobs_is_all_that_carries_over(
    tmp_path: Path, old: str, new: str, knobs: dict[str, Any]
) -> None:
    tree, notes = changed(file_with(tmp_path, name=old, **knobs), new)
    assert tree == alone(new, **knobs)
    assert len(notes) == (old != new)


def test_no_default_of_a_variant_carries_over(tmp_path: Path) -> None:
    """The alpha_per_rank of lora would undo the scaling of rslora, and the ratio of lora_plus is the method itself."""
    for old in ADAPTERS:
        path = file_with(tmp_path, name=old)
        for new in VARIANTS:
            assert changed(path, new) == (alone(new), [])


def test_a_variants_own_knobs_are_dropped_and_both_are_said(tmp_path: Path) -> None:
    path = file_with(tmp_path, name="adalora", rank=2, initial_rank=5, learning_rate_ratio=4.0, dropout=0.0)
    tree, notes = changed(path, "lora")
    assert tree == alone("lora", rank=2)
    assert notes == [
        "lora in place of the file's adalora: rank=2, dropout=0.0 carried over (default: rank=16)",
        "lora in place of the file's adalora: initial_rank=5, learning_rate_ratio=4.0 dropped",
    ]
    assert changed(path, "adalora")[0]["initial_rank"] == 5


@pytest.mark.parametrize("new", WITHOUT_RANK)
def test_a_variant_without_rank_drops_it_and_says_so(tmp_path: Path, new: str) -> None:
    tree, notes = changed(file_with(tmp_path, name="lora", rank=2, init="gaussian"), new)
    assert tree == alone(new)
    assert notes == [f"{new} in place of the file's lora: rank=2, init=gaussian dropped"]


def test_the_command_line_wins_over_what_would_carry_over_and_is_not_said_again(tmp_path: Path) -> None:
    path = file_with(tmp_path, name="lora", rank=2, alpha_per_rank=4.0, dropout=0.1, learning_rate_ratio=8.0)
    tree, notes = changed(path, "rslora", "rank=3", "alpha=6", "dropout=0.2", "learning_rate_ratio=2")
    assert tree == alone("rslora", rank=3, alpha=6.0, dropout=0.2, learning_rate_ratio=2.0)
    assert notes == []
    tree, _ = changed(file_with(tmp_path, name="rslora", alpha=4.0), "lora", "alpha=null")
    assert tree == alone("lora")


def test_a_finished_run_writes_its_defaults_out_and_they_do_not_carry_over_all_the_same(tmp_path: Path) -> None:
    written = tmp_path / "config.yaml"
    written.write_text(yaml_text(load(PLANTED).tree()))
    tree, notes = changed(written, "rslora")
    assert tree == alone("rslora", rank=4)
    assert notes == [
        "rslora in place of the file's lora: rank=4, dropout=0.0 carried over (default: rank=16)",
        "rslora in place of the file's lora: pad_rank_to=0, alpha_per_rank=2.0, learning_rate_ratio=1.0, init=kaiming "
        "dropped",
    ]
    assert changed(written, "rslora", "alpha_per_rank=2")[0] == alone("rslora", rank=4, alpha_per_rank=2.0)
    written.write_text(yaml_text(load(PLANTED, overrides=["alpha_per_rank=3"]).tree()))
    assert changed(written, "rslora")[0] == alone("rslora", rank=4, alpha_per_rank=3.0)


def test_what_a_file_states_of_loras_alpha_holds_for_adalora_and_loras_default_does_not(tmp_path: Path) -> None:
    for stated in ({"alpha": 8.0}, {"alpha_per_rank": 4.0}):
        tree, notes = changed(file_with(tmp_path, name="lora", **stated), "adalora")
        assert tree == alone("adalora", **stated)
        ((knob, value),) = stated.items()
        assert notes == [
            f"adalora in place of the file's lora: {knob}={value} carried over (default: alpha_per_rank=16.0)"
        ]
    written = tmp_path / "config.yaml"
    written.write_text(yaml_text(load(PLANTED).tree()))
    tree, notes = changed(written, "adalora")
    assert tree == alone("adalora", rank=4)
    assert "alpha_per_rank=2.0" in notes[1]
    assert notes[1].endswith(" dropped")


def test_a_shared_knob_that_is_faulty_in_the_file_is_faulty_in_another_variant(tmp_path: Path) -> None:
    notes: list[str] = []
    with pytest.raises(
        ConfigError, match=r"variant\.rank: must be a whole number or a map of keys to values, got 'four'"
    ):
        load(file_with(tmp_path, name="lora", rank="four"), variant="adalora", notes=notes)
    assert notes == ["adalora in place of the file's lora: rank=four carried over (default: rank=16)"]
    with pytest.raises(ConfigError, match=r"variant\.name: 'adalor' is not known"):
        load(file_with(tmp_path, name="lora", rank=4), variant="adalor")


def test_a_section_that_is_no_section_states_nothing(tmp_path: Path) -> None:
    path = file_with(tmp_path)
    path.write_text(path.read_text().replace("variant: {}", "variant: lora"))
    assert changed(path, "adalora") == (alone("adalora"), [])
    assert changed(file_with(tmp_path, rank=4), "adalora")[1] == [
        "adalora in place of the file's variant: rank=4 carried over (default: rank=16)"
    ]


def test_the_command_says_it_in_a_plan_in_a_run_and_where_there_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = ["--config", str(file_with(tmp_path, name="lora", rank=2, init="gaussian")), "--variant", "adalora"]
    quick = ["--set", "steps=2", "--set", "task.evaluation_rows=8", "--wandb", "disabled", "--runs-dir", str(tmp_path)]
    for code, arguments in (0, ["--plan"]), (0, quick), (2, ["--set", "stps=2"]):
        assert main([*file, *arguments]) == code
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == [
            "adalora in place of the file's lora: rank=2 carried over (default: rank=16)",
            "adalora in place of the file's lora: init=gaussian dropped",
        ]
    assert main([file[0], file[1], "--plan"]) == 0
    assert "in place of" not in capsys.readouterr().out


def study(folder: Path, *, variant: dict[str, Any], **changed: Any) -> Study:
    return load_study(study_file(folder, **{"config": str(file_with(folder, **variant))} | changed))


def sections(found: Study) -> list[dict[str, Any]]:
    return [arm.config.tree()["variant"] for arm in found.arms]


def test_arms_of_other_variants_take_over_what_the_run_configuration_states(tmp_path: Path) -> None:
    found = study(
        tmp_path,
        variant={"name": "lora", "rank": 2, "init": "gaussian"},
        arms=[{"variant": ["lora", "adalora", "full"]}, {"variant": "rslora", "rank": [1, 3]}],
    )
    assert sections(found) == [
        alone("lora", rank=2, init="gaussian"), alone("adalora", rank=2), alone("full"),
        alone("rslora", rank=1), alone("rslora", rank=3),
    ]  # fmt: skip
    assert [arm.label for arm in found.arms] == ["lora r=2", "adalora r=2", "full", "rslora r=1", "rslora r=3"]
    assert found.notes == (
        "adalora in place of the file's lora: rank=2 carried over (default: rank=16)",
        "adalora in place of the file's lora: init=gaussian dropped",
        "full in place of the file's lora: rank=2, init=gaussian dropped",
        "rslora in place of the file's lora: init=gaussian dropped",
    )


@pytest.mark.parametrize("key", ["rank", "variant.rank"])
def test_what_a_study_sets_for_all_arms_reaches_each_variant_that_has_it(tmp_path: Path, key: str) -> None:
    found = study(tmp_path, variant={"name": "lora", "rank": 2}, set={key: 4}, arms=[{"variant": [*ADAPTERS, "full"]}])
    assert sections(found) == [*(alone(name, rank=4) for name in ADAPTERS), alone("full")]
    assert found.notes == ("full in place of the file's lora: rank=2 dropped",)


def test_a_study_says_once_what_its_arms_take_over(tmp_path: Path) -> None:
    tree = yaml.safe_load(study_file(tmp_path).read_text())
    file = study_file(tmp_path, arms=[{"variant": ["lora", "adalora"], "dropout": [0.0, 0.1]}], set=tree["set"])
    said = start(file, tmp_path / "runs", plan=True).said
    assert said.count("adalora in place of the file's lora: rank=4 carried over (default: rank=16)") == 1
