"""An arm's seed offset: an arm of the same configuration with seeds of its own, paired by those of the protocol."""

from pathlib import Path
from typing import Any

import pytest
from in_process_study import TREE, outcome, study_in, worker_on

from analysis.study_results.results import results_table
from experiments.config.errors import ConfigError
from experiments.record.run_dir import RunDirectory
from experiments.runner import execute
from experiments.studies.collect import Collection
from experiments.studies.protocol.progress import snapshot
from experiments.studies.protocol.protocol import plan_ahead
from experiments.studies.spec.study import Study
from experiments.studies.workers.worker_process import PlainStudy
from experiments.terminal import Display
from lora_variants.interface.config import HIGHEST_SEED

NULL = [{"variant": "lora", "rank": 1, "seed_offset": [0, 1000]}]
PROTOCOL: dict[str, Any] = TREE["protocol"] | {
    "tuning": {"grid": {"learning_rate_multipliers": [0.5, 1]}}, "reference": {"seed_offset": 0},
}  # fmt: skip


def errors(folder: Path, **changed: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as error:
        study_in(folder, **changed)
    return error.value.errors


def test_arms_that_differ_in_their_offset_are_two_and_an_offset_of_0_is_none(tmp_path: Path) -> None:
    first, second = study_in(tmp_path, arms=NULL, protocol=PROTOCOL).arms
    assert first.config_hash != second.config_hash
    assert first.config == second.config
    assert (first.label, second.label) == ("lora r=1 seed_offset=0", "lora r=1 seed_offset=1000")
    (without,) = study_in(tmp_path, arms=[{"variant": "lora", "rank": 1}]).arms
    assert without.config_hash == first.config_hash


def test_trials_of_an_offset_arm_keep_the_seed_of_the_protocol_and_train_with_the_sum(tmp_path: Path) -> None:
    study = study_in(tmp_path, arms=NULL, protocol=PROTOCOL)
    for arm in study.arms:
        for trial in plan_ahead(arm, study.protocol):
            assert trial.seed in (0, 1, 2)
            if trial.learning_rate is not None:
                assert trial.config.seed == trial.seed + arm.seed_offset


def test_a_worker_is_told_the_offset_of_every_arm(tmp_path: Path) -> None:
    study = study_in(tmp_path, arms=NULL, protocol=PROTOCOL)
    told = PlainStudy.of(study).study()
    assert [arm.seed_offset for arm in told.arms] == [0, 1000]
    assert told.arms == study.arms


def test_the_runs_of_an_offset_arm_are_those_of_its_seeds_and_the_table_has_the_protocols(tmp_path: Path) -> None:
    worker = worker_on(tmp_path / "study", pack=8, arms=NULL, protocol=PROTOCOL)
    worker.work()
    outcome(worker)
    study_state = snapshot(worker.study, worker.queue)
    table = results_table(worker.study, study_state, worker.runs_dir)
    own = table[(table["arm"] == "lora r=1 seed_offset=1000") & (table["stage"] == "evaluation")]
    assert set(own["seed"]) == {0, 1, 2}
    trained = table[table["stage"] == "tuning"]
    assert len(trained["score"].unique()) == len(trained)
    (trial,) = [t for t in study_state.arms[1].wanted if t.stage == "evaluation" and t.seed == 2]
    folder = tmp_path / "study" / "tiny" / str(study_state.entries[trial.key].facts["folder"])
    assert RunDirectory(folder).result()["seed"] == 1002
    alone = execute(trial.config, runs_dir=tmp_path / "alone", test=False, display=Display.silent())
    assert alone.folder.name == folder.name
    name = "adapter_model.safetensors"
    assert (alone.folder / name).read_bytes() == (folder / name).read_bytes()
    collection = Collection(worker.study, worker.context, worker.context.base_sha256, tmp_path / "study")
    assert collection.wants(folder)
    without = study_in(tmp_path / "other", arms=[{"variant": "lora", "rank": 1}])
    assert not Collection(without, worker.context, worker.context.base_sha256, tmp_path).wants(folder)


def test_arms_of_one_configuration_whose_seeds_meet_are_refused(tmp_path: Path) -> None:
    near = [{"variant": "lora", "rank": 1, "seed_offset": [0, 2]}]
    assert errors(tmp_path, arms=near, protocol=PROTOCOL) == (
        "arms: 'lora r=1 seed_offset=0' and 'lora r=1 seed_offset=2' are one configuration, and both would train with "
        "seed 2: the same runs; take seed_offsets that are further apart",
    )
    unlike = [{"variant": "lora", "rank": 1}, {"variant": "lora", "rank": 2, "seed_offset": 2}]
    assert len(study_in(tmp_path, arms=unlike).arms) == 2


@pytest.mark.parametrize(("offset", "warned"), [(0, False), (1, True), (2, True), (3, False)])
def test_offsets_that_lie_closer_than_the_seeds_are_warned_of(tmp_path: Path, offset: int, warned: bool) -> None:
    arms = [{"variant": "lora", "rank": 1}, {"variant": "lora", "rank": 2, "seed_offset": offset}]
    warnings = study_in(tmp_path, arms=arms).warnings
    assert any("take seed_offsets further apart" in warning for warning in warnings) == warned


def test_an_arm_without_an_offset_has_that_of_0_to_a_reference(tmp_path: Path) -> None:
    arms = [{"variant": "lora", "rank": 1}, {"variant": "lora", "rank": 1, "seed_offset": 1000}]
    found = study_in(tmp_path, arms=arms, protocol=PROTOCOL)
    assert [(arm.label, to.label) for arm, to in found.comparisons()] == [
        ("lora r=1 seed_offset=1000", found.arms[0].label)
    ]


@pytest.mark.parametrize("offset", [-1, 1.5, True, "1"])
def test_what_is_no_offset_is_refused(tmp_path: Path, offset: object) -> None:
    (told,) = errors(tmp_path, arms=[{"variant": "lora", "rank": 1, "seed_offset": offset}])
    assert f"seed_offset: a whole number from 0 to {HIGHEST_SEED}, got {offset!r}" in told


def test_an_offset_that_leads_beyond_the_highest_seed_is_refused(tmp_path: Path) -> None:
    (told,) = errors(
        tmp_path, arms=[{"variant": "lora", "rank": 1, "seed_offset": HIGHEST_SEED - 1}], protocol=PROTOCOL
    )
    assert told.startswith(f"lora r=1: seed_offset {HIGHEST_SEED - 1} with seed 2 of the protocol is beyond")


@pytest.mark.parametrize("key", ["seed", "seed.init"])
def test_an_arm_sets_no_seed_and_is_told_of_the_offset(tmp_path: Path, key: str) -> None:
    (told,) = errors(tmp_path, arms=[{"variant": "lora", "rank": 1, key: 3}])
    assert told.startswith(f"arms.0.{key}: cannot be set: the protocol gives each trial its seed")
    assert "seed_offset" in told
    assert errors(tmp_path, set={key: 3})[0].startswith(f"set.{key}: cannot be set")


def test_runs_that_ranks_are_derived_from_have_the_offset_too(tmp_path: Path) -> None:
    study = searching(tmp_path)
    sources = [arm.source for arm in study.arms]
    assert [source.seed_offset for source in sources if source] == [0, 1000]
    assert len({source.config_hash for source in sources if source}) == 2


def searching(folder: Path) -> Study:
    search = {"budget": {"total_rank": 4}, "trials": 2, "batch": 1, "contenders": 1}
    arms = [{"variant": "lora", "allocation": "adalora", "seed_offset": [0, 1000]}]
    return study_in(folder, arms=arms, search=search, protocol=PROTOCOL | {"tuning": {"seeds": [100]}})
