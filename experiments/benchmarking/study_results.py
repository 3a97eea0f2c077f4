"""What was measured of packs and whole studies, as it stands in `benchmark.json`: every number, and their summary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from experiments.benchmarking.cases import PackCase
from experiments.benchmarking.pack_timing import PackResult
from experiments.benchmarking.results import FILE, unfinished
from experiments.benchmarking.whole_study import StudyCase, StudyResult
from experiments.record.atomic_files import as_json, write_atomically


@dataclass
class StudyBenchmark:
    """A benchmark of packs and studies on disk, saved after every case; unfinished, it can be gone on with."""

    folder: Path
    conditions: dict[str, Any]
    pack_cases: Sequence[PackCase]
    study_cases: Sequence[StudyCase]
    packs: list[PackResult] = field(default_factory=list)
    studies: list[StudyResult] = field(default_factory=list)

    @property
    def packs_left(self) -> Sequence[PackCase]:
        return self.pack_cases[len(self.packs) :]

    @property
    def studies_left(self) -> Sequence[StudyCase]:
        return self.study_cases[len(self.studies) :]

    def save(self) -> None:
        tree = {
            "finished": not self.packs_left and not self.studies_left,
            "conditions": self.conditions,
            "planned": self._labels(),
            "results": {"packs": [r.tree() for r in self.packs], "studies": [r.tree() for r in self.studies]},
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / FILE, as_json(tree))

    def go_on(self) -> None:
        """Take over what an earlier, interrupted call left in the folder.

        Raises: ValueError where it is finished, or was measured under other conditions.
        """
        there = unfinished(self.folder, self.conditions | {"cases": self._labels()}, _read)
        if there is not None:
            self.packs, self.studies = there

    def _labels(self) -> list[str]:
        return [case.label for case in self.pack_cases] + [case.label for case in self.study_cases]


def _read(results: Mapping[str, Any]) -> tuple[list[PackResult], list[StudyResult]]:
    packs = [PackResult.from_tree(tree) for tree in results["packs"]]
    return packs, [StudyResult.from_tree(tree) for tree in results["studies"]]
