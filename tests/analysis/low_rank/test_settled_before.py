"""What the low-rank test rests on: updates of now, a question that was settled before, a number of seeds that helps."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from planted_hypothesis import SIDE, finished_study
from project_paths import CONFIGS

from analysis.hypothesis import main
from analysis.low_rank.seeds_to_settle import of_undecided, seeds_by_hypothesis
from analysis.stats.rank_hypothesis import Finding, Judgement, Verdict, Word
from experiments.config.errors import ConfigError
from experiments.studies.consistency import check_protocol, shared_context, warnings_of_arms
from experiments.studies.protocol.progress import snapshot
from experiments.studies.queue.storage import QueueError, storage_address
from experiments.studies.spec.frozen import changes, frozen
from experiments.studies.spec.study import Study, load_study
from experiments.studies.workers.worker_process import open_queue
from experiments.study import main as study_main


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matrices of two shapes, so that the least full rank, 8, is not the whole of the larger one."""
    matrices = [{"d_out": side, "d_in": side, "rank": 2, "decay": 1.0, "size": 1.0} for side in (8, SIDE)]
    arms = [{"variant": "full"}, {"variant": "lora", "rank": 2}]
    knobs = {"task.matrices": matrices, "task.hidden": False}
    return finished_study(tmp_path_factory.mktemp("shapes"), rank=2, name="shapes", arms=arms, set=knobs)


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained.parent, tmp_path / "runs")
    return tmp_path / "runs" / trained.name


def changed(copy: Path, **keys: Any) -> Study:
    """The study with other keys in its file."""
    (file,) = (path for path in copy.parent.glob("*.yaml") if path.name != "changed.yaml")
    other = copy.parent / "changed.yaml"
    other.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **keys}))
    return load_study(other)


def refused(copy: Path, **keys: Any) -> None:
    """What a launch does before it trains."""
    study = changed(copy, **keys)
    warnings_of_arms(study, shared_context(study))


def test_scores_of_an_update_that_was_trained_again_are_not_taken_from_the_file(
    copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = copy.parent / "out"
    assert main([str(copy), "--out", str(out)]) == 0
    chosen = json.loads((out / "hypothesis.json").read_text())["tasks"][0]
    assert [row["k"] for row in chosen["truncation"] if row["kind"] == "top"] == [1, 2, 4, 8]
    others = sorted(copy.glob("full-*/delta.safetensors"))
    for run in {path.parent for path in others}:
        source = next(path for path in others if path.parent != run)
        shutil.copy(source, run / "delta.safetensors")
        result = json.loads((run / "result.json").read_text())
        digest = hashlib.sha256((run / "delta.safetensors").read_bytes()).hexdigest()
        result["files_sha256"]["delta.safetensors"] = digest
        (run / "result.json").write_text(json.dumps(result))
    assert main([str(copy), "--out", str(out)]) == 2
    assert "its whole ΔW over W0 scores" in capsys.readouterr().err


def test_runs_of_different_test_splits_are_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in copy.glob("lora-*"):
        environment = json.loads((run / "environment.json").read_text())
        environment["data_sha256"]["test"] = "0" * 64
        (run / "environment.json").write_text(json.dumps(environment))
    assert main([str(copy), "--out", str(copy.parent / "out")]) == 2
    assert "the runs were scored on different test splits" in capsys.readouterr().err


def test_an_edited_summary_is_refused(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = json.loads((copy / "summary.json").read_text())
    summary["hypothesis"]["rho0"] = 0.5
    (copy / "summary.json").write_text(json.dumps(summary))
    assert main([str(copy), "--out", str(copy.parent / "out")]) == 2
    assert "was changed since the study wrote it (rho0)" in capsys.readouterr().err


def test_after_an_evaluation_no_arm_of_the_test_comes_goes_or_takes_the_label_of_another(copy: Path) -> None:
    arms = [{"variant": "full", "label": "a"}, {"variant": "full", "training.weight_decay": 0.1, "label": "b"}]
    lora = {"variant": "lora", "rank": 2}
    asked = {"hypothesis": {"full": {"label": "a"}}, "protocol": {"margin": 0.01, "reference": {"variant": "lora"}}}
    before = frozen(changed(copy, arms=[*arms, lora], **asked))
    swapped = [{**arms[0], "label": "b"}, {**arms[1], "label": "a"}]
    for after, role in (([*swapped, lora], "full"), ([*arms, lora, {**lora, "rank": 4}], "capacity")):
        told = changes(before, frozen(changed(copy, arms=after, **asked)))
        assert any(each.startswith(f"the arms of hypothesis.{role}: were") for each in told)
    assert changes(before, frozen(changed(copy, arms=[*arms, lora, {"variant": "rslora", "rank": 4}], **asked))) == []


def test_with_the_queue_what_was_settled_is_not_lost(copy: Path) -> None:
    (copy / "journal.log").unlink()
    study = changed(copy)
    queue = open_queue(study, storage_address(None, runs_dir=copy.parent, study=study.name))
    other = changed(copy, hypothesis={"rho0": 0.5})
    with pytest.raises(QueueError, match=r"what was settled before them has changed: hypothesis\.rho0: was 0\.25"):
        check_protocol(other, queue, snapshot(other, queue), copy)
    assert check_protocol(study, queue, snapshot(study, queue), copy) is None
    assert check_protocol(study, queue, snapshot(study, queue), copy) is None


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"hypothesis": {"alpha": 0.5}}, "hypothesis.alpha"),
        ({"hypothesis": {"score": "acc"}}, "hypothesis.score: 'acc' is no score of this task; it has loss, squared"),
        ({"hypothesis": {"family": ["a", "b"]}}, "hypothesis.family: a, b leaves out shapes, this study; add it"),
        ({"hypothesis": {"full": {"variant": "lora"}, "capacity": {"rank": 2}}}, "lora r=2 learns no dense ΔW"),
        ({"hypothesis": {"floor": {"variant": "lora"}}}, "hypothesis.floor: lora r=2 is tested itself"),
        ({"protocol": {"evaluation": {"seeds": [0]}, "reference": {"variant": "full"}, "margin": 1}}, "no spread"),
    ],
)
def test_what_could_not_be_tested_in_the_end_is_an_error_at_the_start(
    copy: Path, keys: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError) as error:
        refused(copy, **keys)
    assert told in "\n".join(error.value.errors)


def test_a_missing_configuration_is_not_blamed_on_the_hypothesis(copy: Path) -> None:
    with pytest.raises(ConfigError) as error:
        changed(copy, config="none.yaml")
    assert not any("hypothesis" in told for told in error.value.errors)


def test_the_plan_says_which_rank_is_in_question(capsys: pytest.CaptureFixture[str]) -> None:
    file = CONFIGS / "studies" / "low_rank_planted_2.yaml"
    assert study_main([str(file), "--plan", "--set", "hypothesis.rho0=0.02"]) == 0
    said = capsys.readouterr().out
    assert "low-rank test: the gain of full over W0; full rank 48, k0 = 1 (rho0 0.02)" in said
    assert study_main([str(file), "--plan", "--set", "hypothesis.capacity={rank: 48}"]) == 0
    assert "hypothesis: no adapter has a rank up to 12, so of adapters it can not hold" in capsys.readouterr().out


def test_arms_on_false_labels_say_so(copy: Path) -> None:
    null = {"variant": "lora", "rank": [1, 2], "training.labels": "shuffled", "rate_of": {"variant": "lora"}}
    labels = [arm.label for arm in changed(copy, arms=[{"variant": "full"}, {"variant": "lora", "rank": 2}, null]).arms]
    assert labels == ["full", "lora r=2", "lora r=1 on shuffled labels", "lora r=2 on shuffled labels"]


def noise(mean: float) -> np.ndarray:
    return mean + np.linspace(-0.1, 0.1, 5)


@pytest.mark.parametrize(
    ("adapters", "settled"),
    [
        ({1: noise(-0.5), 4: noise(0.5)}, False),  # below k0 none can say that it fails, above none that it holds
        ({1: noise(0.5), 4: noise(0.5)}, True),
        ({1: noise(-0.5), 4: noise(-0.5)}, True),
        ({1: noise(-0.5)}, False),
        ({3: noise(-0.5)}, True),
        ({3: noise(0.5)}, True),
    ],
)
def test_a_number_of_seeds_is_said_only_where_runs_can_say_what_they_show(
    adapters: dict[int, np.ndarray], settled: bool
) -> None:
    numbers = seeds_by_hypothesis(noise(0.01), adapters, 3, alpha=0.025)
    assert (numbers["H2"] is not None) == settled
    stricter = seeds_by_hypothesis(noise(0.01), adapters, 3, alpha=0.025 / 3)
    assert stricter["H1"] > numbers["H1"] > 5  # type: ignore[operator]


def test_of_what_is_decided_no_number_is_said() -> None:
    holds, open_ = Finding(Word.HOLDS, 0.01, 0.9), Finding(Word.UNDECIDED, 0.2, 0.8)
    judged = Judgement(Verdict.INCONCLUSIVE, truncation=holds, capacity=open_)
    assert of_undecided({"H1": 5, "H2": 63}, judged) == {"H2": 63}
