"""The bytes task: its splits, its cached base, and a rank curve that means something."""

import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from project_paths import CONFIGS
from torch import Tensor, nn

from experiments.config.loading import load
from experiments.models.byte_pretraining import Recipe, pretrained, stdlib_source
from experiments.models.weights import fingerprint
from experiments.runner import execute
from experiments.tasks.bytes import Bytes, BytesConfig
from experiments.terminal import Display
from experiments.training.evaluation import evaluate_plain
from experiments.user_cache import cache_folder

CONFIG = CONFIGS / "bytes.yaml"
SHORT = Recipe(steps=2)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache folder of this test's own."""
    monkeypatch.setattr("experiments.user_cache.user_cache_path", lambda name: tmp_path / name)
    yield tmp_path
    assert cache_folder().parent == tmp_path


def reports(recipe: Recipe) -> tuple[str, list[str]]:
    """The fingerprint of the pretrained base and what it reported on the way."""
    said: list[str] = []
    model = pretrained(recipe, lambda what, done, total: said.append(what))
    return fingerprint(model.state_dict()), said


def test_the_base_is_pretrained_once_and_then_read_from_the_cache(cache: Path) -> None:
    first, said = reports(SHORT)
    assert any("pretraining" in text for text in said)
    again, said_again = reports(SHORT)
    assert again == first
    assert said_again == []


@pytest.mark.parametrize("damage", ["torn", "altered", "empty"])
def test_a_corrupt_cache_is_noticed_and_built_again(cache: Path, damage: str) -> None:
    first, _ = reports(SHORT)
    (path,) = cache_folder().glob("*.safetensors")
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes({"torn": bytes(content[:5000]), "altered": bytes(content), "empty": b""}[damage])
    again, said = reports(SHORT)
    assert again == first
    assert any("unusable" in text for text in said)


def test_another_recipe_is_another_base(cache: Path) -> None:
    assert reports(SHORT)[0] != reports(Recipe(steps=3))[0]
    assert len(list(cache_folder().glob("*.safetensors"))) == 2


def test_the_corpus_is_the_running_python_s_own_source() -> None:
    text = stdlib_source()
    assert b"class OrderedDict" in text
    assert b"import idlelib" not in text


def test_a_topic_is_in_one_split_only_and_no_byte_is_scored_twice() -> None:
    task = Bytes(BytesConfig())
    topics = {split: set(text.split(b"\n\n")) for split, text in task.texts.items()}
    assert {split: len(text) > 20_000 for split, text in task.texts.items()} == dict.fromkeys(topics, True)
    windows = torch.cat([batch["tokens"] for batch in task.evaluation_batches("validation")])
    text = torch.frombuffer(bytearray(task.texts["validation"]), dtype=torch.uint8)
    predicted = windows[:, 1:].flatten()
    assert torch.equal(predicted, text[1 : 1 + len(predicted)].long())
    assert len(text) - len(predicted) <= task.config.context + 1


def test_the_order_of_the_data_depends_on_the_seed_alone() -> None:
    task = Bytes(BytesConfig())
    first, same, other = (next(task.training_batches(seed, 4))["tokens"] for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


class Guess(nn.Module):
    """The same probabilities of the next byte, whatever came before it."""

    def __init__(self, probabilities: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(probabilities.log())

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits.expand(*tokens.shape, 256)


def test_bits_per_byte_are_base_2_eight_for_the_uniform_guess_and_shannons_entropy_for_the_frequencies() -> None:
    task = Bytes(BytesConfig(context=8))
    uniform = evaluate_plain(Guess(torch.full((256,), 1 / 256)), task, "validation", "float32")
    assert uniform["bits_per_byte"] == pytest.approx(8, rel=1e-6)
    predicted = torch.cat([batch["tokens"][:, 1:].flatten() for batch in task.evaluation_batches("validation")])
    shares = torch.bincount(predicted, minlength=256).double() / len(predicted)
    entropy = -float((shares[shares > 0] * shares[shares > 0].log2()).sum())
    found = evaluate_plain(Guess(shares), task, "validation", "float32")
    assert found["bits_per_byte"] == pytest.approx(entropy, rel=1e-5)
    assert found["loss"] == pytest.approx(entropy * math.log(2), rel=1e-5)


@pytest.mark.acceptance
def test_more_rank_means_fewer_bits_per_byte(tmp_path: Path) -> None:
    scores = []
    for variant, rank in (("head", None), ("lora", 1), ("lora", 4), ("lora", 16)):
        config = load(CONFIG, variant=variant, rank=rank, overrides=["wandb.mode=disabled"])
        scores.append(execute(config, runs_dir=tmp_path, test=False, display=Display()).result["score"])
    base, one, four, sixteen = scores
    assert base > one > four > sixteen
    assert sixteen <= 2.56
