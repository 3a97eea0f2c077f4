"""The fused layer computes what the plain form does, forward and backward, and keeps less."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lora_variants.interface.factored_layer import factored_linear, merging_pays

K, D_IN, D_OUT, R = 3, 7, 5, 2
ROWS = {"thin": 4, "merged": 10}  # of a trial, with which it goes either way


def factored_linear_plain(
    x: Float[Tensor, "*rows d_in"],
    weight: Float[Tensor, "d_out d_in"],
    bias: Float[Tensor, " d_out"] | None,
    left: Float[Tensor, "trials d_out r"],
    weights: Tensor,
    right: Float[Tensor, "trials r d_in"],
    mask: Float[Tensor, "trials n d_in"] | None,
) -> Float[Tensor, "*rows d_out"]:
    """y = W0 x + b + left (weights ∘ (right (mask ∘ x))), as one reads it: what the fused form is held against.

    x is trial-major. `weights` are (trials, r, 1), or (trials, 1, 1) where all are the scale; `mask` is a
    dropout mask with its factor.
    """
    by_trial = x.reshape(left.shape[0], -1, x.shape[-1])
    h = torch.bmm(by_trial if mask is None else by_trial * mask, right.mT) * weights.mT  # (trials, n, r)
    y = F.linear(x, weight, bias)
    return y + torch.bmm(h, left.mT).reshape(y.shape)


def inputs(
    way: str, *, per_rank: bool = False, dropout: bool = False, bias: bool = True, first_layer: bool = False
) -> dict[str, Any]:
    N = ROWS[way]
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, grad: bool = True) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_(grad)

    return {
        "x": draw(K * 2, N // 2, D_IN, grad=not first_layer),
        "weight": draw(D_OUT, D_IN, grad=False),
        "bias": draw(D_OUT, grad=False) if bias else None,
        "left": draw(K, D_OUT, R),
        "weights": draw(K, R if per_rank else 1, 1, grad=per_rank),
        "right": draw(K, R, D_IN),
        "mask": (draw(K, N, D_IN, grad=False) > 0).double() * 2 if dropout else None,
    }


@pytest.mark.parametrize("way", ROWS)
def test_a_trial_goes_the_same_way_in_any_pack_and_never_merges_in_16_bits(way: str) -> None:
    given = inputs(way)
    x, weight, right = given["x"], given["weight"], given["right"]
    assert merging_pays(x, weight, right) is merging_pays(x[:2], weight, right[:1]) is (way == "merged")
    assert not merging_pays(x, weight.bfloat16(), right)


@pytest.mark.parametrize("way", ROWS)
@pytest.mark.parametrize("first_layer", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("per_rank", [False, True])
def test_outputs_and_gradients_are_those_of_the_plain_form(
    way: str, per_rank: bool, dropout: bool, bias: bool, first_layer: bool
) -> None:
    given = inputs(way, per_rank=per_rank, dropout=dropout, bias=bias, first_layer=first_layer)
    needed = {name: t for name, t in given.items() if t is not None and t.requires_grad}
    fused, plain = factored_linear(**given), factored_linear_plain(**given)
    torch.testing.assert_close(fused, plain, rtol=1e-13, atol=1e-13)
    upstream = torch.randn(fused.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    ours = torch.autograd.grad(fused, list(needed.values()), upstream)
    theirs = torch.autograd.grad(plain, list(needed.values()), upstream)
    for name, mine, other in zip(needed, ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("way", ROWS)
@pytest.mark.parametrize("dropout", [False, True])
def test_the_gradients_are_those_of_finite_differences(way: str, dropout: bool) -> None:
    given = inputs(way, per_rank=True, dropout=dropout)
    names = ["x", "left", "weights", "right"]

    def function(*tensors: Tensor) -> Tensor:
        return factored_linear(**(given | dict(zip(names, tensors, strict=True))))

    assert torch.autograd.gradcheck(function, tuple(given[name] for name in names))


@pytest.mark.parametrize("way", ROWS)
def test_second_derivatives_are_refused(way: str) -> None:
    given = inputs(way)
    with pytest.raises(RuntimeError, match="no second derivatives"):
        torch.autograd.grad(factored_linear(**given).sum(), given["left"], create_graph=True)


@pytest.mark.parametrize("way", ROWS)
def test_an_input_that_needs_no_gradient_costs_none(way: str) -> None:
    given = inputs(way, first_layer=True)
    factored_linear(**given).sum().backward()
    assert given["x"].grad is None
    assert given["left"].grad is not None


def test_under_autocast_it_computes_in_bfloat16_and_gives_gradients_in_float32() -> None:
    given = {
        name: t if t is None else t.detach().float().requires_grad_(t.requires_grad)
        for name, t in inputs("merged", per_rank=True, dropout=True).items()
    }
    with torch.autocast("cpu", dtype=torch.bfloat16):
        fused = factored_linear(**given)
    assert fused.dtype == torch.bfloat16
    fused.float().square().sum().backward()
    for name in ("x", "left", "weights", "right"):
        assert given[name].grad.dtype == torch.float32
    torch.testing.assert_close(fused.float(), factored_linear_plain(**given), rtol=0.05, atol=0.2)


@pytest.mark.parametrize(("way", "more"), [("thin", [(K, R, ROWS["thin"])]), ("merged", [(K, D_OUT, D_IN)])])
def test_only_the_input_and_the_thin_product_or_the_merged_weight_are_kept(way: str, more: list[Any]) -> None:
    kept: list[tuple[int, ...]] = []
    given = inputs(way)
    parameters = {tuple(t.shape) for name, t in given.items() if t is not None and name not in ("x", "mask")}

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        factored_linear(**given)
    activations = [shape for shape in kept if shape not in parameters | {(K, 1, 1)}]
    assert sorted(activations) == sorted([(K, ROWS[way], D_IN), *more])
