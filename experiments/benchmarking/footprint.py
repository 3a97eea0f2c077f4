"""The memory of a training step: a fresh process for each measurement, which `main` is."""

import contextlib
import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from experiments.benchmarking.cases import Case, PackCase
from experiments.benchmarking.implementations import BUILDERS
from experiments.benchmarking.packs import buckets, build_pack, ranks_of, workloads_of
from experiments.benchmarking.timing import Stepping, one_thread
from experiments.benchmarking.workload import Workload, build_workload, in_place
from experiments.training.device import peak_bytes

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3  # the optimizer's state is there from the first on


def footprint_in_new_process(case: Case, implementation: str, device: str) -> int:
    """Bytes that training steps of an implementation need, measured in a process of its own.

    Raises: RuntimeError with the last line of what the process said, where it failed.
    """
    return _in_new_process(
        {"case": asdict(case), "implementation": implementation, "device": device}, what=repr(implementation)
    )


def footprint_of_pack_in_new_process(case: PackCase, trials: int, device: str) -> int:
    """Bytes that training steps of so many trials together need, measured in a process of its own.

    Raises: RuntimeError with the last line of what the process said, where it failed.
    """
    request = {"case": asdict(case.case), "ranks": case.ranks, "trials": trials, "device": device}
    return _in_new_process(request, what=f"{trials} trials")


def _in_new_process(request: dict[str, Any], *, what: str) -> int:
    command = [sys.executable, "-m", "experiments.benchmarking.footprint", json.dumps(request)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"the memory of {what} could not be measured: {said[-1]}")
    return int(done.stdout.splitlines()[-1])


def step_footprint(case: Case, implementation: str, device: torch.device) -> int:
    """Bytes at the peak of a few steps, less the level just before the first: activations, gradients, optimizer.

    On CPU of the whole process, with the code that a first use of torch's kernels loads.
    """
    with one_thread():
        workload = build_workload(case, device)
        return _above_the_level(workload, [BUILDERS[implementation](workload)], device)


def pack_footprint(case: PackCase, trials: int, device: torch.device) -> int:
    """The same of trials that train together; where their ranks keep them apart, of one pack after another."""
    with one_thread():
        workloads = workloads_of(case, device)
        packs = [build_pack(workloads, ranks) for ranks in buckets(ranks_of(case, trials))]
        return _above_the_level(workloads[case.ranks[0]], packs, device)


def _above_the_level(workload: Workload, measured: Sequence[Stepping], device: torch.device) -> int:
    gc.collect()
    before = level_with_peak_reset(device)
    for stepping in measured:
        with in_place(workload.base, stepping.modules):
            for _ in range(STEPS):
                stepping.step()
    return _peak(device) - before


def level_with_peak_reset(device: torch.device) -> int:
    """Bytes in use; the high-water mark starts again from here, where the system can do that.

    Where it cannot, this is the mark so far, so that a difference to it can be too small but never too large.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # 5: resets VmHWM to what is resident, proc(5)
    return _peak(device)


def _peak(device: torch.device) -> int:
    status = Path("/proc/self/status")
    if device.type == "cpu" and status.exists():
        mark = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(mark.split()[1]) * 1024
    found = peak_bytes(device)
    if found is None:
        raise RuntimeError("this system does not tell a process its peak memory; use --processes 0")
    return found


def main(request: str) -> None:
    """Print the bytes of one measurement; `request` is the JSON of what the functions above ask for."""
    asked = json.loads(request)
    case, device = Case(**asked["case"]), torch.device(asked["device"])
    if "trials" in asked:
        print(pack_footprint(PackCase(case=case, ranks=tuple(asked["ranks"])), asked["trials"], device))
    else:
        print(step_footprint(case, asked["implementation"], device))


if __name__ == "__main__":
    main(sys.argv[1])
