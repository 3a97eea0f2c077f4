"""The optimizer of a pack is torch's own, run for each trial by itself."""

import math

import pytest
import torch
from project_paths import CONFIGS
from torch import Tensor, nn

from experiments.training.optimizer import AdamW, schedule_factor
from lora_variants.interface.parameter_groups import ParameterGroup

SCHEDULES = ("linear", "cosine", "constant")

TRIALS, SHAPES = 3, ((4, 5), (6,), (2, 3))
RATES = torch.tensor([1e-3, 3e-2, 2e-1], dtype=torch.float64)
DECAYS = torch.tensor([0.0, 0.1, 0.5], dtype=torch.float64)
ALL = torch.ones(TRIALS, dtype=torch.bool)
EXACT = {"rtol": 1e-12, "atol": 1e-12}


def draw(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def pack_of(trials: int = TRIALS) -> tuple[list[nn.Parameter], list[ParameterGroup]]:
    """Three tensors in two groups; the second group learns twice as fast and decays half as much."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(draw(generator, trials, *shape)) for shape in SHAPES]
    rates, decays = RATES[:trials], DECAYS[:trials]
    return parameters, [
        ParameterGroup("A", tuple(parameters[:2]), rates, decays),
        ParameterGroup("B", tuple(parameters[2:]), 2 * rates, decays / 2),
    ]


def torchs(parameters: list[nn.Parameter], trial: int) -> tuple[list[nn.Parameter], torch.optim.Optimizer]:
    own = [nn.Parameter(p.detach()[trial].clone()) for p in parameters]
    rate, decay = float(RATES[trial]), float(DECAYS[trial])
    groups = [
        {"params": own[:2], "lr": rate, "weight_decay": decay},
        {"params": own[2:], "lr": 2 * rate, "weight_decay": decay / 2},
    ]
    return own, torch.optim.AdamW(groups, betas=(0.9, 0.999), eps=1e-8)


def test_thirty_steps_are_those_of_torchs_adamw_for_each_trial_alone() -> None:
    parameters, groups = pack_of()
    ours, theirs = AdamW(groups, trials=TRIALS), [torchs(parameters, trial) for trial in range(TRIALS)]
    generator = torch.Generator().manual_seed(1)
    for step in range(30):
        factor = schedule_factor("cosine", step, total=30, warmup=5)
        gradients = [draw(generator, TRIALS, *shape) * 10 ** (step % 5 - 2) for shape in SHAPES]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone()
        ours.step(torch.full((TRIALS,), factor, dtype=torch.float64), ALL)
        for trial, (own, optimizer) in enumerate(theirs):
            before = [group["lr"] for group in optimizer.param_groups]
            for group in optimizer.param_groups:
                group["lr"] *= factor
            for parameter, gradient in zip(own, gradients, strict=True):
                parameter.grad = gradient[trial].clone()
            optimizer.step()
            for group, rate in zip(optimizer.param_groups, before, strict=True):
                group["lr"] = rate
            for whole, alone in zip(parameters, own, strict=True):
                torch.testing.assert_close(whole.detach()[trial], alone.detach(), **EXACT)


def test_a_trial_at_rest_keeps_every_bit_although_its_gradient_is_not_a_number() -> None:
    parameters, groups = pack_of()
    own, optimizer = torchs(parameters, 0)
    ours = AdamW(groups, trials=TRIALS)
    generator = torch.Generator().manual_seed(2)
    for step in range(6):
        moving = torch.tensor([True, step < 2, True])
        rested = [p.detach()[1].clone() for p in parameters]
        moments = [[m[1].clone() for m in pair] for group in ours.moments for pair in group]
        for parameter, alone in zip(parameters, own, strict=True):
            parameter.grad = draw(generator, *parameter.shape)
            alone.grad = parameter.grad[0].clone()
            if step >= 2:
                parameter.grad[1] = math.nan
        ours.step(torch.ones(TRIALS, dtype=torch.float64), moving)
        optimizer.step()
        if step >= 2:
            assert all(torch.equal(p.detach()[1], old) for p, old in zip(parameters, rested, strict=True))
            now = [[m[1] for m in pair] for group in ours.moments for pair in group]
            assert all(torch.equal(a, b) for p, q in zip(now, moments, strict=True) for a, b in zip(p, q, strict=True))
    assert ours.steps.tolist() == [6, 2, 6]
    for whole, alone in zip(parameters, own, strict=True):
        torch.testing.assert_close(whole.detach()[0], alone.detach(), **EXACT)


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    parameters, groups = pack_of()
    before = parameters[0].detach().clone()
    parameters[1].grad = torch.ones_like(parameters[1])
    AdamW(groups, trials=TRIALS).step(torch.ones(TRIALS, dtype=torch.float64), ALL)
    assert torch.equal(parameters[0], before)


def test_parameters_of_the_models_own_shape_step_as_those_with_a_trial_axis() -> None:
    generator = torch.Generator().manual_seed(3)
    start, gradient = draw(generator, 4, 5), draw(generator, 4, 5)
    with_axis, without = nn.Parameter(start[None].clone()), nn.Parameter(start.clone())
    with_axis.grad, without.grad = gradient[None].clone(), gradient.clone()
    for parameter, axis in ((with_axis, True), (without, False)):
        groups = [ParameterGroup("other", (parameter,), RATES[1:2], DECAYS[1:2], trial_axis=axis)]
        optimizer = AdamW(groups, trials=1)
        optimizer.clip_gradients(optimizer.gradient_norms(), [0.5])
        optimizer.step(torch.ones(1, dtype=torch.float64), ALL[:1])
        optimizer.zero_gradients()
        assert not parameter.grad.any()
    assert torch.equal(with_axis[0], without)
    assert not torch.equal(without, start)


def test_a_parameter_with_its_first_gradient_later_steps_as_torchs_from_then_on() -> None:
    parameters, groups = pack_of()
    own, optimizer = torchs(parameters, 1)
    ours = AdamW(groups, trials=TRIALS)
    generator = torch.Generator().manual_seed(5)
    ours.steps += 1  # torch counts each parameter's steps, we each trial's: so both begin with the second
    for step in range(1, 5):
        for i, (parameter, alone) in enumerate(zip(parameters, own, strict=True)):
            if i != 1 or step > 2:
                parameter.grad = draw(generator, *parameter.shape)
                alone.grad = parameter.grad[1].clone()
            optimizer.state[alone].setdefault("step", torch.tensor(float(step - 1)) + 1)
            for moment in ("exp_avg", "exp_avg_sq"):
                optimizer.state[alone].setdefault(moment, torch.zeros_like(alone))
            optimizer.state[alone]["step"].fill_(step)
        ours.step(torch.ones(TRIALS, dtype=torch.float64), ALL)
        optimizer.step()
        for whole, alone in zip(parameters, own, strict=True):
            torch.testing.assert_close(whole.detach()[1], alone.detach(), **EXACT)


def test_parameters_keep_their_numbers_and_their_layout_in_memory_when_they_come_into_rows() -> None:
    generator = torch.Generator().manual_seed(6)
    turned = nn.Parameter(draw(generator, TRIALS, 5, 4).mT)
    plain = nn.Parameter(draw(generator, TRIALS, 3))
    before = [turned.detach().clone(), plain.detach().clone()]
    optimizer = AdamW([ParameterGroup("B", (turned, plain), RATES, DECAYS)], trials=TRIALS)
    turned.grad, plain.grad = torch.ones_like(turned), torch.ones_like(plain)
    (rows,) = optimizer.gather()
    assert [turned.detach().equal(before[0]), plain.detach().equal(before[1])] == [True, True]
    assert turned.stride()[1:] == (1, 4)
    assert rows.values.shape == (TRIALS, 23)
    turned.detach()[1] = 7.0
    assert (rows.values[1] == 7.0).sum() == 20
    optimizer.step(torch.ones(TRIALS, dtype=torch.float64), torch.tensor([True, False, True]))
    assert (turned.detach()[1] == 7.0).all()


# Clipping


def with_gradients(seed: int = 4) -> tuple[list[nn.Parameter], list[ParameterGroup]]:
    parameters, groups = pack_of()
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = draw(generator, *parameter.shape)
    return parameters, groups


@pytest.mark.parametrize("limits", [(0.5, 1e6, 2.0), (None, 0.1, None), (1e6, 1e6, 1e6), (None, None, None)])
def test_each_trials_gradient_is_clipped_as_torch_clips_it_alone(limits: tuple[float | None, ...]) -> None:
    parameters, groups = with_gradients()
    alone = [[nn.Parameter(p.detach()[k].clone()) for p in parameters] for k in range(TRIALS)]
    expected = []
    for k, own in enumerate(alone):
        for one, whole in zip(own, parameters, strict=True):
            one.grad = whole.grad[k].clone()
        expected.append(torch.nn.utils.clip_grad_norm_(own, math.inf if limits[k] is None else limits[k]))
    optimizer = AdamW(groups, trials=TRIALS)
    norms = optimizer.gradient_norms()
    torch.testing.assert_close(norms, torch.stack(expected), **EXACT)
    optimizer.clip_gradients(norms, limits)
    for k, own in enumerate(alone):
        for one, whole in zip(own, parameters, strict=True):
            torch.testing.assert_close(whole.grad[k], one.grad, **EXACT)


def test_a_gradient_that_is_not_a_number_clips_no_other_trials() -> None:
    parameters, groups = with_gradients()
    before = [parameter.grad.clone() for parameter in parameters]
    parameters[0].grad[1, 0] = math.nan
    optimizer = AdamW(groups, trials=TRIALS)
    norms = optimizer.gradient_norms()
    assert [math.isnan(norm) for norm in norms.tolist()] == [False, True, False]
    optimizer.clip_gradients(norms, [None, 1.0, 0.5 * float(norms[2])])
    for parameter, old in zip(parameters, before, strict=True):
        assert torch.equal(parameter.grad[0], old[0])
        torch.testing.assert_close(parameter.grad[2], old[2] * 0.5, rtol=1e-5, atol=0)


# Schedules


@pytest.mark.parametrize("kind", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 4])
def test_a_schedule_warms_up_in_equal_parts_to_one_and_never_reaches_zero(kind: str, warmup: int) -> None:
    total = 12
    factors = [schedule_factor(kind, step, total=total, warmup=warmup) for step in range(total)]
    assert factors[: warmup + 1] == pytest.approx([(step + 1) / (warmup + 1) for step in range(warmup + 1)])
    after = factors[warmup:]
    assert after == sorted(after, reverse=True)
    assert min(factors) > 0
    end = schedule_factor(kind, total, total=total, warmup=warmup)
    assert end == pytest.approx(1.0 if kind == "constant" else 0.0, abs=1e-15)


def test_linear_and_cosine_are_at_one_half_when_half_of_the_rest_has_passed() -> None:
    assert schedule_factor("linear", 8, total=12, warmup=4) == pytest.approx(0.5)
    assert schedule_factor("cosine", 8, total=12, warmup=4) == pytest.approx(0.5)
    assert schedule_factor("linear", 6, total=12, warmup=4) == pytest.approx(0.75)
    assert schedule_factor("cosine", 6, total=12, warmup=4) == pytest.approx(0.5 + 0.5 * math.cos(math.pi / 4))


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_run_that_is_all_warm_up_has_positive_rates(kind: str) -> None:
    assert all(schedule_factor(kind, step, total=3, warmup=5) > 0 for step in range(3))


def test_a_head_with_a_rate_of_its_own_learns_at_it_and_nothing_else_does() -> None:
    from experiments.config.loading import load
    from experiments.training.context import attached, load_task

    config = CONFIGS / "digits.yaml"
    for name in ("lora_plus", "full_all", "adalora"):
        by_role = []
        for overrides in ([], ["head_learning_rate=0.5"]):
            resolved = load(config, variant=name, overrides=overrides)
            task = load_task(resolved)
            groups = attached(resolved, task, task.architecture()).parameter_groups(
                torch.tensor([0.25]), torch.zeros(1)
            )
            by_role.append([(group.role, float(group.rates)) for group in groups])
        assert [pair for pair in by_role[0] if pair[0] != "head"] == [pair for pair in by_role[1] if pair[0] != "head"]
        assert {rate for role, rate in by_role[0] if role == "head"} == {0.25}
        assert {rate for role, rate in by_role[1] if role == "head"} == {0.5}
