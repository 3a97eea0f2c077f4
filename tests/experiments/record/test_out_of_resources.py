"""Disk full and out of memory are told from other errors, whichever library says so."""

import errno
import os

import pytest
import torch
from safetensors import SafetensorError

from experiments.record.out_of_resources import describe_exhaustion


def oserror(number: int) -> OSError:
    return OSError(number, os.strerror(number), "/there/metrics.jsonl")


def caused_by(cause: BaseException) -> ValueError:
    error = ValueError("cannot be stored")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        oserror(errno.ENOSPC),
        oserror(errno.EDQUOT),
        oserror(errno.EFBIG),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        caused_by(oserror(errno.ENOSPC)),
    ],
    ids=str,
)
def test_a_full_disk_is_said_in_one_line_with_the_way_out(error: BaseException) -> None:
    told = describe_exhaustion(error)
    assert told is not None
    assert told.startswith("out of disk space")
    assert "give the same command again" in told
    assert "\n" not in told


def test_the_file_that_could_not_be_written_is_named() -> None:
    assert "/there/metrics.jsonl" in str(describe_exhaustion(oserror(errno.ENOSPC)))


def too_much() -> RuntimeError:
    """What torch raises on CPU for more memory than there is."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"), too_much(), oserror(errno.ENOMEM)],
    ids=lambda error: type(error).__name__,
)
def test_memory_that_ran_out_is_said_in_one_line_with_the_way_out(error: BaseException) -> None:
    told = describe_exhaustion(error)
    assert told is not None
    assert told.startswith("out of memory")
    assert "training.batch_size" in told
    assert "\n" not in told


@pytest.mark.parametrize(
    "error",
    [
        oserror(errno.ENOENT),
        oserror(errno.EACCES),
        RuntimeError("shapes differ"),
        ValueError("no"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_every_other_error_is_none_of_both(error: BaseException) -> None:
    assert describe_exhaustion(error) is None
