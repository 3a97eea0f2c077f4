"""The benchmark: every case's implementations are checked against each other, timed, and their memory measured."""

from collections.abc import Callable, Mapping

import torch

from experiments.benchmarking.cases import Case
from experiments.benchmarking.footprint import footprint_in_new_process
from experiments.benchmarking.implementations import BUILDERS, Implementation, largest_differences, missing_contenders
from experiments.benchmarking.results import Benchmark, Result
from experiments.benchmarking.timing import time_rounds
from experiments.benchmarking.workload import Workload, build_workload

ALLOWED_DIFFERENCE = {"float32": 1e-4, "bfloat16": 0.1}  # relative: rounding, 2^-24 or 2^-8, over some layers

Report = Callable[[str, int, int], None]  # what, how much of it is done, and of how much


def measure_all(benchmark: Benchmark, device: torch.device, *, rounds: int, processes: int, report: Report) -> None:
    """Measure the cases that are left; each is on disk when the next begins.

    Raises: ValueError without PEFT, with nothing on disk; RuntimeError where implementations do not compute the same,
    or a process failed.
    """
    missing = missing_contenders()
    benchmark.save()
    for case in benchmark.left:
        measured = measure(case, device, missing, rounds=rounds, processes=processes, report=report)
        benchmark.results.append(measured)
        benchmark.save()


def measure(
    case: Case, device: torch.device, missing: Mapping[str, str], *, rounds: int, processes: int, report: Report
) -> Result:
    """All numbers of one case."""
    names = [name for name in BUILDERS if name not in missing]
    processes = processes if case.memory else 0
    total, done = len(names) * (rounds + processes), 0

    def one_more() -> None:
        nonlocal done
        done += 1
        report(case.label, done, total)

    report(case.label, done, total)
    workload = build_workload(case, device)
    implementations = {name: BUILDERS[name](workload) for name in names}
    differences = _checked_differences(workload, implementations)
    seconds = time_rounds(workload, implementations, rounds=rounds, on_round=one_more)
    peaks: dict[str, list[int]] = {}
    for _ in range(processes):
        for name in names:
            peaks.setdefault(name, []).append(footprint_in_new_process(case, name, device.type))
            one_more()
    trained = {name: implementation.trainable_parameters for name, implementation in implementations.items()}
    return Result(case, trained, differences, dict(missing), seconds, peaks)


def _checked_differences(workload: Workload, implementations: Mapping[str, Implementation]) -> dict[str, float]:
    differences = largest_differences(workload, implementations)
    allowed = ALLOWED_DIFFERENCE[workload.case.precision]
    for what, difference in differences.items():
        if not difference <= allowed:
            raise RuntimeError(
                f"{workload.case.label}: the implementations do not compute the same: {what} differs by "
                f"{difference:.1e}, more than {allowed:g}; there is nothing to compare"
            )
    return differences
