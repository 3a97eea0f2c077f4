"""The device that is trained on: which one, in which precisions, and how much of its memory was in use."""

import sys

import torch


def choose_device(asked: str) -> torch.device:
    """The device asked for; auto is CUDA, else MPS, else CPU.

    Raises: ValueError for a device that this machine does not have.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if asked == "auto":
        return torch.device(next(name for name, available in there.items() if available))
    if not there[asked]:
        raise ValueError(f"training.device: {asked!r} is not available to this installation of torch; use auto or cpu")
    return torch.device(asked)


def refuse_precision(precision: str, device: torch.device) -> None:
    """Raises: ValueError for a precision that is not trained in on this device."""
    if precision == "float16" and device.type == "mps":
        raise ValueError(
            "training.precision: float16 is not supported on MPS; use bfloat16 or float32, or training.device=cpu"
        )


def peak_bytes(device: torch.device) -> int | None:
    """Most memory in use so far: on CUDA of its allocator, elsewhere of the whole process; None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
