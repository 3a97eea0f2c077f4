"""The time of a training step: implementations in turn, round after round, so that what disturbs one disturbs all."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import nn

from experiments.benchmarking.workload import Workload, in_place

WARM_UP_STEPS = 3
PROBE_STEPS = 3
ROUND_SECONDS = 0.3  # of one implementation: long beside the clock's grain, short beside what else a machine does


class Stepping(Protocol):
    """Modules for paths of a base, and a training step while they are in place."""

    @property
    def modules(self) -> Mapping[str, nn.Module]: ...

    def step(self) -> object: ...


def time_rounds(
    workload: Workload, implementations: Mapping[str, Stepping], *, rounds: int, on_round: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds a step of each implementation, one number a round: processor time at one thread on CPU, events on CUDA.

    The order rotates from round to round; `on_round` is called after each implementation's part, outside of any timing.
    """
    names = list(implementations)
    device = workload.tokens.device
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with one_thread(), still_garbage():
        steps = {
            name: _steps_a_round(workload, implementation, device) for name, implementation in implementations.items()
        }
        for turn in range(rounds):
            first = turn % len(names)
            for name in (*names[first:], *names[:first]):
                with in_place(workload.base, implementations[name].modules):
                    seconds[name].append(_seconds_a_step(implementations[name], steps[name], device))
                on_round()
    return seconds


def _steps_a_round(workload: Workload, implementation: Stepping, device: torch.device) -> int:
    with in_place(workload.base, implementation.modules):
        _seconds_a_step(implementation, WARM_UP_STEPS, device)
        return max(1, round(ROUND_SECONDS / _seconds_a_step(implementation, PROBE_STEPS, device)))


def _seconds_a_step(implementation: Stepping, steps: int, device: torch.device) -> float:
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _ in range(steps):
            implementation.step()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1000 / steps
    since = time.process_time()
    for _ in range(steps):
        implementation.step()
    return (time.process_time() - since) / steps


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def still_garbage() -> Iterator[None]:
    """What exists now is not looked through by the collector inside; it would fall on one implementation by chance."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
