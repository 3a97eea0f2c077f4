"""Whether an error says that the disk is full or that memory is used up, and what its user can do then."""

import errno
import os

import torch

DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # full; over a quota; over the limit of a file's size
DISK_TEXTS = tuple(os.strerror(number) for number in sorted(DISK))  # libraries in Rust and C++ pass the text on alone
# Torch has no type of its own for the CPU's memory, nor for what cuBLAS allocates.
MEMORY_TEXTS = ("allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED", os.strerror(errno.ENOMEM))
GO_ON = "give the same command again: it goes on from the last checkpoint, or from the start without one"


def describe_exhaustion(error: BaseException, *, then: str = GO_ON) -> str | None:
    """One line for the user where the error, or what caused it, says that disk or memory ran out; None elsewhere."""
    if error.__cause__ is not None and (told := describe_exhaustion(error.__cause__, then=then)) is not None:
        return told
    if _is_disk(error):
        return f"out of disk space ({_in_short(error)}): free some, then {then}"
    if is_out_of_memory(error):
        smaller = "lower training.batch_size or raise training.gradient_accumulation_steps"
        return f"out of memory ({_in_short(error)}): free some, then {then}; or {smaller}"
    return None


def _is_disk(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in DISK
    return any(text in str(error) for text in DISK_TEXTS)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether this is how torch, CUDA or Python say that memory is used up."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return memory or (isinstance(error, RuntimeError) and any(text in str(error) for text in MEMORY_TEXTS))


def _in_short(error: BaseException) -> str:
    """The first line of the error; its type where it says nothing, as MemoryError does."""
    return str(error).partition("\n")[0] or type(error).__name__
