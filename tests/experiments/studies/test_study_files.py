"""A study's file: arms from grids, every error at once, comparisons named before, and what may not change."""

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from project_paths import CONFIGS

from experiments.config.errors import ConfigError
from experiments.config.loading import load
from experiments.config.yaml_files import yaml_text
from experiments.models.transformer import ByteTransformer
from experiments.studies.consistency import shared_context, warnings_of_arms
from experiments.studies.protocol.protocol import plan_ahead, progress_of
from experiments.studies.spec.arm import Arm
from experiments.studies.spec.arms import Expansion, expand
from experiments.studies.spec.comparisons import comparisons
from experiments.studies.spec.frozen import changes, frozen
from experiments.studies.spec.study import Study, load_study
from lora_variants import VARIANTS
from lora_variants.interface.attach import attach
from lora_variants.interface.pack import Pack

BYTES = CONFIGS / "bytes.yaml"
SHIPPED = sorted((CONFIGS / "studies").glob("*.yaml"))
LORA = {"variant": "lora", "rank": [4, 8]}


def study(tmp_path: Path, *overrides: str, **changed: Any) -> Study:
    tree = {"name": "s", "config": str(BYTES), "arms": [LORA], "protocol": {"margin": 0.01}}
    path = tmp_path / "study.yaml"
    path.write_text(yaml_text({key: value for key, value in (tree | changed).items() if value is not None}))
    return load_study(path, overrides)


def arms(tmp_path: Path, *entries: Mapping[str, Any], **changed: Any) -> tuple[Arm, ...]:
    return study(tmp_path, arms=list(entries), **changed).arms


def errors(tmp_path: Path, *overrides: str, **changed: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as error:
        study(tmp_path, *overrides, **changed)
    return error.value.errors


def labels(found: tuple[Arm, ...]) -> list[str]:
    return [arm.label for arm in found]


def test_lists_multiply_out_and_each_arm_is_the_run_that_the_command_line_would_make(tmp_path: Path) -> None:
    found = arms(tmp_path, {"variant": ["lora", "adalora"], "rank": [2, 4], "dropout": 0.1}, set={"steps": 7})
    assert labels(found) == ["lora r=2", "lora r=4", "adalora r=2", "adalora r=4"]
    for arm in found:
        name, rank = str(arm.keys["variant"]), int(arm.keys["rank"])
        run = load(BYTES, variant=name, rank=rank, overrides=["variant.dropout=0.1", "training.steps=7", "study=s"])
        assert arm.config.tree() == run.tree()
        assert arm.centre == run.learning_rate


def test_a_knob_that_is_a_list_needs_a_list_of_lists(tmp_path: Path) -> None:
    found = arms(tmp_path, {"targets": [["*.query"], ["*.query", "*.value"]]})
    assert [arm.config.targets for arm in found] == [["*.query"], ["*.query", "*.value"]]
    assert labels(found) == ["lora r=16 targets=*.query", "lora r=16 targets=*.query+*.value"]
    (error,) = errors(tmp_path, arms=[{"targets": ["*.query"]}])
    assert error.endswith("needs a list of lists")


def test_earlier_keys_are_answered_with_their_new_names(tmp_path: Path) -> None:
    found = errors(
        tmp_path,
        "schedule=cosine",
        set={"training.rows": 8},
        arms=[{"variant": "lora", "clip": 1.0}],
        protocol={"margin": 0.1, "tuning": {"multipliers": [1, 2]}},
    )
    assert [message.rpartition(": ")[2] for message in found] == [
        "multipliers is called learning_rate_multipliers",
        "rows is called batch_size",
        "schedule is called lr_schedule",
        "clip is called max_grad_norm",
    ]
    assert errors(tmp_path, "protocol.tuning.multipliers=[1]")[0].endswith(
        ": multipliers is called learning_rate_multipliers"
    )


def test_a_rank_in_a_grid_is_left_out_for_variants_without_one_and_their_points_are_one_arm(tmp_path: Path) -> None:
    found = study(tmp_path, arms=[{"variant": ["lora", "full", "head"], "rank": [1, 2]}])
    assert labels(found.arms) == ["lora r=1", "lora r=2", "full", "head"]
    assert found.collapsed == {
        "full": ("variant=full rank=1", "variant=full rank=2"),
        "head": ("variant=head rank=1", "variant=head rank=2"),
    }
    for rank in (4, [4, 8]):
        (error,) = errors(tmp_path, arms=[LORA, {"variant": "full", "rank": rank}])
        assert "'full' has no rank" in error


def test_a_knob_of_one_variant_leaves_the_others_of_its_entry_alone(tmp_path: Path) -> None:
    found = arms(tmp_path, {"variant": ["lora", "adalora"], "rank": 4, "variant.prune_every": [5, 10]})
    assert labels(found) == ["lora r=4", "adalora r=4 prune_every=5", "adalora r=4 prune_every=10"]
    (error,) = errors(tmp_path, arms=[LORA, {"variant": "lora", "prune_every": 5}])
    assert "prune_every: unknown key" in error


def test_common_knobs_reach_the_arms_after_their_variant_is_chosen(tmp_path: Path) -> None:
    found = study(tmp_path, arms=[{"variant": ["adalora", "lora"]}, {"variant": "full"}], set={"alpha": 3, "rank": 2})
    assert [getattr(arm.config.variant, "alpha", None) for arm in found.arms] == [3, 3, None]
    assert labels(found.arms) == ["adalora r=2", "lora r=2", "full"]
    named = study(tmp_path, arms=[{"rank": [1, 2]}], set={"variant": "rslora"}, protocol=RSLORA)
    assert labels(named.arms) == ["rslora r=1", "rslora r=2"]


RSLORA = {"margin": 0.01, "reference": {"variant": "rslora"}}


def test_one_knob_is_one_key_however_the_file_spells_it(tmp_path: Path) -> None:
    found = arms(tmp_path, {"variant.rank": 4, "training.weight_decay": 0.1}, {"rank": 4, "weight_decay": 0.2})
    assert [dict(arm.keys) for arm in found] == [
        {"variant": "lora", "rank": 4, "weight_decay": decay} for decay in (0.1, 0.2)
    ]


def test_labels_have_only_the_keys_that_tell_arms_apart(tmp_path: Path) -> None:
    found = arms(
        tmp_path,
        {"variant": "lora", "rank": [4, 8], "dropout": 0.1, "max_grad_norm": 1.0},
        {"variant": "lora", "rank": 8, "dropout": 0.2, "max_grad_norm": 1.0},
        {"variant": "lora", "rank": {"*.query": 8, "*.up": 2}},
    )
    assert labels(found) == ["lora r=4", "lora r=8 dropout=0.1", "lora r=8 dropout=0.2", "lora r=*.query:8,*.up:2"]


def test_a_label_names_one_arm(tmp_path: Path) -> None:
    found = arms(tmp_path, {"label": "mine", "variant": "lora", "rank": 4}, {"variant": "lora", "rank": [4, 8]})
    assert labels(found) == ["mine", "lora r=8"]
    found = arms(tmp_path, {"variant": "lora", "rank": [4, 8]}, {"label": "mine", "variant": "lora", "rank": 4})
    assert labels(found) == ["mine", "lora r=8"]
    assert "names a single arm, and this entry makes 2" in errors(tmp_path, arms=[{"label": "a", **LORA}])[0]
    twice = [{"label": "a", "rank": 4}, {"label": "a", "rank": 8}]
    assert errors(tmp_path, arms=twice) == ("arms: two arms have the label 'a'",)
    same = [{"label": "a", "rank": 4}, {"label": "b", "rank": 4}]
    assert "'b' and 'a' are the same configuration" in errors(tmp_path, arms=same)[0]


def test_every_error_of_the_file_the_arms_and_the_command_line_is_reported_at_once(tmp_path: Path) -> None:
    found = errors(
        tmp_path,
        "protocol.marginn=3",
        "stps=3",
        name="a b",
        arms=[{"variant": ["lora", "lorra"], "rank": [1, 2, 0.5]}, {"seed": 3}, {"rank": []}],
        protocol={
            "tuning": {"shared": True, "seeds": [1, 1], "learning_rate_multipliers": [1]},
            "evaluation": {"seeds": [-1]},
        },
    )
    text = "\n".join(found)
    for expected in (
        "name: must be a name of letters, digits",
        "protocol.margin: missing",
        "protocol.marginn: unknown key (did you mean 'margin'?)",
        "protocol.tuning.seeds: duplicate values",
        "protocol.tuning.learning_rate_multipliers: must have at least 2 items",
        "protocol.evaluation.seeds.0: must be at least 0, got -1",
        "variant=lora rank=1 (and 5 more): stps: unknown key (did you mean 'training.steps'?)",
        "variant=lorra rank=1 (and 2 more): variant.name: 'lorra' is not known (did you mean 'lora'?)",
        "variant=lora rank=0.5: variant.rank: must be a whole number",
        "arms.1.seed: cannot be set: the protocol gives each trial its seed",
        "arms.2.rank: an empty list makes no arm",
    ):
        assert expected in text, (expected, text)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"arms": []}, "arms: must have at least 1 item"),
        ({"arms": [3]}, "arms.0: must be a map of keys to values"),
        ({"arms": None}, "arms: missing"),
        ({"config": "nowhere.yaml"}, "nowhere.yaml: cannot be read: No such file"),
        ({"arms": [{"variant": {"name": "lora"}}]}, "arms.0.variant: {'name': 'lora'} is no name"),
        ({"arms": [{"label": 3}]}, "arms.0.label: a label is a text, got 3"),
        ({"set": {"seed": 1}}, "set.seed: cannot be set"),
        ({"protocol": {"margin": 0}}, "protocol.margin: must be above 0"),
        ({"protocol": {"margin": 1, "alpha": 1}}, "protocol.alpha: must be below 1"),
        (
            {"protocol": {"margin": 1, "tuning": {"shared": True, "learning_rate_multipliers": [1, 1.001]}}},
            "a factor of 1.01 apart or more",
        ),
        (
            {"protocol": {"margin": 1, "tuning": {"shared": True, "learning_rate_multipliers": [0, 1]}}},
            "learning_rate_multipliers.0: must be above 0",
        ),
        (
            {"protocol": {"margin": 1, "tuning": {"shared": True, "seeds": [7, 8]}}},
            "evaluation needs fresh seeds: 7 of",
        ),
        ({"protocol": {"margin": 1, "fixed_learning_rates": [1e-3, 0.001]}}, "duplicate values (to six digits)"),
        ({"protocol": {"margin": 1, "reference": {"varient": "lora"}}}, "(did you mean 'variant'?)"),
        (
            {"protocol": {"margin": 1, "reference": {"rank": 16}}},
            "no arm has rank=16; the arms are: lora r=4, lora r=8",
        ),
        ({"protocol": {"margin": 1, "reference": {}}}, "protocol.reference: must have at least 1 item"),
        ({"arms": [{"rank": 4, "learning_rate": [1e-3, 2e-3]}]}, "differs from another arm in its learning rate alone"),
        (
            {"arms": [{"rank": 4}, {"task": {"name": "planted"}, "targets": [["*"]]}]},
            "bits_per_byte of bytes and squared_error of planted",
        ),
    ],
)
def test_what_a_study_cannot_be_is_said_with_the_way_out(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    found = errors(tmp_path, **changed)
    assert message in found[0]
    assert len(found) == 1


def test_an_error_of_the_run_configuration_is_said_once_for_all_arms(tmp_path: Path) -> None:
    assert errors(tmp_path, set={"steps": -1}) == (
        "variant=lora rank=4 (and 1 more): training.steps: must be at least 0, got -1",
    )


def test_a_learning_rate_of_an_arm_is_its_centre(tmp_path: Path) -> None:
    found = arms(tmp_path, {"variant": "lora"}, {"variant": "lora_plus"}, {"variant": "rslora", "learning_rate": 3e-4})
    assert [arm.centre for arm in found] == [5e-3, 1.25e-3, 3e-4]


def test_an_arms_config_hash_leaves_out_rate_seed_study_and_bookkeeping(tmp_path: Path) -> None:
    def config_hash(entry: Mapping[str, Any], **changed: Any) -> str:
        return study(tmp_path, arms=[entry], **changed).arms[0].config_hash

    plain = config_hash({"rank": 4})
    assert re.fullmatch(r"[0-9a-f]{12}", plain)
    assert config_hash({"variant.rank": 4, "learning_rate": 0.1}, name="other", set={"wandb.mode": "disabled"}) == plain
    assert config_hash({"rank": 4}, set={"checkpoint_every": 7}) == plain
    assert config_hash({"rank": 4}, set={"steps": 7}) != plain
    places = [config_hash({"rank": 4, "start.path": path}) for path in ("a", "b")]
    assert len({plain, *places}) == 3


def test_arms_are_compared_with_the_references_that_agree_with_them_on_the_other_keys(tmp_path: Path) -> None:
    def pairs(reference: Mapping[str, Any], *entries: Mapping[str, Any]) -> list[tuple[str, str]]:
        asked = {"margin": 0.01, "reference": dict(reference)}
        return [(a.label, b.label) for a, b in study(tmp_path, arms=list(entries), protocol=asked).comparisons()]

    grid = {"variant": ["lora", "adalora"], "rank": [4, 8]}
    full = {"variant": "full"}
    assert pairs({"variant": "lora"}, grid, full) == [
        ("adalora r=4", "lora r=4"), ("adalora r=8", "lora r=8"), ("full", "lora r=4"), ("full", "lora r=8"),
    ]  # fmt: skip
    assert pairs({"variant": "lora", "variant.rank": 8}, grid, full) == [
        (arm, "lora r=8") for arm in ("lora r=4", "adalora r=4", "adalora r=8", "full")
    ]
    named = {"label": "mine", "variant": "lora", "rank": 2, "targets": [["*.query"]]}
    assert pairs({"label": "mine"}, named, grid) == [
        (arm, "mine") for arm in ("lora r=4", "lora r=8", "adalora r=4", "adalora r=8")
    ]


@given(st.permutations(["lora", "rslora", "adalora"]), st.lists(st.sampled_from([1, 2, 4]), min_size=1, unique=True))
def test_no_arm_is_compared_with_itself_or_twice_and_references_only_when_asked(names: list[str], r: list[int]) -> None:
    tree = {"task": {"name": "bytes"}, "targets": ["*"], "variant": {"name": "lora"}}
    made: Expansion = expand([{"variant": names, "rank": r}], base=tree, common={}, study="s")
    found = comparisons(made.arms, {"variant": names[0]})
    assert len(found) == len(set(found)) == 2 * len(r)
    assert {to.keys["variant"] for _, to in found} == {names[0]}
    assert all(arm.keys["rank"] == to.keys["rank"] and arm != to for arm, to in found)


def test_what_leaves_verdicts_out_is_said(tmp_path: Path) -> None:
    few = study(
        tmp_path,
        arms=[LORA, {"variant": "adalora", "rank": 16}],
        protocol={
            "margin": 1,
            "evaluation": {"seeds": [0, 1]},
            "tuning": {"grid": {"learning_rate_multipliers": [1, 2]}},
        },
    ).warnings
    assert len(few) == 3
    assert few[0].startswith("adalora r=16 is compared with nothing")
    assert "needs 5 seeds; protocol.evaluation.seeds has 2" in few[1]
    assert "always at an end" in few[2]
    assert study(tmp_path).warnings == ("nothing is compared: every arm has variant=lora",)
    assert study(tmp_path, arms=[{"variant": "adalora"}]).warnings == ()  # a rate sweep of one arm compares nothing


def test_overrides_go_to_the_protocol_by_path_and_to_the_runs_otherwise(tmp_path: Path) -> None:
    found = study(tmp_path, "protocol.alpha=0.1", "alpha=3", "name=t", "training.steps=9", "set.training.batch_size=8")
    assert (found.protocol.alpha, found.name) == (0.1, "t")
    run = found.arms[0].config
    assert (run.variant.alpha, run.study, run.training.steps, run.training.batch_size) == (3.0, "t", 9, 8)  # type: ignore[attr-defined]


def test_what_an_evaluation_was_promised_may_not_change_and_more_may_come(tmp_path: Path) -> None:
    before = json.loads(json.dumps(frozen(study(tmp_path))))
    assert changes(before, frozen(study(tmp_path))) == []
    more = study(tmp_path, arms=[LORA, {"variant": "adalora"}], protocol={"margin": 0.01, "fixed_learning_rates": [1]})
    assert changes(before, frozen(more)) == []
    assert changes(before, frozen(study(tmp_path, "protocol.margin=0.02"))) == ["protocol.margin: was 0.01, is 0.02"]
    assert changes(before, frozen(study(tmp_path, "protocol.evaluation.seeds=[0]"))) == [
        f"protocol.evaluation.seeds: was {list(range(20))}, is [0]",
        "protocol.evaluation.looks: was [5, 8, 12, 20], is [1]",
    ]
    assert changes(before, frozen(study(tmp_path, "protocol.reference={rank: 8}"))) == [
        "protocol.reference: was {'variant': 'lora'}, is {'rank': 8}"
    ]
    assert changes(frozen(more), before)[0] == "protocol.fixed_learning_rates.1: was True, is nothing"
    (gone,) = changes(before, frozen(study(tmp_path, arms=[{"variant": "lora", "rank": 8}])))
    assert gone.startswith("arm 'lora r=4'")
    assert changes({**before, "data": {"test": "a"}}, {**before, "data": {"test": "b"}}) == ["data.test: was a, is b"]
    moved = changes(before, frozen(study(tmp_path, "learning_rate=1e-3")))
    assert moved[0] == "arm 'lora r=4': its learning rates were around 0.005, are 0.001"


def test_a_key_of_a_run_is_told_where_it_belongs(tmp_path: Path) -> None:
    told = errors(tmp_path, task={"name": "planted"}, training={"steps": 10})
    way_out = "a key of a run; put it into the file that `config` names, or under `set`"
    assert list(told) == [f"task: {way_out}", f"training: {way_out}"]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_study_is_what_its_comment_says(path: Path) -> None:
    found = load_study(path)
    assert found.name == path.stem
    planned = [trial for arm in found.arms for trial in plan_ahead(arm, found.protocol, found.config.search)]
    trials = sum(trial.run_of is None for trial in planned)
    seeds = len(found.protocol.evaluation.seeds)
    extensions = 2 * seeds * len(found.arms) if path.stem == "smoke" else 0  # its grids of two are always extended
    comment = re.sub(r"\n# ?", " ", path.read_text().split("\nname:")[0])
    stated = re.search(r"(\d+) arms of \d+ (?:trained )?trials.*?(\d+) in all", comment)
    assert stated is not None
    assert [int(number) for number in stated.groups()] == [len(found.arms), trials + extensions]
    assert found.comparisons()
    if path.stem != "smoke":
        assert found.warnings == ()


CENTRES = {
    "learning_rate": {"lora": 6e-3, "rslora": 1.2e-2, "full": 2e-3},
    "low_rank": {"lora": 5e-3, "full": 2e-3},
    "low_rank_digits": {"lora": 6e-3, "full": 2e-3, "head": 5e-2},
    "low_rank_trec": {"lora": 3e-3, "full": 3e-4, "head": 1e-2},
    **{f"low_rank_planted_{rank}": {"lora": 1e-2, "full": 3e-3} for rank in (2, 8, 48, "shuffled")},
    "rank": {"lora": 5e-3, "rslora": 5e-3, "adalora": 5e-3, "full": 2e-3},
    "adalora_alpha": {"lora": 5e-3, "adalora": 5e-3},
    "rank_per_layer": {"lora": 5e-3, "adalora for its ranks": 5e-3},
    "smoke": {"lora": 5e-3, "adalora": 5e-3},
    "targets": {"lora": 5e-3},
    "trec_rank_per_layer": {"lora": 3e-3},
    "variants": {"lora": 5e-3, "rslora": 5e-3, "lora_plus": 1.25e-3, "adalora": 5e-3},
}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_arms_of_a_shipped_study_are_tuned_around_exactly_these_rates(path: Path) -> None:
    found = load_study(path).arms
    centres = {(arm.config.variant.name, arm.centre) for arm in found}
    centres |= {(arm.source.label, arm.source.centre) for arm in found if arm.source}
    assert centres == set(CENTRES[path.stem].items())


@pytest.mark.parametrize("name", ["targets", "variants"])
def test_the_arms_of_a_fixed_budget_train_equally_many_parameters(name: str) -> None:
    sizes = {}
    for arm in load_study(CONFIGS / "studies" / f"{name}.yaml").arms:
        if arm.keys["variant"] == "adalora":  # its budget is that of the end
            continue
        with warnings.catch_warnings(action="ignore"):
            variant = attach(
                VARIANTS[arm.config.variant.name].load(),
                ByteTransformer(),
                targets=arm.config.targets,
                pack=Pack(seeds=(0,), total_steps=(1,)),
                configs=[arm.config.variant],
            )
        sizes[arm.label] = variant.trainable_parameters(0)
    assert set(sizes.values()) == {10_240 if name == "targets" else 18_432}, sizes


def test_arms_that_come_to_one_configuration_are_the_same_and_are_not_tested() -> None:
    rank = load_study(CONFIGS / "studies" / "rank.yaml")
    assert [(arm.label, other.label) for arm, other in rank.same()] == [("rslora r=16", "lora r=16")]
    assert len(rank.comparisons()) == 17
    assert ("rslora r=16", "lora r=16") not in [(arm.label, other.label) for arm, other in rank.comparisons()]


@pytest.mark.parametrize(
    ("arms", "grid", "alike", "fixed"),
    [
        ([{"variant": ["lora", "rslora"], "rank": 16}], {}, True, True),
        ([{"variant": ["lora", "rslora"], "rank": 16}], {"alpha_per_rank": [2, 8, 32]}, True, True),  # at every point
        ([{"variant": ["lora", "rslora"], "rank": 8}], {"alpha_per_rank": [2, 8]}, False, False),
        ([{"variant": ["lora", "lora_plus"], "rank": 16, "learning_rate_ratio": 1.0}], {}, False, True),  # own centres
        ([{"variant": ["lora", "full"]}], {}, False, False),
    ],
)
def test_what_is_one_configuration_is_found_over_the_whole_grid(
    tmp_path: Path, arms: list[dict[str, Any]], grid: dict[str, list[float]], alike: bool, fixed: bool
) -> None:
    found = study(tmp_path, arms=arms, protocol={"margin": 1, "tuning": {"grid": grid}})
    assert (len(found.same()), len(found.comparisons())) == ((1, 0) if alike else (0, 1))
    assert (len(found.same(tuned=False)), len(found.comparisons(tuned=False))) == ((1, 0) if fixed else (0, 1))


@pytest.mark.parametrize(
    ("tuning", "told"),
    [
        ({"seeds": [100]}, "every evaluation seed is tuned by its own runs"),
        ({"learning_rate_multipliers": [1, 2]}, "tuning: {grid: {learning_rate_multipliers"),
        ({"shared": True, "halving": {"keep": 0.6}}, "a tuning that seeds share has none"),
        ({"halving": {"keep": 0.5}}, "half way through a falling schedule low rates lead"),
        ({"halving": {"keep": 0.6}, "grid": {"learning_rate_multipliers": [1, 2]}}, "keeps all 2 points of the grid"),
        ({"seeds": [100], "learning_rate_multipliers": [1, 2]}, "has no seeds"),
        ({"seeds": [100], "learning_rate_multipliers": [1, 2]}, "the points are a grid now"),
        (
            {"shared": True, "grid": {"learning_rate_multipliers": [1, 3]}, "learning_rate_multipliers": [1, 2]},
            "not both",
        ),
        ({"grid": {"alpha_per_rank": [2]}}, "grid.alpha_per_rank"),
        ({"grid": {"alpha_per_rank": [2, 2]}}, "duplicate values"),
        ({"grid": {"alpha": [2, 4]}}, "alpha"),
    ],
)
def test_a_tuning_that_is_not_one_is_an_error_with_the_way_out(
    tmp_path: Path, tuning: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError) as error:
        study(tmp_path, protocol={"margin": 1, "tuning": tuning})
    assert told in "\n".join(error.value.errors)


def test_an_offset_of_the_seeds_makes_equal_arms_differ_and_keeps_them_paired(tmp_path: Path) -> None:
    found = study(tmp_path, arms=[{"variant": "lora", "seed_offset": [0, 1000]}], protocol={
        "margin": 1, "reference": {"seed_offset": 0}})  # fmt: skip
    first, second = found.arms
    assert [arm.label for arm in found.arms] == ["lora r=16 seed_offset=0", "lora r=16 seed_offset=1000"]
    assert first.config_hash != second.config_hash
    plain = study(tmp_path, arms=[{"variant": "lora"}]).arms[0]
    assert first.config_hash == plain.config_hash  # no offset is the arm as it was
    wanted = [progress_of(arm, found.protocol, {}, higher_is_better=False).wanted for arm in found.arms]
    assert [trial.seed for trial in wanted[0]] == [trial.seed for trial in wanted[1]]
    assert [trial.config.seed for trial in wanted[1]] == [trial.seed + 1000 for trial in wanted[1]]
    assert [trial.config.seed for trial in wanted[0]] == [trial.seed for trial in wanted[0]]
    assert found.comparisons() == [(second, first)]
    assert found.same() == []


@pytest.mark.parametrize(("arm", "common"), [({"alpha_per_rank": [2, 4]}, {}), ({}, {"variant.alpha_per_rank": 4.0})])
def test_a_knob_that_the_grid_sets_is_refused_in_arms_and_in_what_all_share(
    tmp_path: Path, arm: dict[str, Any], common: dict[str, Any]
) -> None:
    protocol = {"margin": 1, "tuning": {"grid": {"alpha_per_rank": [2, 8]}}}
    with pytest.raises(ConfigError) as error:
        study(tmp_path, arms=[{"variant": "lora", **arm}], set=common, protocol=protocol)
    assert "protocol.tuning.grid.alpha_per_rank sets" in "\n".join(error.value.errors)


@pytest.mark.parametrize(
    ("config", "margin", "warned"), [("digits", 1, True), ("digits", 0.01, False), ("planted", 1, False)]
)
def test_a_margin_as_wide_as_the_scores_themselves_is_told(
    tmp_path: Path, config: str, margin: float, warned: bool
) -> None:
    protocol = {"margin": margin, "evaluation": {"seeds": [0, 1]}}
    found = study(tmp_path, config=str(CONFIGS / f"{config}.yaml"), protocol=protocol)
    told = [text for text in warnings_of_arms(found, shared_context(found)) if text.startswith("protocol.margin: ")]
    assert (
        told
        == [
            "protocol.margin: 1 is in units of accuracy, which is at most 1, so no difference would exceed it; "
            "one point of a hundred is 0.01"
        ]
        * warned
    )
