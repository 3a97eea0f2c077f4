"""What is drawn at random and for whom: the law of A, a stream for every layer, and dropout's share of zeros."""

import pytest
import torch
from models import ADAPTERS, CLASSES, PACKED, WIDTH, attached, knobs
from torch import Tensor, nn

FACTORS = {"adalora": ("P", "Q")}  # that start from a draw; of the others A alone does


class Twins(nn.Module):
    """Two layers of one shape and two heads of one shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.left, self.right = nn.Linear(WIDTH, CLASSES), nn.Linear(WIDTH, CLASSES)


def drawn(name: str, seed: int = 3) -> dict[str, Tensor]:
    """A fresh trial on a fresh model."""
    variant = attached(
        name, Twins(), targets=["first", "second"], heads=["left", "right"],
        configs=[knobs(name, rank=4, dropout=0.5)], seeds=[seed],
    )  # fmt: skip
    return variant.trial_state(0)


@pytest.mark.parametrize("name", ADAPTERS)
def test_two_layers_of_one_shape_start_from_draws_of_their_own_and_each_from_the_same_one_again(name: str) -> None:
    once, again = drawn(name), drawn(name)
    for key in FACTORS.get(name, ("A",)):
        assert once[f"first/{key}"].any()
        assert not torch.equal(once[f"first/{key}"], once[f"second/{key}"])
        for layer in ("first", "second"):
            assert torch.equal(once[f"{layer}/{key}"], again[f"{layer}/{key}"])
    assert name != "adalora" or not torch.equal(once["first/P"], once["first/Q"].mT)  # both are 4 x 12


@pytest.mark.parametrize("name", PACKED)
def test_two_heads_of_one_shape_start_from_draws_of_their_own(name: str) -> None:
    once, again = drawn(name), drawn(name)
    assert not torch.equal(once["left/weight"], once["right/weight"])
    assert torch.equal(once["right/weight"], again["right/weight"])


@pytest.mark.parametrize("name", ["lora", "rslora", "lora_plus"])
def test_a_starts_from_the_law_that_loralib_and_peft_draw_it_from_or_a_gaussian_of_its_variance(name: str) -> None:
    rank, d_in = 96, 192
    uniform, gaussian = (start_of_a(name, rank, d_in, init=init) for init in ("kaiming", "gaussian"))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = nn.init.kaiming_uniform_(torch.empty(rank, d_in, dtype=torch.float64), a=5**0.5)
    bound, variance = float(theirs.abs().max()), float(theirs.var())  # the bound itself but for 1 in 18,432
    assert bound == pytest.approx(d_in**-0.5, rel=2e-3)
    assert float(uniform.abs().max()) == pytest.approx(bound, rel=2e-3)
    assert [float(A.var()) for A in (uniform, gaussian)] == [pytest.approx(variance, rel=0.05)] * 2
    assert [float(A.mean()) for A in (uniform, gaussian)] == [pytest.approx(0, abs=0.02 * bound)] * 2
    assert float(gaussian.abs().max()) > 2 * bound


def start_of_a(name: str, rank: int, d_in: int, *, init: str) -> Tensor:
    model = nn.Sequential(nn.Linear(d_in, 128))
    return attached(name, model, heads=[], configs=[knobs(name, rank=rank, init=init)]).trial_state(0)["0/A"]


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_of_p_zeroes_that_share_of_the_inputs_and_keeps_their_expectation(name: str, p: float) -> None:
    variant = attached(name, Twins(), targets=["first"], heads=[], configs=[knobs(name, rank=2, dropout=p)])
    mask = variant.layers["first"].dropout_mask(torch.ones(1, 4096, WIDTH, dtype=torch.float64))
    assert mask is not None
    assert float((mask == 0).double().mean()) == pytest.approx(p, abs=0.01)  # of 49,152 draws
    assert mask[mask != 0].unique().tolist() == [pytest.approx(1 / (1 - p))]
    assert float(mask.mean()) == pytest.approx(1, abs=0.06)


def test_trials_of_a_pack_have_each_their_own_dropout() -> None:
    configs = [knobs("lora", rank=2, dropout=p) for p in (0.1, 0.0, 0.9)]
    variant = attached("lora", Twins(), targets=["first"], heads=[], configs=configs)
    mask = variant.layers["first"].dropout_mask(torch.ones(3, 4096, WIDTH))
    assert mask is not None
    shares = [float((of_trial == 0).float().mean()) for of_trial in mask]
    assert shares == [pytest.approx(0.1, abs=0.01), 0.0, pytest.approx(0.9, abs=0.01)]
