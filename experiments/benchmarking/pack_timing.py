"""What a trial-step costs in packs of several sizes, in time and memory, beside PEFT's step; checked, then measured."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
import torch

from experiments.benchmarking.cases import Case, PackCase
from experiments.benchmarking.footprint import footprint_in_new_process, footprint_of_pack_in_new_process
from experiments.benchmarking.implementations import DEFAULT, PEFT
from experiments.benchmarking.measurement import ALLOWED_DIFFERENCE, Report
from experiments.benchmarking.packs import (
    CLIPPING,
    PackOfTrials,
    buckets,
    build_pack,
    build_theirs,
    largest_differences,
    ranks_of,
    workloads_of,
)
from experiments.benchmarking.timing import Stepping, time_rounds


@dataclass(frozen=True)
class PackResult:
    """The numbers of one case: seconds of a trial-step, one a round; bytes of a step, one a process.

    `theirs` are by implementation and rank, `ours` by pack size: what a step of all packs takes, over their trials.
    `missing` says of a pack size why it has no numbers.
    """

    case: PackCase
    differences: dict[str, float]
    theirs: dict[str, dict[int, list[float]]]
    ours: dict[int, list[float]]
    missing: dict[int, str]
    bytes: dict[str, list[int]]  # PEFT's by its name, ours by pack size

    def their_step(self, implementation: str) -> list[float]:
        """Seconds of a step, one a round: the mean over the ranks as the trials have them."""
        by_rank = self.theirs[implementation]
        mean: list[float] = np.mean([by_rank[rank] for rank in self.case.ranks], axis=0).tolist()
        return mean

    def ratios(self, trials: int, implementation: str = PEFT) -> list[float]:
        """Of each round: a trial-step in a pack of this size over the implementation's step."""
        quotients: list[float] = (np.asarray(self.ours[trials]) / self.their_step(implementation)).tolist()
        return quotients

    def summary(self) -> list[dict[str, Any]]:
        """A row for each pack size: medians, and ratios with their quartiles."""
        return [self._row(trials) for trials in self.ours]

    def _row(self, trials: int) -> dict[str, Any]:
        lower, middle, upper = np.quantile(self.ratios(trials), (0.25, 0.5, 0.75)).tolist()
        median = float(np.median(self.ours[trials]))
        row = {"trials": trials, "seconds": median, "trial_steps_per_second": 1 / median}
        row |= {"ratio": middle, "ratio_lower_quartile": lower, "ratio_upper_quartile": upper}
        for name, implementation in (("ratio_to_not_fused", DEFAULT), ("ratio_to_clipping", CLIPPING)):
            row[name] = float(np.median(self.ratios(trials, implementation)))
        if 1 in self.ours:
            row["ratio_to_pack_of_one"] = float(np.median(np.asarray(self.ours[trials]) / self.ours[1]))
        return row

    def tree(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self) | {"label": self.case.label, "summary": self.summary()}

    @classmethod
    def from_tree(cls, tree: Mapping[str, Any]) -> Self:
        """What `tree` gave, through JSON."""
        case = PackCase(case=Case(**tree["case"]["case"]), ranks=tuple(tree["case"]["ranks"]))
        theirs = {name: {int(rank): of for rank, of in by.items()} for name, by in tree["theirs"].items()}
        ours = {int(trials): of for trials, of in tree["ours"].items()}
        missing = {int(trials): why for trials, why in tree["missing"].items()}
        return cls(case, tree["differences"], theirs, ours, missing, tree["bytes"])


def measure_packs(
    case: PackCase, device: torch.device, sizes: Sequence[int], *, rounds: int, processes: int, report: Report
) -> PackResult:
    """All numbers of one case; packs whose trials do not compute what PEFT does are not timed.

    Raises: RuntimeError where they do not, or a process failed.
    """
    workloads = workloads_of(case, device)
    theirs = build_theirs(workloads)
    packs: dict[int, list[PackOfTrials]] = {}
    differences, missing = {"loss": 0.0, "gradient": 0.0}, {}
    for trials in case.sizes(sizes):
        try:
            packs[trials] = [build_pack(workloads, ranks) for ranks in buckets(ranks_of(case, trials))]
            for pack in packs[trials]:
                found = largest_differences(pack, workloads, theirs[PEFT])
                differences = {what: max(differences[what], found[what]) for what in found}
        except torch.OutOfMemoryError:
            packs.pop(trials, None)
            missing[trials] = "out of memory"
    refuse_differences(case, differences)
    names = {
        (implementation, rank): f"{implementation}, rank {rank}" for implementation in theirs for rank in workloads
    }
    implementations: dict[str, Stepping] = {name: theirs[by][rank] for (by, rank), name in names.items()}
    implementations |= {_name(trials, part): pack for trials, of in packs.items() for part, pack in enumerate(of)}
    done, total = 0, len(implementations) * rounds + (len(packs) + 1) * processes * case.case.memory

    def one_more() -> None:
        nonlocal done
        done += 1
        report(case.label, done, total)

    seconds = time_rounds(workloads[case.ranks[0]], implementations, rounds=rounds, on_round=one_more)
    ours = {
        trials: (np.sum([seconds[_name(trials, part)] for part in range(len(of))], axis=0) / trials).tolist()
        for trials, of in packs.items()
    }
    by_rank = {by: {rank: seconds[names[by, rank]] for rank in workloads} for by in theirs}
    peaks: dict[str, list[int]] = {}
    for _ in range(processes * case.case.memory):
        peaks.setdefault(PEFT, []).append(footprint_in_new_process(case.case, PEFT, device.type))
        one_more()
        for trials in packs:
            peaks.setdefault(str(trials), []).append(footprint_of_pack_in_new_process(case, trials, device.type))
            one_more()
    return PackResult(case, differences, by_rank, ours, missing, peaks)


def refuse_differences(case: PackCase, differences: Mapping[str, float]) -> None:
    """Raises: RuntimeError where losses or gradients are other than rounding makes them."""
    allowed = ALLOWED_DIFFERENCE[case.case.precision]
    for what, difference in differences.items():
        if not difference <= allowed:
            raise RuntimeError(
                f"{case.label}: a trial in a pack does not compute what PEFT does: {what} differs by "
                f"{difference:.1e}, more than {allowed:g}; there is nothing to compare"
            )


def _name(trials: int, part: int) -> str:
    return f"pack {part} of {trials} trials"
