"""A run of some 40 ms, started as a command in this process, and stopped on its way."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from project_paths import CONFIGS

from experiments.record.run_dir import RunDirectory
from experiments.run import main
from experiments.training.checkpoint import Checkpoints, Holder
from experiments.training.interruption import Interrupted

STEPS, EVERY = 12, 4
TINY = [
    "--config", str(CONFIGS / "planted.yaml"), "--set", "task.matrices=[{d_out: 8, d_in: 8, rank: 2}]",
    "--set", f"steps={STEPS}", "--set", "batch_size=8", "--set", "task.evaluation_rows=64",
    "--set", "evaluate_every=5", "--set", f"checkpoint_every={EVERY}", "--set", "wandb.mode=disabled",
]  # fmt: skip


def tiny_run(runs_dir: Path, *arguments: str, variant: str = "lora") -> int:
    """Its exit code."""
    rank = [] if variant in ("full", "full_all", "head") else ["--rank", "2"]
    return main([*TINY, "--variant", variant, *rank, "--runs-dir", str(runs_dir), *arguments])


def only_run(runs_dir: Path) -> RunDirectory:
    (found,) = (path for path in (runs_dir / "single").iterdir() if path.is_dir())
    return RunDirectory(found)


@contextmanager
def at_step(wanted: int, happens: Callable[[RunDirectory], None]) -> Iterator[None]:
    """Inside, a run meets this after a step of its own and its checkpoint."""

    class Meeting(Checkpoints):
        def after_step(self, step: int, holders: Mapping[str, Holder], *, seconds: float, now: bool = False) -> None:
            super().after_step(step, holders, seconds=seconds, now=now)
            if step == wanted:
                happens(self.folder)

    with patch("experiments.training.trial.Checkpoints", Meeting):
        yield


def interrupt(_: RunDirectory) -> None:
    raise Interrupted("for a test")


def unfinished_run(runs_dir: Path, *arguments: str, step: int = 6) -> RunDirectory:
    """A run that was stopped after a step, with a checkpoint at step 4."""
    with at_step(step, interrupt):
        assert tiny_run(runs_dir, *arguments) == 130
    return only_run(runs_dir)


def is_as(run: RunDirectory, whole: RunDirectory) -> bool:
    """Whether it ended as the one that was never interrupted, bit by bit."""
    names = ("adapter_model.safetensors", "metrics.jsonl", "config.yaml", "predictions.parquet")
    return run.finished and all((run.path / n).read_bytes() == (whole.path / n).read_bytes() for n in names)
