"""The points of a study's searches: each arm's allocation and space over the model at hand, and what to try next."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.studies.protocol.progress import StudyState
from experiments.studies.protocol.search_stage import Repeat, best_source, repeats_of, trial_key
from experiments.studies.protocol.trials import Replication
from experiments.studies.queue.entries import Entry, NewTrial
from experiments.studies.queue.trial_queue import TrialQueue
from experiments.studies.search.allocations import Allocation, Interval, Space
from experiments.studies.search.samplers import Observation, Suggestion, suggest
from experiments.studies.search.search_space import SearchSpace
from experiments.studies.spec.arm import Arm
from experiments.studies.spec.search_config import SearchConfig, has_random_ranks
from experiments.studies.spec.study import Study
from experiments.studies.spec.tuning_config import rounded
from experiments.training.context import TrainingContext
from experiments.training.early_stopping import threshold

APART = 2**32  # between the seeds of the proposals of two repeats: further than seeds of 32 bits


class Proposer:
    """Of one study, over one model. Proposals depend on file, weights, data and the trials that have ended."""

    def __init__(self, study: Study, search: SearchConfig, context: TrainingContext) -> None:
        self.study, self.search, self.context = study, search, context
        self.repeats = repeats_of(search, study.protocol)
        self._search_spaces: dict[tuple[object, ...], SearchSpace] = {}
        self._allocations: dict[tuple[str, int], Allocation] = {}

    def enqueue(self, queue: TrialQueue, study_state: StudyState) -> int:
        """Have the next trials of every search wait in the queue; how many were added.

        Where two workers do so at once, the suggestions of the first count.
        """
        return sum(
            queue.add(self._next(progress.arm, repeat, asking, study_state))
            for progress in study_state.arms
            for repeat, asking in zip(self.repeats, progress.tuning.replications, strict=True)
            if asking.asks
        )

    def refuse_impossible(self) -> None:
        """Raises: ValueError for a budget that is impossible, or an allocation that this model does not have."""
        for arm in self.study.arms:
            try:
                self._search_space(arm, self.repeats[0]).refuse(arm.search["allocation"])
            except ValueError as error:
                raise ValueError(f"{arm.label}: {error}") from None

    def _next(self, arm: Arm, repeat: Repeat, asking: Replication, study_state: StudyState) -> list[NewTrial]:
        """The trials of the batch that a search of an arm asks for."""
        asks, seed = asking.asks, repeat.seeds[0]
        if asking.asks_for == "allocation":
            assert arm.source is not None
            return [self._source_trial(arm, arm.source, number, repeat) for number in asks]
        allocation = self._allocation(arm, repeat, study_state)
        first = self.search.batch * (asks[0] // self.search.batch)
        batch = range(first, min(first + self.search.batch, self.search.trials))
        before = [study_state.entries[trial_key(arm, "search", number, seed)] for number in range(first)]
        suggestions = suggest(
            allocation.space() | self._knobs(),
            [_observation(entry) for entry in before],
            batch,
            sampler=arm.search["sampler"],
            seed=arm.search["search_seed"] + APART * repeat.number,
            higher_is_better=self.study.higher_is_better,
            excess=lambda point: float(allocation.excess(point)),
        )
        thresholds = self._thresholds(arm, before)
        return [
            self._trial(arm, allocation, n, of, thresholds, seed)
            for n, of in zip(batch, suggestions, strict=True)
            if n in asks
        ]

    def _thresholds(self, arm: Arm, before: Sequence[Entry]) -> dict[str, float | None]:
        """By step, what the trials of the next batch must have reached to go on, given all before them."""
        halving = self.search.halving
        if halving is None or has_random_ranks(arm.search):
            return {}
        steps = arm.config.training.steps
        rungs = sorted({str(max(1, round(part * steps))) for part in halving.rungs} - {str(steps)}, key=int)
        reached = {
            rung: [e.facts["reached"][rung] for e in before if rung in e.facts.get("reached", {})] for rung in rungs
        }
        higher = self.study.higher_is_better
        return {rung: threshold(found, keep=halving.keep, higher_is_better=higher) for rung, found in reached.items()}

    def _source_trial(self, arm: Arm, source: Arm, number: int, repeat: Repeat) -> NewTrial:
        """AdaLoRA at the budget, at one of the rates of the tuning grid."""
        rate = rounded(source.centre * sorted(self.study.protocol.tuning.points.learning_rate_multipliers)[number])
        space, seed = self._search_space(arm, repeat), repeat.seeds[0]
        knobs = {"rank": space.budget.divided(dict.fromkeys(space.shapes, 1.0))}
        facts = {"arm": source.label, "stage": "allocation", "variant": source.config.variant.name, "knobs": knobs}
        key = trial_key(source, "allocation", number, seed)
        return NewTrial(key, {"learning_rate": rate, "seed": seed}, facts)

    def _trial(
        self,
        arm: Arm,
        allocation: Allocation,
        number: int,
        suggestions: Suggestion,
        thresholds: Mapping[str, float | None],
        seed: int,
    ) -> NewTrial:
        point = suggestions.point
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
        facts |= {"point": point, "refused": list(suggestions.refused), "excess": list(suggestions.excess)}
        facts |= {"thresholds": dict(thresholds)} if thresholds else {}
        return NewTrial(trial_key(arm, "search", number, seed), {"learning_rate": rate, "seed": seed}, facts)

    def _knobs(self) -> Space:
        """The knobs that every arm searches."""
        ends = self.search.space.model_dump()
        return {name: Interval(found[0], found[1], log=True) for name, found in ends.items() if found is not None}

    def _allocation(self, arm: Arm, repeat: Repeat, study_state: StudyState) -> Allocation:
        name = (arm.config_hash, repeat.number)
        if name not in self._allocations:
            taken = None if arm.source is None else self._adalora_ranks(arm, repeat, study_state)
            self._allocations[name] = self._search_space(arm, repeat).allocation(arm.search["allocation"], taken)
        return self._allocations[name]

    def _adalora_ranks(self, arm: Arm, repeat: Repeat, study_state: StudyState) -> dict[str, int]:
        """Those that the best of the runs before the search ended with."""
        scores = {key: entry.score for key, entry in study_state.entries.items()}
        best = best_source(arm, repeat, scores, higher_is_better=self.study.higher_is_better)
        assert best is not None  # an arm without it does not get here
        return dict(study_state.entries[best].facts["ranks"])

    def _search_space(self, arm: Arm, repeat: Repeat) -> SearchSpace:
        seed = repeat.seeds[0] + arm.seed_offset
        about = (seed, *arm.config.targets)
        if about not in self._search_spaces:
            self._search_spaces[about] = SearchSpace(self.search, self.context, arm.config, seed=seed)
        return self._search_spaces[about]


def refuse_impossible_searches(study: Study, context: TrainingContext) -> None:
    """Raises: ValueError, before anything is trained, for a search that this model has no room or no layers for."""
    if study.config.search is not None:
        Proposer(study, study.config.search, context).refuse_impossible()


def _observation(entry: Entry) -> Observation:
    given, reached = entry.given, entry.facts.get("reached", {})
    last = max(reached, key=int, default=None) if entry.state == "pruned" else None
    pruned = None if last is None else (int(last), float(reached[last]))
    return Observation(given["point"], entry.score, pruned, given["refused"], given["excess"])
