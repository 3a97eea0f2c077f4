"""False labels: a null that trains as the task does, with nothing of the task in its targets."""

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from project_paths import CONFIGS

from experiments.config.errors import ConfigError
from experiments.config.loading import load
from experiments.config.schema import RunConfig
from experiments.packed_runs import execute_in_packs
from experiments.record.run_dir import RunDirectory
from experiments.runner import execute
from experiments.tasks.task import Task
from experiments.terminal import Display
from experiments.training.context import TrainingContext
from experiments.training.hyperparameters import shared_hyperparameters
from experiments.training.labels import labelled_batches, with_targets

ROWS = 8


def quick(name: str, labels: str, *overrides: str) -> RunConfig:
    small = (f"batch_size={ROWS}", "steps=6", "evaluate_every=0", "checkpoint_every=2", "wandb.mode=disabled")
    return load(CONFIGS / f"{name}.yaml", variant="lora", rank=2, overrides=[f"labels={labels}", *small, *overrides])


def loaded(config: RunConfig) -> TrainingContext:
    context = TrainingContext(config)
    context.load()
    return context


def batches(task: Task, config: RunConfig, seed: int, count: int) -> list[dict[str, Any]]:
    return list(islice(labelled_batches(task, seed, shared_hyperparameters(config)), count))


def by_image(found: list[dict[str, Any]]) -> dict[bytes, int]:
    return {
        image.numpy().tobytes(): int(label)
        for batch in found
        for image, label in zip(batch["images"], batch["labels"], strict=True)
    }


def test_true_labels_are_the_default_and_leave_the_run_what_it_was() -> None:
    plain, true = load(CONFIGS / "bytes.yaml"), load(CONFIGS / "bytes.yaml", overrides=["labels=true"])
    assert plain.config_hash() == true.config_hash()
    assert "labels" not in plain.hashed_config()["training"]
    hashes = {load(CONFIGS / "bytes.yaml", overrides=[f"labels={labels}"]).config_hash() for labels in
              ("true", "shuffled", "base_model")}  # fmt: skip
    assert len(hashes) == 3
    with pytest.raises(ConfigError, match=r"training\.labels"):
        load(CONFIGS / "bytes.yaml", overrides=["labels=false"])


def test_shuffled_labels_of_a_split_are_the_same_ones_at_other_images() -> None:
    config = quick("digits", "shuffled")
    task = loaded(config).task
    images, labels = task.splits["train"]  # type: ignore[attr-defined]
    epoch = len(images) // ROWS
    false, true = batches(task, config, 3, epoch), list(islice(task.training_batches(3, ROWS), epoch))
    assert all(torch.equal(a["images"], b["images"]) for a, b in zip(false, true, strict=True))
    assert not all(torch.equal(a["labels"], b["labels"]) for a, b in zip(false, true, strict=True))
    assert by_image(false).items() <= by_image(batches(task, config, 3, 2 * epoch)).items()  # an image keeps its label
    whole = by_image(batches(task, config, 3, 2 * epoch))
    found = torch.tensor([int(whole[image.numpy().tobytes()]) for image in images])
    assert found.bincount(minlength=5).tolist() == labels.bincount(minlength=5).tolist()


def test_shuffled_bytes_have_the_text_before_them_and_targets_from_anywhere_in_it() -> None:
    config = quick("bytes", "shuffled")
    task = loaded(config).task
    (false,), (true,) = batches(task, config, 0, 1), list(islice(task.training_batches(0, ROWS), 1))
    assert torch.equal(false["tokens"], true["tokens"])
    assert (false["targets"] == true["tokens"][:, 1:]).float().mean() < 0.2
    many = torch.cat([batch["targets"].flatten() for batch in batches(task, config, 0, 40)])
    text = torch.frombuffer(bytearray(task.texts["train"]), dtype=torch.uint8).long()  # type: ignore[attr-defined]
    shares, expected = (x.bincount(minlength=256) / len(x) for x in (many, text))
    assert (shares - expected).abs().max() < 0.01


def test_planted_targets_are_those_of_other_rows() -> None:
    config = quick("planted", "shuffled", "task.noise=0")
    task = loaded(config).task
    (false,), (true,) = batches(task, config, 0, 1), list(islice(task.training_batches(0, ROWS), 1))
    assert torch.equal(false["x"], true["x"])
    assert not torch.equal(false["y"], true["y"])
    assert sorted(map(tuple, false["y"].tolist())) == sorted(map(tuple, true["y"].tolist()))


def test_targets_of_the_base_are_drawn_from_what_it_predicts_whatever_was_learned() -> None:
    config = quick("bytes", "base_model")
    context = loaded(config)
    variant = context.attached([config], [None])
    try:
        layer = next(iter(variant.layers.values()))
        with torch.no_grad():
            layer.get_parameter("B").normal_()
        (batch,) = batches(context.task, config, 0, 1)
        draws = torch.linspace(0, 1, 2001)[:-1] + 1 / 4000  # every quantile once, at one place
        repeated = {key: rows[:1].repeat(len(draws), *[1] * (rows.ndim - 1)) for key, rows in batch.items()}
        repeated["draws"] = draws[:, None].expand_as(repeated["draws"]).contiguous()
        found = with_targets(variant, context.task, repeated)
        assert "draws" not in found
        variant.model.eval()
        with variant.disabled(), torch.no_grad():
            predicted = context.task.target_logits(variant.model, {"tokens": batch["tokens"][:1]})[0].softmax(-1)
        for place in (0, 10, 63):
            shares = found["targets"][:, place].bincount(minlength=256) / len(draws)
            assert (shares - predicted[place]).abs().max() < 1e-3
    finally:
        variant.detach()


@pytest.mark.parametrize(("name", "labels"), [("bytes", "base_model"), ("bytes", "shuffled"), ("digits", "shuffled")])
def test_a_run_on_false_labels_is_bit_identical_alone_and_in_a_pack(tmp_path: Path, name: str, labels: str) -> None:
    configs = [quick(name, labels, "gradient_accumulation_steps=1", f"seed={seed}") for seed in range(3)]
    packed = execute_in_packs(configs, pack=4, runs_dir=tmp_path / "packed", test=False, display=Display.silent())
    alone = [execute(c, runs_dir=tmp_path / "alone", test=False, display=Display.silent()) for c in configs]
    true = quick(name, "true")
    right = execute(true, runs_dir=tmp_path / "alone", test=False, display=Display.silent())
    assert [one.result["score"] for one in alone] == [result["score"] for result in packed]
    for one in alone:
        ours = tmp_path / "packed" / "single" / one.folder.name
        file = "adapter_model.safetensors"
        assert (one.folder / file).read_bytes() == (ours / file).read_bytes()
    assert right.result["score"] != alone[0].result["score"]
    assert RunDirectory(alone[0].folder).config_tree()["training"]["labels"] == labels


def test_the_loss_on_the_bases_own_predictions_is_their_entropy_and_cannot_fall() -> None:
    config = quick("bytes", "base_model", "batch_size=64")
    context = loaded(config)
    variant = context.attached([config], [None])
    try:
        (batch,) = batches(context.task, config, 0, 1)
        with torch.no_grad():
            labelled = with_targets(variant, context.task, batch)
            logits = context.task.target_logits(variant.model, labelled)
            entropy = torch.distributions.Categorical(logits=logits).entropy().sum(dim=1)
            losses = context.task.row_losses(variant.model, labelled)
        assert losses.mean().item() == pytest.approx(entropy.mean().item(), rel=0.03)
    finally:
        variant.detach()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("digits", "task 'digits' has no such labels, which are drawn from the predictions of a language model; take "
         "training.labels=shuffled"),
        ("planted", "take training.labels=shuffled"),
    ],
)  # fmt: skip
def test_labels_of_the_base_are_refused_where_it_is_no_language_model(tmp_path: Path, name: str, told: str) -> None:
    with pytest.raises(ValueError, match=r"training\.labels=base_model") as error:
        execute(quick(name, "base_model"), runs_dir=tmp_path, test=False, display=Display.silent())
    assert told in str(error.value)
    assert not list(tmp_path.rglob("*.yaml"))


def test_whoever_starts_a_run_on_false_labels_is_told_and_nobody_else() -> None:
    config = quick("digits", "shuffled")
    _, warnings = TrainingContext(config).plan(config)
    assert any("false labels" in warning for warning in warnings)
    right = quick("digits", "true")
    assert TrainingContext(right).plan(right)[1] == []
