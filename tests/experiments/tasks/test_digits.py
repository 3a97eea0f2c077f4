"""The digits task: its splits, its head, and what each kind of adaptation reaches in 200 steps."""

from pathlib import Path

import pytest
import torch
from project_paths import CONFIGS

from experiments.config.loading import load
from experiments.models.digit_transformer import DigitRecipe, DigitTransformer, pretrain_digits
from experiments.models.weights import fingerprint, silent
from experiments.runner import execute
from experiments.tasks.digits import Digits, DigitsConfig
from experiments.terminal import Display
from experiments.training.context import attached, load_task
from experiments.training.evaluation import evaluate

CONFIG = CONFIGS / "digits.yaml"


def test_the_splits_share_no_image_and_hold_the_new_digits_only() -> None:
    task = Digits(DigitsConfig())
    keys = {split: {image.numpy().tobytes() for image in images} for split, (images, _) in task.splits.items()}
    assert not keys["train"] & keys["validation"]
    assert not keys["train"] & keys["test"]
    assert not keys["validation"] & keys["test"]
    assert sum(len(labels) for _, labels in task.splits.values()) == int((task.images[1] >= 5).sum())
    for _, labels in task.splits.values():
        assert set(labels.tolist()) == {0, 1, 2, 3, 4}


def test_every_image_is_seen_once_an_epoch_in_an_order_of_the_seed_alone() -> None:
    task = Digits(DigitsConfig())
    images = len(task.splits["train"][0])
    batches = task.training_batches(3, 64)
    seen = torch.cat([next(batches)["images"] for _ in range(images // 64 + 1)])[:images]
    assert len({image.numpy().tobytes() for image in seen}) == images
    assert torch.equal(next(task.training_batches(3, 64))["images"], seen[:64])
    assert not torch.equal(next(task.training_batches(4, 64))["images"], seen[:64])


def test_accuracy_is_the_share_of_right_answers_and_the_loss_their_mean_surprise() -> None:
    config = load(CONFIG, overrides=["seed=5"])
    task = load_task(config)
    variant = attached(config, task, task.architecture())
    (found,) = evaluate(variant, task, "validation", config.training.precision)
    images, labels = task.splits["validation"]  # type: ignore[attr-defined]
    with torch.no_grad():
        logits = variant.model(images)
    assert found["accuracy"] == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    surprise = -logits.log_softmax(1)[torch.arange(len(labels)), labels].mean()
    assert found["loss"] == pytest.approx(float(surprise), rel=1e-5)


def test_the_head_is_drawn_afresh_from_the_seed_and_is_the_same_for_every_variant() -> None:
    heads = []
    for variant, seed in (("lora", 0), ("full", 0), ("lora", 1)):
        config = load(CONFIG, variant=variant, seed=seed)
        task = load_task(config)
        heads.append(attached(config, task, task.architecture()).heads["head"].weight.detach()[0])
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


@pytest.mark.slow
def test_lora_and_full_training_beat_the_head_alone(tmp_path: Path) -> None:
    scores = {}
    for variant, rank in (("head", None), ("lora", 4), ("full", None)):
        config = load(CONFIG, variant=variant, rank=rank, overrides=["wandb.mode=disabled"])
        scores[variant] = execute(config, runs_dir=tmp_path, test=False, display=Display()).result["score"]
    assert scores["head"] + 0.03 < scores["lora"]
    assert scores["lora"] > 0.8
    assert scores["full"] > 0.85


def test_the_pretrained_base_does_not_depend_on_the_process_s_random_numbers() -> None:
    images, labels = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 5
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        model = DigitTransformer()
        pretrain_digits(model, images, labels, DigitRecipe(steps=2, rows=4), silent)
        states.append(fingerprint(model.state_dict()))
    assert states[0] == states[1]
