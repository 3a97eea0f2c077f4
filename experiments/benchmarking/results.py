"""What was measured, as it stands in `benchmark.json`: every number of every round, and their summary."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from experiments.benchmarking.cases import Case
from experiments.benchmarking.implementations import LIBRARIES, PEFT
from experiments.record.atomic_files import as_json, write_atomically
from experiments.record.environment import describe

ROOT = Path(__file__).resolve().parents[2]
FILE = "benchmark.json"
Results = TypeVar("Results")


@dataclass(frozen=True)
class Result:
    """The numbers of one case: `seconds` a step, one a round; `bytes` of a step, one a process.

    `missing` says why an implementation has none; `differences` how far the others' mathematics are from PEFT's.
    """

    case: Case
    trainable_parameters: dict[str, int]
    differences: dict[str, float]
    missing: dict[str, str]
    seconds: dict[str, list[float]]
    bytes: dict[str, list[int]]

    def quantities(self) -> dict[str, Mapping[str, Sequence[float]]]:
        return {"seconds": self.seconds, "bytes": self.bytes}

    def ratios(self, quantity: str) -> dict[str, list[float]]:
        """Each number divided by PEFT's: of the same round for seconds, by the median of PEFT's for bytes."""
        numbers = self.quantities()[quantity]
        if not numbers:
            return {}
        theirs = np.asarray(numbers[PEFT])
        by = theirs if quantity == "seconds" else np.median(theirs)
        return {name: (np.asarray(of_implementation) / by).tolist() for name, of_implementation in numbers.items()}

    def summary(self) -> Iterator[dict[str, Any]]:
        """A row for each implementation and quantity: the median, and the ratio to PEFT with its quartiles."""
        for quantity, numbers in self.quantities().items():
            for name, ratios in self.ratios(quantity).items():
                lower, middle, upper = np.quantile(ratios, (0.25, 0.5, 0.75)).tolist()
                row = {"implementation": name, "quantity": quantity, "median": float(np.median(numbers[name]))}
                yield row | {"ratio": middle, "ratio_lower_quartile": lower, "ratio_upper_quartile": upper}


@dataclass
class Benchmark:
    """A benchmark on disk, saved after every case; unfinished, it can be gone on with under equal conditions."""

    folder: Path
    conditions: dict[str, Any]
    planned: list[Case]
    results: list[Result] = field(default_factory=list)

    @property
    def left(self) -> list[Case]:
        return self.planned[len(self.results) :]

    def save(self) -> None:
        tree = {
            "finished": not self.left,
            "conditions": self.conditions,
            "planned": [asdict(case) for case in self.planned],
            "results": [asdict(result) | {"summary": list(result.summary())} for result in self.results],
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / FILE, as_json(tree))

    def go_on(self) -> None:
        """Take over what an earlier, interrupted call left in the folder.

        Raises: ValueError where it is finished, or was measured under other conditions.
        """
        asked = self.conditions | {"cases": [asdict(case) for case in self.planned]}
        there = unfinished(self.folder, asked, lambda results: [_read(result) for result in results])
        self.results = self.results if there is None else there


def unfinished(folder: Path, asked: Mapping[str, Any], read: Callable[[Any], Results]) -> Results | None:
    """The results that an interrupted benchmark left in the folder; None where there is nothing.

    `asked` are the conditions, with the `cases`. Raises: ValueError where it is finished, was measured under other
    conditions, or is something else.
    """
    path = folder / FILE
    if not path.exists():
        return None
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
        before = {**there["conditions"], "cases": there["planned"]}
        finished, results = there["finished"], read(there["results"])
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path} is not what a benchmark wrote; choose another --output") from None
    if finished:
        raise ValueError(f"{folder} holds a finished benchmark; choose another --output or move it away")
    differ = [key for key in asked if key not in ("started", "command") and asked[key] != before.get(key)]
    if differ:
        raise ValueError(
            f"{folder} holds the beginning of a benchmark with other {', '.join(differ)}; "
            f"choose another --output or move it away"
        )
    return results


def _read(tree: Mapping[str, Any]) -> Result:
    numbers = {key: value for key, value in tree.items() if key not in ("case", "summary")}
    return Result(case=Case(**tree["case"]), **numbers)


def conditions(device: torch.device, *, rounds: int, processes: int) -> dict[str, Any]:
    """What the numbers depend on: versions, our own sources, the machine, and how often was measured."""
    kept = ("started", "command", "python", "platform", "packages", "commit", "dirty", "device")
    described = describe(device=device, base_sha256="", data_sha256={})
    libraries = {library: version(library) for library in LIBRARIES.values() if find_spec(library)}
    return {
        **{key: described[key] for key in kept},
        "packages": described["packages"] | libraries,
        "processor": _processor(),
        "threads": 1,
        "sources_sha256": _sources_sha256(),
        "rounds": rounds,
        "processes": processes,
    }


def _processor() -> str | None:
    """The name of the processor, None where the system has no /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), None)


def _sources_sha256() -> str:
    """So that numbers of two versions of our code never stand in one table."""
    digest = hashlib.sha256()
    for package in ("lora_variants", "experiments"):
        for path in sorted((ROOT / package).rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()
