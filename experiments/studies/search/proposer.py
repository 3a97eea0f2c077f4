"""The points of a study's searches: each arm's allocation and space over the model at hand, and what to try next."""

from typing import Any

from experiments.studies.board import Board
from experiments.studies.design.arms import Arm
from experiments.studies.design.planned import ArmProgress
from experiments.studies.design.search_config import SearchConfig
from experiments.studies.design.searching import search_key
from experiments.studies.design.study import Study
from experiments.studies.design.study_config import rounded
from experiments.studies.queueing.entries import Entry, NewTrial
from experiments.studies.queueing.trial_queue import TrialQueue
from experiments.studies.search.allocations import Allocation, Interval, Space
from experiments.studies.search.ground import Ground
from experiments.studies.search.proposing import Asked, Tried, propose
from experiments.training.setting import Setting


class Proposer:
    """Of one study, over one model. Proposals depend on file, weights, data and the trials that have ended."""

    def __init__(self, study: Study, search: SearchConfig, setting: Setting) -> None:
        self.study, self.search, self.setting = study, search, setting
        self.seed = study.protocol.tuning.seeds[0]
        self._grounds: dict[tuple[str, ...], Ground] = {}
        self._allocations: dict[str, Allocation] = {}

    def fill(self, queue: TrialQueue, board: Board) -> int:
        """Have the next trials of every search wait in the queue; how many were added.

        Of two workers that do so at once, the first is heard.
        """
        asking = [progress for progress in board.arms if progress.tuning.asks]
        return sum(queue.add(self._next(progress, board)) for progress in asking)

    def refuse_faults(self) -> None:
        """Raises: ValueError for a budget that is impossible, or an allocation that this model does not have."""
        for arm in self.study.arms:
            try:
                self._ground(arm).refuse(arm.search["allocation"])
            except ValueError as error:
                raise ValueError(f"{arm.label}: {error}") from None

    def _next(self, progress: ArmProgress, board: Board) -> list[NewTrial]:
        """The trials of the batch that an arm asks for."""
        arm, asks = progress.arm, progress.tuning.asks
        allocation = self._allocation(arm)
        first = self.search.batch * (asks[0] // self.search.batch)
        batch = range(first, min(first + self.search.batch, self.search.trials))
        space = allocation.space() | self._knobs()
        keys = [self._key(arm, n) for n in range(first)]
        asked = propose(
            space,
            [_tried(board.entries[key]) for key in keys],
            batch,
            sampler=arm.search["sampler"],
            seed=arm.search["search_seed"],
            higher_is_better=self.study.higher_is_better,
            excess=lambda point: float(allocation.excess(point)),
        )
        return [self._trial(arm, allocation, n, of) for n, of in zip(batch, asked, strict=True) if n in asks]

    def _trial(self, arm: Arm, allocation: Allocation, number: int, asked: Asked) -> NewTrial:
        point = asked.point
        ranks = allocation.ranks({**point, "draw": number})
        allocation.budget.refuse(ranks)
        rate = rounded(arm.centre * point.get("learning_rate", 1.0))
        knobs: dict[str, Any] = {"rank": ranks}
        if "alpha_per_rank" in point:
            knobs |= {"alpha": None, "alpha_per_rank": float(f"{point['alpha_per_rank']:.6g}")}
        if "learning_rate_ratio" in point:
            knobs["learning_rate_ratio"] = float(f"{point['learning_rate_ratio']:.6g}")
        facts: dict[str, Any] = {
            "arm": arm.label,
            "stage": "search",
            "variant": arm.config.variant.name,
            "knobs": knobs,
        }
        facts |= {"point": point, "refused": list(asked.refused), "excess": list(asked.excess)}
        return NewTrial(self._key(arm, number), {"learning_rate": rate, "seed": self.seed}, facts)

    def _key(self, arm: Arm, number: int) -> str:
        return search_key(arm, number, self.seed)

    def _knobs(self) -> Space:
        """The knobs that every arm searches."""
        ends = self.search.space.model_dump()
        return {name: Interval(found[0], found[1], log=True) for name, found in ends.items() if found is not None}

    def _allocation(self, arm: Arm) -> Allocation:
        if arm.identity not in self._allocations:
            self._allocations[arm.identity] = self._ground(arm).allocation(arm.search["allocation"])
        return self._allocations[arm.identity]

    def _ground(self, arm: Arm) -> Ground:
        targets = tuple(arm.config.targets)
        if targets not in self._grounds:
            self._grounds[targets] = Ground(self.search, self.setting, arm.config, seed=self.seed)
        return self._grounds[targets]


def refuse_impossible_searches(study: Study, setting: Setting) -> None:
    """Raises: ValueError, before anything is trained, for a search that this model has no room or no layers for."""
    if study.config.search is not None:
        Proposer(study, study.config.search, setting).refuse_faults()


def _tried(entry: Entry) -> Tried:
    given = entry.given
    return Tried(given["point"], entry.score, given["refused"], given["excess"])
