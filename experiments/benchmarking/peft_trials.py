"""Trials of the `bytes` task as a user of PEFT trains them, one after another, in a process of their own: `main`.

Base, batches, start, schedule and clipping are those of our trials, and so is what each leaves on disk.
"""

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from experiments.benchmarking.implementations import wrapped_by_peft
from experiments.benchmarking.workload import BLOCKS
from experiments.models.transformer import ByteTransformer
from experiments.tasks.bytes import Bytes, BytesConfig
from experiments.tasks.task import Split
from experiments.training.optimizer import schedule_factor
from lora_variants.interface.rng import stream


@dataclass(frozen=True)
class PeftTrial:
    """What one trial is; `splits` are those on which it is scored at its end."""

    rank: int
    alpha: float
    seed: int
    learning_rate: float
    steps: int
    batch_size: int
    warmup_steps: int  # steps
    lr_schedule: str
    max_grad_norm: float
    splits: tuple[Split, ...]


def order(trials: Sequence[PeftTrial], folder: Path, device: str) -> str:
    """What `main` is told: trials, the folder below which each has one of its own, and the device."""
    return json.dumps({"trials": [asdict(trial) for trial in trials], "folder": str(folder), "device": device})


def folder_of(trial: PeftTrial, folder: Path) -> Path:
    return folder / f"r{trial.rank}-lr{trial.learning_rate:g}-s{trial.seed}"


def train_trials(trials: Sequence[PeftTrial], folder: Path, device: torch.device) -> None:
    """Train each in turn over one base; its metrics, adapter and result are in its folder."""
    task = Bytes(BytesConfig())  # type: ignore[call-arg]
    base = task.base_model().to(device)
    assert isinstance(base, ByteTransformer)
    paths = [
        p for p, m in base.named_modules() if isinstance(m, nn.Linear) and p.startswith(BLOCKS["byte_transformer"])
    ]
    for trial in trials:
        own = folder_of(trial, folder)
        own.mkdir(parents=True)
        with _wrapped(base, paths, trial) as model:
            _train(model, task, trial, own, device)
            scores = {split: score(model, task, split, device) for split in trial.splits}
            model.save_pretrained(own)
            (own / "result.json").write_text(json.dumps({**asdict(trial), **scores}, indent=2), encoding="utf-8")


@contextmanager
def _wrapped(base: ByteTransformer, paths: Sequence[str], trial: PeftTrial) -> Iterator[Any]:
    """PEFT's model with A as our LoRA draws it from the trial's seed; afterwards the base is bare."""
    model = wrapped_by_peft(base, paths, rank=trial.rank, alpha=trial.alpha)
    for path in paths:
        A = base.get_submodule(path).lora_A["default"].weight  # type: ignore[union-attr,index]
        A.detach().copy_(start_of(A, path, trial.seed))
    try:
        yield model
    finally:
        model.unload()


def start_of(A: Tensor, path: str, seed: int) -> Tensor:
    """U(-1/√d_in, 1/√d_in) from the stream that is A's there in our trials."""
    drawn = torch.rand(A.shape, generator=stream(seed, "init", path, "A"), dtype=torch.float64)
    return (2 * drawn - 1) * A.shape[1] ** -0.5


def _train(model: nn.Module, task: Bytes, trial: PeftTrial, folder: Path, device: torch.device) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=trial.learning_rate, weight_decay=0.0, fused=True)
    model.train()
    batches = task.training_batches(trial.seed, trial.batch_size)
    with (folder / "metrics.jsonl").open("w", encoding="utf-8") as file:
        for step, batch in zip(range(trial.steps), batches, strict=False):
            rate = trial.learning_rate * schedule_factor(
                trial.lr_schedule, step, total=trial.steps, warmup=trial.warmup_steps
            )
            optimizer.param_groups[0]["lr"] = rate
            there = {key: rows.to(device) for key, rows in batch.items()}
            loss = task.row_losses(model, there).sum() / task.row_counts(there).sum()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(parameters, trial.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            row = {"train/task_loss": loss.item(), "train/gradient_norm": norm.item(), "train/learning_rate": rate}
            file.write(json.dumps({"step": step + 1, **row}) + "\n")


@torch.no_grad()
def score(model: nn.Module, task: Bytes, split: Split, device: torch.device) -> dict[str, float]:
    """The task's metrics on a whole split."""
    model.eval()
    losses, counts = [], []
    for batch in task.evaluation_batches(split):
        there = {key: rows.to(device) for key, rows in batch.items()}
        losses.append(task.row_losses(model, there).cpu().double())
        counts.append(task.row_counts(there).cpu().double())
    return task.split_metrics({"loss": torch.cat(losses)}, torch.cat(counts))


def main(asked: str) -> None:
    """Do what an `order` says, at one thread."""
    torch.set_num_threads(1)
    told = json.loads(asked)
    trials = [PeftTrial(**{**tree, "splits": tuple(tree["splits"])}) for tree in told["trials"]]
    train_trials(trials, Path(told["folder"]), torch.device(told["device"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]).read_text(encoding="utf-8"))
