"""What is told of the device: how much of its memory was in use."""

import mmap
from pathlib import Path

import torch

from experiments.training.device import peak_bytes


def test_the_peak_of_a_process_is_in_bytes_and_of_whole_pages() -> None:
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
    peak = peak_bytes(torch.device("cpu"))
    assert peak is not None
    assert peak > resident / 2  # the two are counted at different moments
    assert peak % mmap.PAGESIZE == 0
