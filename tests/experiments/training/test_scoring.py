"""Scores of updates that no run trained, and the second moments of what the base's layers see."""

import json
from pathlib import Path

import pytest
import torch
from project_paths import CONFIGS
from safetensors.torch import load_file
from text_data import write_labelled, write_model

from experiments.config.loading import load
from experiments.config.schema import RunConfig
from experiments.record.ledger import LEDGER
from experiments.runner import execute
from experiments.terminal import Display
from experiments.training.context import TrainingContext
from experiments.training.evaluation import evaluate_plain
from experiments.training.input_moments import input_moments
from experiments.training.scoring import Scored, score_updates


def quick(name: str = "planted") -> RunConfig:
    small = ["steps=5", "evaluate_every=0", "wandb.mode=disabled"]
    return load(CONFIGS / f"{name}.yaml", variant="full", overrides=small)


@pytest.fixture
def context() -> TrainingContext:
    context = TrainingContext(quick())
    context.load()
    return context


def test_no_update_scores_what_the_base_does_and_a_run_s_own_what_the_run_did(
    tmp_path: Path, context: TrainingContext
) -> None:
    finished = execute(quick(), runs_dir=tmp_path, test=True, display=Display.silent())
    config, task = quick(), context.task
    base = evaluate_plain(context.base, task, "test", "float32")
    delta = load_file(finished.folder / "delta.safetensors")
    given = [Scored("base", "nothing", {}), Scored(finished.folder.name, "whole", delta)]
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.name != LEDGER}
    nothing, whole = score_updates(context, config, given, runs_dir=tmp_path, pack=2)
    assert nothing == pytest.approx(base, rel=1e-6)
    assert whole == pytest.approx(finished.result["test"], rel=1e-5)
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file() and p.name != LEDGER} == files
    rows = [json.loads(line) for line in (tmp_path / LEDGER).read_text().splitlines()]
    assert [(row["run"], row["purpose"]) for row in rows[-2:]] == [
        ("base", "nothing"), (finished.folder.name, "whole")
    ]  # fmt: skip


def test_a_score_is_the_same_in_any_pack(tmp_path: Path, context: TrainingContext) -> None:
    updates = [{"matrices.0": torch.randn(64, 64, generator=torch.Generator().manual_seed(i)) / 8} for i in range(5)]
    given = [Scored(str(i), "scale", update) for i, update in enumerate(updates)]
    alone, packed = (list(score_updates(context, quick(), given, runs_dir=tmp_path, pack=p)) for p in (1, 4))
    assert alone == packed


def test_over_a_base_with_dropout_updates_are_scored_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.data.tokens.cache_folder", lambda: tmp_path / "cache")
    places = [f"model.name={write_model(tmp_path, 'bert')}", f"task.path={write_labelled(tmp_path / 'data')}"]
    knobs = ["model.dropout=0.1", "task.text=[sentence]", "task.labels=['0', '1']", "task.max_length=32"]
    task = ["task.name=text_classification", "targets=['*.query']", "learning_rate=1e-2"]
    config = load(None, variant="full", overrides=[*task, *places, *knobs])
    context = TrainingContext(config)
    assert context.task.trains_alone() is not None
    context.read_data()
    context.load()
    given = [Scored(str(i), "nothing", {}) for i in range(3)]
    first, *others = score_updates(context, config, given, runs_dir=tmp_path, pack=4)
    assert others == [first, first]


def test_an_update_of_a_layer_that_is_not_adapted_is_refused(tmp_path: Path, context: TrainingContext) -> None:
    given = [Scored("x", "nothing", {"matrices.7": torch.ones(64, 64)})]
    with pytest.raises(ValueError, match=r"matrices\.7"):
        list(score_updates(context, quick(), given, runs_dir=tmp_path, pack=1))


def test_the_second_moment_of_a_layer_is_that_of_its_inputs(context: TrainingContext) -> None:
    (batch,) = context.task.evaluation_batches("validation")
    expected = batch["x"].double().mT @ batch["x"].double() / len(batch["x"])
    found = input_moments(context, quick())
    assert list(found) == ["matrices.0"]
    assert torch.allclose(found["matrices.0"], expected, rtol=1e-10)


def test_moments_of_a_transformer_are_there_for_every_adapted_layer_and_leave_the_base_free() -> None:
    config = quick("digits")
    context = TrainingContext(config)
    context.load()
    before = list(context.base.state_dict())
    found = input_moments(context, config)
    assert len(found) == 24
    assert all(torch.allclose(moment, moment.mT) and moment.diagonal().min() >= 0 for moment in found.values())
    assert list(context.base.state_dict()) == before
