"""A full disk, or no memory left, ends a run in one line, and it goes on later."""

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tiny_runs import EVERY, STEPS, is_as, only_run, tiny_run

from experiments.record import atomic_files
from experiments.record.run_dir import RunDirectory
from experiments.training import loop


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """The run, never interrupted."""
    runs_dir = tmp_path_factory.mktemp("whole")
    assert tiny_run(runs_dir) == 0
    return only_run(runs_dir)


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """Inside, the system refuses to write files that are larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(("size", "name"), [(100, "config.yaml"), (1500, "metrics.jsonl"), (6000, "checkpoint")])
def test_a_disk_that_is_full_ends_a_run_in_one_line_and_it_goes_on_later(
    tmp_path: Path, whole: RunDirectory, size: int, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with files_of_at_most(size):
        assert tiny_run(tmp_path, "--set", f"checkpoint_every={2 if name == 'checkpoint' else 0}") == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("failed: out of disk space")
    assert f"{only_run(tmp_path).path / name}" in error
    assert "give the same command again" in error
    assert not list(only_run(tmp_path).path.glob("*.partial"))
    torn = [path for path in tmp_path.rglob("metrics.jsonl") if path.read_bytes() and path.read_bytes()[-1:] != b"\n"]
    assert not torn
    assert tiny_run(tmp_path) == 0
    assert is_as(only_run(tmp_path), whole)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "result.json"])
def test_a_disk_that_is_full_at_the_end_costs_no_more_than_the_steps_since_the_checkpoint(
    tmp_path: Path, whole: RunDirectory, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sync = atomic_files.sync

    def full(path: Path) -> None:
        if path.name.startswith(name):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(path)

    with monkeypatch.context() as patched:
        patched.setattr(atomic_files, "sync", full)
        assert tiny_run(tmp_path) == 1
    assert f"No space left on device: '{only_run(tmp_path).path / name}'" in capsys.readouterr().err
    assert "OSError: [Errno 28]" in (only_run(tmp_path).path / "error.txt").read_text()
    assert not only_run(tmp_path).finished
    assert tiny_run(tmp_path) == 0
    assert is_as(only_run(tmp_path), whole)
    assert only_run(tmp_path).result()["resumed_from"] == [STEPS]


def test_what_else_the_disk_says_no_to_is_a_failed_run_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(path: Path) -> None:
        if "checkpoint" in path.name:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(atomic_files, "sync", broken)
    assert tiny_run(tmp_path) == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("failed: [Errno 5]")
    assert f"{only_run(tmp_path).path / 'checkpoint.safetensors'}" in error


def by_torch() -> None:
    torch.empty(1 << 60, dtype=torch.uint8)


def by_python() -> None:
    raise MemoryError


def by_cuda() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of")


@pytest.mark.parametrize("allocate", [by_torch, by_python, by_cuda])
def test_memory_that_runs_out_ends_a_run_in_one_line_and_it_goes_on_later(
    tmp_path: Path,
    whole: RunDirectory,
    allocate: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(loop.AdamW, "clip_gradients", lambda *_: allocate() if len(steps) == 6 else steps.append(1))
        steps: list[int] = []
        assert tiny_run(tmp_path, "--set", "max_grad_norm=null") == 1
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith("failed: out of memory")
    assert "Traceback" in (only_run(tmp_path).path / "error.txt").read_text()
    assert tiny_run(tmp_path, "--set", "max_grad_norm=null") == 0
    assert only_run(tmp_path).result()["resumed_from"] == [EVERY]
