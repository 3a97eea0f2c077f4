"""A whole study from the command to its last score: ours, and the same trials as a user of PEFT runs them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, Self

from experiments.benchmarking.measurement import Report
from experiments.benchmarking.peft_trials import PeftTrial, folder_of, order
from experiments.config.loading import resolve
from experiments.config.yaml_files import yaml_text
from experiments.record.run_dir import RunDirectory
from experiments.tasks.bytes import Bytes, BytesConfig
from experiments.tasks.task import Split
from experiments.training.hyperparameters import trial_hyperparameters

ROOT = Path(__file__).resolve().parents[2]
OURS, ONE_PROCESS, A_PROCESS_A_TRIAL = "ours", "PEFT, one process", "PEFT, a process a trial"
SIDE_BY_SIDE = 2  # workers of ours; processes that train at a time with PEFT
MULTIPLIERS = (0.125, 1, 4)  # at 100 steps the middle one is best, so that no grid is extended
ALLOWED_DIFFERENCE = 1e-3  # of scores, relatively, in the median: at the highest rates rounding grows without bound

Score = tuple[int, float, int, Split]  # rank, learning rate, seed, split


@dataclass(frozen=True)
class StudyCase:
    """A study of the `bytes` task: at every rank three rates with some seeds, then the best one with fresh seeds."""

    ranks: tuple[int, ...]
    trials: int
    steps: int
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is at least 1; got {self.steps}")
        together = (len(MULTIPLIERS) + 1) * len(self.ranks)
        if self.trials < 1 or self.trials % together:
            raise ValueError(
                f"trials is a multiple of {together} (at each of {len(self.ranks)} ranks as many at each of "
                f"{len(MULTIPLIERS)} rates and in the evaluation); got {self.trials}"
            )

    @property
    def label(self) -> str:
        ranks = f"rank{'s' * (len(self.ranks) > 1)} {', '.join(map(str, self.ranks))}"
        return f"{self.trials} trials of {self.steps} steps, {ranks}"

    def tree(self) -> dict[str, Any]:
        """The study's file; without checkpoints, which PEFT's trials do not write either."""
        seeds = self.trials // ((len(MULTIPLIERS) + 1) * len(self.ranks))
        return {
            "name": "speed",
            "config": str(ROOT / "configs" / "bytes.yaml"),
            "set": {
                "training.steps": self.steps, "training.evaluate_every": 0, "training.checkpoint_every": 0,
                "training.learning_rate": 5e-3, "training.device": self.device, "wandb.mode": "disabled",
            },
            "arms": [{"variant": "lora", "rank": list(self.ranks)}],
            "protocol": {
                "tuning": {
                    "shared": True,
                    "learning_rate_multipliers": list(MULTIPLIERS),
                    "seeds": list(range(100, 100 + seeds)),
                },
                "evaluation": {"seeds": list(range(seeds))},
                "reference": {"rank": self.ranks[0]},
                "margin": 0.01,
            },
        }  # fmt: skip


@dataclass(frozen=True)
class Run:
    """What it took: start-up included, of all processes; `seconds_to_last_score` without what is concluded after it."""

    seconds: float
    seconds_to_last_score: float
    processor_seconds: float


@dataclass(frozen=True)
class StudyResult:
    """The runs of one study's trials, and how far their scores are apart, relatively, in the median."""

    case: StudyCase
    trials: int
    difference: float
    runs: dict[str, Run]

    def ratio(self, quantity: str, implementation: str) -> float:
        """Ours over the implementation's."""
        return float(getattr(self.runs[OURS], quantity) / getattr(self.runs[implementation], quantity))

    def tree(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"label": self.case.label}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Self:
        """What `tree` gave, through JSON."""
        case = StudyCase(**{**tree["case"], "ranks": tuple(tree["case"]["ranks"])})
        return cls(case, tree["trials"], tree["difference"], {name: Run(**run) for name, run in tree["runs"].items()})


def measure_study(case: StudyCase, report: Report) -> StudyResult:
    """Train the study's trials three times, in a temporary folder, once the base model is in the cache.

    Raises: RuntimeError where a process failed, or where the trials' scores are not the same.
    """
    Bytes(BytesConfig()).base_model(report)  # type: ignore[call-arg]
    report(case.label, 0, 3)
    with TemporaryDirectory(prefix="study-benchmark-", ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        runs = {OURS: _timed(lambda: run_ours(case, folder), folder)}
        report(case.label, 1, 3)
        trials, scores = ours(folder / "runs" / "speed")
        runs[ONE_PROCESS] = _timed(lambda: run_peft(trials, folder / "one", case.device), folder / "one")
        report(case.label, 2, 3)
        apart = folder / "apart"
        runs[A_PROCESS_A_TRIAL] = _timed(lambda: run_peft_apart(trials, apart, case.device), apart)
        report(case.label, 3, 3)
        found = max(median_difference(scores, theirs(trials, place)) for place in (folder / "one", apart))
    if not found <= ALLOWED_DIFFERENCE:
        raise RuntimeError(
            f"{case.label}: scores of the same trial differ by {found:.1e} in the median, more than "
            f"{ALLOWED_DIFFERENCE:g}; they are not the same work"
        )
    return StudyResult(case, len(trials), found, runs)


def run_ours(case: StudyCase, folder: Path) -> None:
    """The study, as its command trains it."""
    (folder / "speed.yaml").write_text(yaml_text(case.tree()), encoding="utf-8")
    study = str(ROOT / "experiments" / "study.py")
    _run([study, str(folder / "speed.yaml"), "--workers", str(SIDE_BY_SIDE), "--runs-dir", str(folder / "runs")])


def run_peft(trials: Sequence[PeftTrial], folder: Path, device: str) -> None:
    """All trials in one process, one after another."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = folder / f"from-{folder_of(trials[0], folder).name}.json"
    asked.write_text(order(trials, folder, device), encoding="utf-8")
    _run(["-m", "experiments.benchmarking.peft_trials", str(asked)])


def run_peft_apart(trials: Sequence[PeftTrial], folder: Path, device: str) -> None:
    """Every trial in a process of its own, two at a time."""
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        for _ in pool.map(lambda trial: run_peft([trial], folder, device), trials):
            pass


def ours(folder: Path) -> tuple[list[PeftTrial], dict[Score, float]]:
    """The trials that a study has trained, as PEFT is to train them, and their scores."""
    trials: list[PeftTrial] = []
    scores: dict[Score, float] = {}
    for path in sorted(folder.glob("*/result.json")):
        result = RunDirectory(path.parent).result()
        config = resolve(RunDirectory(path.parent).config_tree())
        knobs: Any = config.variant
        splits: tuple[Split, ...] = ("validation", "test") if "test" in result else ("validation",)
        own = trial_hyperparameters(config)
        assert own.max_grad_norm is not None
        trial = PeftTrial(
            knobs.rank, knobs.alpha_at(knobs.rank), own.seed, own.learning_rate, config.training.steps,
            config.training.batch_size, own.warmup_steps, own.lr_schedule, own.max_grad_norm, splits,
        )  # fmt: skip
        trials.append(trial)
        scores |= {_score(trial, split): result[split][result["score_name"]] for split in splits}
    return trials, scores


def theirs(trials: Sequence[PeftTrial], folder: Path) -> dict[Score, float]:
    """The scores that PEFT's trials have left."""
    results = {trial: RunDirectory(folder_of(trial, folder)).result() for trial in trials}
    return {_score(trial, split): results[trial][split]["bits_per_byte"] for trial in trials for split in trial.splits}


def median_difference(scores: Mapping[Score, float], others: Mapping[Score, float]) -> float:
    """Relatively, over the same trials and splits. Raises: RuntimeError where those are not the same."""
    if scores.keys() != others.keys():
        raise RuntimeError(f"the trials are not the same: {sorted(scores.keys() ^ others.keys())[0]} is on one side")
    return median(abs(score - others[key]) / abs(others[key]) for key, score in scores.items())


def _score(trial: PeftTrial, split: Split) -> Score:
    return trial.rank, trial.learning_rate, trial.seed, split


def _timed(run: Callable[[], None], folder: Path) -> Run:
    wall, began, processor = time.perf_counter(), time.time(), _seconds_of_children()
    run()
    seconds = time.perf_counter() - wall
    last = max(path.stat().st_mtime for path in folder.rglob("result.json"))
    return Run(seconds, last - began, _seconds_of_children() - processor)


def _seconds_of_children() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _run(arguments: Sequence[str]) -> None:
    """Python with these arguments, at one thread. Raises: RuntimeError with the last line of what it said."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise RuntimeError(f"{' '.join(arguments[:2])} failed: {said[-1]}")
