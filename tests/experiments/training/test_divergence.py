"""What a score can be: a model that diverged has none, however finite its loss; a bad model has one."""

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from in_process_study import worker_on
from project_paths import CONFIGS
from tiny_transformers import tiny_config

from experiments.config.loading import load
from experiments.config.schema import RunConfig
from experiments.models.model_config import ModelConfig
from experiments.record.run_description import describe_run
from experiments.record.run_dir import RunDirectory
from experiments.run import main
from experiments.studies.protocol.progress import snapshot
from experiments.tasks.bytes import Bytes, BytesConfig
from experiments.tasks.digits import Digits, DigitsConfig
from experiments.tasks.language_modeling import LanguageModeling
from experiments.tasks.language_modeling_config import LanguageModelingConfig
from experiments.tasks.planted import Planted, PlantedConfig
from experiments.tasks.task import Task
from experiments.tasks.text_classification import TextClassification
from experiments.tasks.text_classification_config import TextClassificationConfig
from experiments.terminal import Display
from experiments.training.context import TrainingContext
from experiments.training.early_stopping import Rungs
from experiments.training.evaluation import final_scores
from experiments.training.interruption import Interruption
from experiments.training.loop import train_pack
from experiments.training.trial import RunOptions, TrialRun

QUICK = ("steps=12", "evaluate_every=5", "task.evaluation_rows=64", "wandb.mode=disabled")
DIVERGED = (
    r"diverged: squared_error \S+ on the validation split is no score, which is from 0 to 6.301e\+05 here; a lower"
)


def command(folder: Path, variant: str, rate: float, *more: str) -> int:
    sets = [part for knob in (*QUICK, f"learning_rate={rate}") for part in ("--set", knob)]
    config = ("--config", str(CONFIGS / "planted.yaml"), "--variant", variant)
    return main([*config, *sets, "--runs-dir", str(folder / "runs"), *more])


def only_run(folder: Path) -> RunDirectory:
    (found,) = (path for path in (folder / "runs" / "single").iterdir() if path.is_dir())
    return RunDirectory(found)


def test_a_finite_divergence_is_a_failure_with_its_reason_and_no_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, "full", 1e10) == 1
    run_dir = only_run(tmp_path)
    assert re.search(f"^failed: {DIVERGED}", capsys.readouterr().err)
    assert re.match(DIVERGED, (run_dir.path / "error.txt").read_text())
    assert not run_dir.finished
    assert not list(run_dir.path.glob("*.safetensors"))


def test_what_is_not_finite_before_anything_was_learned_is_not_put_down_to_the_learning_rate(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, "lora", 1e-2, "--set", "task.matrices=[{size: 1e30}]") == 1
    failure = capsys.readouterr().err
    assert "not finite at step 1: loss inf" in failure
    assert "nothing was learned yet: look at base, start and data" in failure
    assert "learning rate" not in failure


@pytest.mark.parametrize(("variant", "rate"), [("lora", 1.0), ("lora_plus", 0.3), ("adalora", 1.0), ("full", 0.3)])
def test_at_a_hundred_times_the_shipped_learning_rate_a_bad_score_is_a_score(
    tmp_path: Path, variant: str, rate: float
) -> None:
    assert command(tmp_path, variant, rate) == 0
    assert only_run(tmp_path).result()["score"] > 10  # the untouched base has 1


@pytest.mark.parametrize(
    ("task", "least", "greatest"),
    [
        (Bytes(BytesConfig()), 0, 80),
        (Digits(DigitsConfig()), 0, 1),
        (Planted(PlantedConfig()), 0, 630_118),
        (TextClassification(TextClassificationConfig(path="x")), 0, 1),
        (TextClassification(TextClassificationConfig(path="x", metrics=["mcc"])), -1, 1),
        (TextClassification(TextClassificationConfig(path="x", regression=True)), -1, 1),
    ],
)
def test_every_task_says_what_a_score_can_be(task: Task, least: float, greatest: float) -> None:
    assert task.score_range == pytest.approx((least, greatest), rel=1e-4, abs=1e-5)
    possible = {"loss": 1e22, task.score_name: greatest}
    assert task.divergence(possible, "test") is None  # a score is judged, not the loss beside it
    for score in (least - 0.01, greatest * 1.01, 1e22):
        found = task.divergence({task.score_name: score}, "test")
        assert re.match(rf"diverged: {task.score_name} \S+ on the test split is no score", str(found))
    assert "not finite on the test split" in str(task.divergence(possible | {"loss": math.inf}, "test"))


def test_a_perplexity_is_bounded_by_that_of_ten_times_the_surprise_of_a_model_that_knows_nothing(
    tmp_path: Path,
) -> None:
    tiny_config("llama").save_pretrained(tmp_path)
    task = LanguageModeling(LanguageModelingConfig(path="x"), ModelConfig(name=str(tmp_path)))
    assert task.score_range == (1.0, pytest.approx(64.0**10))
    bad, diverged = (task.metrics({"loss": loss}) for loss in (40.0, 1e22))
    assert task.divergence(bad, "validation") is None
    assert "diverged: perplexity" in str(task.divergence(diverged, "validation"))


def test_a_loss_on_the_bases_own_domain_that_is_not_finite_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nan = {"before": 1.0, "after": math.nan, "change": math.nan}
    monkeypatch.setattr(
        "experiments.training.loop.final_scores",
        lambda *asked: [(scores, nan) for scores, _ in final_scores(*asked)],
    )
    assert command(tmp_path, "lora", 1e-2) == 1
    assert "failed: not finite on the forgetting split" in capsys.readouterr().err


def config_of(variant: str, rate: float) -> RunConfig:
    return load(CONFIGS / "planted.yaml", variant=variant, overrides=(*QUICK, f"learning_rate={rate}"))


def trained(config: RunConfig, runs: Path, rungs: dict[int, float | None]) -> TrialRun:
    context = TrainingContext(config)
    context.load()
    run = describe_run(config, context, runs, rank_total=0, start=None)
    options = RunOptions(test=None, runs_dir=runs, wandb_mode="disabled", rungs=Rungs(rungs))
    trial = TrialRun(config, context, run, options, Display.silent())
    train_pack(context, [trial], interruption=Interruption())
    return trial


def test_at_a_rung_a_divergence_misses_any_threshold_and_is_no_failure_where_there_is_none(tmp_path: Path) -> None:
    pruned = trained(config_of("full", 1e10), tmp_path / "a", {5: 1e300, 10: 1e300})
    assert (pruned.pruned, pruned.failure) == (5, None)
    free = trained(config_of("full", 1e10), tmp_path / "b", {5: None})
    assert free.pruned is None
    assert str(free.failure).startswith("diverged: squared_error")


def test_on_its_way_a_run_may_diverge_and_its_best_is_of_the_scores_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = Planted.metrics

    def shown(task: Planted, means: dict[str, float]) -> dict[str, float]:
        calls.append(means)
        return score(task, means) | ({"squared_error": -1e9} if len(calls) == 1 else {})

    calls: list[dict[str, float]] = []
    monkeypatch.setattr(Planted, "metrics", shown)
    assert command(tmp_path, "lora", 1e-2) == 0
    run_dir = only_run(tmp_path)
    assert run_dir.scores("squared_error")[5] == -1e9
    assert run_dir.result()["best"] == {"step": 12, "score": run_dir.result()["score"]}


def diverged_on_test(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Planted.evaluation_batches

    def larger(task: Planted, split: Any) -> Any:
        for found in batch(task, split):
            yield found | {"y": found["y"] * (1e9 if split == "test" else 1)}

    monkeypatch.setattr(Planted, "evaluation_batches", larger)


def test_a_divergence_on_the_test_split_is_a_failure_now_and_of_a_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path / "before", "lora", 1e-2) == 0
    diverged_on_test(monkeypatch)
    assert command(tmp_path / "before", "lora", 1e-2, "--test") == 1
    assert command(tmp_path / "now", "lora", 1e-2, "--test") == 1
    assert capsys.readouterr().err.count("on the test split is no score") == 2
    assert "test" not in only_run(tmp_path / "before").result()
    assert not only_run(tmp_path / "now").finished


def test_a_finished_run_whose_score_was_a_divergence_is_not_shown_as_a_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, "lora", 1e-2) == 0
    run_dir = only_run(tmp_path)
    wrong = run_dir.result() | {"score": 9.4e22, "validation": {"loss": 9.4e22, "squared_error": 9.4e22}}
    (run_dir.path / "result.json").write_text(json.dumps(wrong))
    assert command(tmp_path, "lora", 1e-2) == 1
    assert "diverged: squared_error 9.4e+22 on the validation split" in capsys.readouterr().err


def test_a_trial_that_diverged_or_was_finished_as_one_is_never_a_score_of_a_study(tmp_path: Path) -> None:
    tuning = {"shared": True, "learning_rate_multipliers": [1, 1e13], "seeds": [100]}
    changed = {
        "arms": [{"variant": "full"}],
        "protocol": {"tuning": tuning, "evaluation": {"seeds": [0]}, "margin": 0.01},
    }
    worker = worker_on(tmp_path, pack=2, **changed)
    worker.work()
    entries = snapshot(worker.study, worker.queue).entries.values()
    diverged = [entry for entry in entries if entry.state == "failed"]
    assert len(diverged) == 1
    assert diverged[0].score is None
    assert str(diverged[0].facts["failure"]).startswith("diverged: squared_error")

    finished = next(entry for entry in entries if entry.state == "done" and "test" not in entry.facts)
    run_dir = RunDirectory(tmp_path / "tiny" / str(finished.facts["folder"]))
    wrong = run_dir.result() | {"score": 9.4e22, "validation": {"loss": 9.4e22, "squared_error": 9.4e22}}
    (run_dir.path / "result.json").write_text(json.dumps(wrong))
    (tmp_path / "tiny" / "journal.log").unlink()
    again = worker_on(tmp_path, pack=2, **changed)
    again.work()
    states = [entry.state for entry in snapshot(again.study, again.queue).entries.values()]
    assert states == ["failed"] * len(states)
