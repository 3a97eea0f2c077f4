"""The memory of a training step: a fresh process for each measurement, which `main` is."""

import contextlib
import gc
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from experiments.benchmarking.cases import Case
from experiments.benchmarking.contenders import BUILDERS
from experiments.benchmarking.timing import one_thread
from experiments.benchmarking.workload import build_workload, in_place
from experiments.record.environment import peak_bytes

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3  # the optimizer's state is there from the first on


def footprint_in_new_process(case: Case, contender: str, device: str) -> int:
    """Bytes that training steps of a contender need, measured in a process of its own.

    Raises: RuntimeError with the last line of what the process said, where it failed.
    """
    request = json.dumps({"case": asdict(case), "contender": contender, "device": device})
    command = [sys.executable, "-m", "experiments.benchmarking.footprint", request]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"the memory of {contender!r} could not be measured: {said[-1]}")
    return int(done.stdout.splitlines()[-1])


def step_footprint(case: Case, contender: str, device: torch.device) -> int:
    """Bytes at the peak of a few steps, less the level just before the first: activations, gradients, optimizer.

    On CPU of the whole process, with the code that a first use of torch's kernels loads.
    """
    with one_thread():
        workload = build_workload(case, device)
        measured = BUILDERS[contender](workload)
        gc.collect()
        before = level_with_peak_reset(device)
        with in_place(workload.base, measured.modules):
            for _ in range(STEPS):
                measured.step()
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
    """Print the bytes of one measurement; `request` is the JSON of `footprint_in_new_process`."""
    asked = json.loads(request)
    print(step_footprint(Case(**asked["case"]), asked["contender"], torch.device(asked["device"])))


if __name__ == "__main__":
    main(sys.argv[1])
