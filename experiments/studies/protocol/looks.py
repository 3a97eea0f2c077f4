"""The looks of a study: after so many seeds each, which comparisons have their word, and which arms go on.

Every family of comparisons is looked at when all of its arms that go on have come to a look; its words, of
`analysis.stats.comparisons`, are final. An arm goes on to the next look while a comparison of it has none, in whichever
setting, and the one whose rates another arm takes goes on with that. Everything follows from the study's file and its
results, so that kills, packs and the number of workers change nothing.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from analysis.stats.comparisons import settle
from analysis.stats.paired_scores import PairedScores
from experiments.studies.protocol.protocol import borrowing, progress_of, settings_of
from experiments.studies.protocol.search_stage import Proposal
from experiments.studies.protocol.seed_scores import SeedScores, seed_scores, units_at_looks, units_of_seeds
from experiments.studies.protocol.trials import BEST_POINT, TUNED, ArmProgress, TrialResult
from experiments.studies.spec.arm import Arm
from experiments.studies.spec.study import Study


@dataclass
class ComparisonState:
    """Where a comparison stands: the seeds that it has been looked at on, and what keeps it from a word."""

    setting: str
    family: int  # a later number: of arms that came after the first evaluation
    arm: Arm
    reference: Arm
    seeds: tuple[int, ...] = ()  # of a whole search the first
    excluded: str | None = None
    open: bool = True


def paired(study: Study, state: ComparisonState, tests: Mapping[tuple[str, str], Mapping[int, float]]) -> PairedScores:
    """The scores of both on the seeds of the looks; `tests`: by config hash and setting, those of each seed."""
    arm, reference = (
        np.array([tests[each.config_hash, state.setting][seed] for seed in state.seeds], dtype=np.float64)
        for each in (state.arm, state.reference)
    )
    return PairedScores(
        name=f"{state.arm.label} against {state.reference.label}",
        arm=arm,
        reference=reference,
        higher_is_better=study.higher_is_better,
        margin=study.protocol.margin,
    )


class StudyProgress:
    """What every arm wants and how every comparison stands, given results and proposed points by trial key.

    `families`: the number of each arm's family of comparisons, by config hash; 1 where there is none.
    """

    def __init__(
        self,
        study: Study,
        results: Mapping[str, TrialResult],
        proposals: Mapping[str, Proposal],
        families: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.study, self.results, self.proposals, self.families = study, results, proposals, families
        self._known: dict[tuple[str, int], ArmProgress] = {}
        self._by_hash = {arm.config_hash: arm for arm in study.arms}
        found = self._families()
        reached = self._reached(found)
        self.comparisons = tuple(each for family in found for each in family)
        goes_on = {arm.config_hash for each in self.comparisons if each.open for arm in (each.arm, each.reference)}
        goes_on |= {arm.rate_of for arm in study.arms if arm.config_hash in goes_on and arm.rate_of is not None}
        self.arms = tuple(
            self._so_far(arm, reached[arm.config_hash], goes_on=arm.config_hash in goes_on) for arm in study.arms
        )

    def _reached(self, families: Sequence[list[ComparisonState]]) -> dict[str, int]:
        """The seeds that each arm comes to, by config hash."""
        reached = dict.fromkeys(self._by_hash, self.study.protocol.evaluation.looks[0])
        for family in families:
            for config_hash, look in self._look(family).items():
                reached[config_hash] = max(reached[config_hash], look)
        for arm in self.study.arms:
            if arm.rate_of is not None:
                reached[arm.rate_of] = max(reached[arm.rate_of], reached[arm.config_hash])
        return reached

    def _families(self) -> list[list[ComparisonState]]:
        """One for each setting, and one more for arms that came later."""
        found = []
        for setting in settings_of(self.study.protocol):
            of_number: dict[int, list[ComparisonState]] = {}
            for arm, reference in self.study.comparisons(tuned=setting == TUNED):
                number = max(self.families.get(each.config_hash, 1) for each in (arm, reference))
                of_number.setdefault(number, []).append(ComparisonState(setting, number, arm, reference))
            found += [family for _, family in sorted(of_number.items())]
        return found

    def _look(self, family: list[ComparisonState]) -> dict[str, int]:
        """Note in the comparisons what the looks at a family find; the seeds that its arms come to, by config hash."""
        study, looks, reached = self.study, self.study.protocol.evaluation.looks, dict[str, int]()
        scores: dict[str, SeedScores] = {}
        tests: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)  # of earlier looks, too
        for look in looks:
            going = {arm.config_hash: arm for each in family if each.open for arm in (each.arm, each.reference)}
            for config_hash, arm in going.items():
                reached[config_hash] = look
                progress = self._at(arm, look)
                scores[config_hash] = seed_scores(study, progress, family[0].setting, self.results)
                tests[config_hash, family[0].setting] |= scores[config_hash].test
            looked_at = [each for each in family if each.open]
            before = [each.seeds for each in looked_at]
            waiting = [_note(study, each, scores, look) for each in looked_at]
            if any(waiting):
                if len(looks) > 1:  # one look alone says no word that is final
                    for each, seeds in zip(looked_at, before, strict=True):
                        _take_back(each, seeds)
                return reached
            for each, word in zip(family, self._words(family, tests), strict=True):
                each.open = each.open and each.excluded is None and word == "undecided" and look != looks[-1]
        return reached

    def _words(
        self, family: Sequence[ComparisonState], tests: Mapping[tuple[str, str], Mapping[int, float]]
    ) -> list[str]:
        pairs = [paired(self.study, each, tests) for each in family]
        return settle(pairs, alpha=self.study.protocol.alpha, looks=units_at_looks(self.study))

    def _at(self, arm: Arm, look: int) -> ArmProgress:
        """What an arm wants that is evaluated on so many seeds, and no more."""
        key = (arm.config_hash, look)
        if key not in self._known:
            study, protocol = self.study, self.study.protocol.at_look(look)
            if arm.rate_of is not None:
                tuning = self._at(self._by_hash[arm.rate_of], look).tuning
                self._known[key] = borrowing(arm, protocol, tuning, self.results)
            else:
                self._known[key] = progress_of(
                    arm,
                    protocol,
                    self.results,
                    higher_is_better=study.higher_is_better,
                    search=study.config.search,
                    proposals=self.proposals,
                )
        return self._known[key]

    def _so_far(self, arm: Arm, reached: int, *, goes_on: bool) -> ArmProgress:
        """What an arm wants that has come to a look: all that it wanted before, too.

        The best point for all seeds is evaluated when it is known which seeds are all.
        """
        looks = [look for look in self.study.protocol.evaluation.looks if look <= reached]
        last = self._at(arm, reached)
        final = not goes_on or reached == self.study.protocol.evaluation.looks[-1]
        wanted = {
            trial.key: trial
            for look in looks
            for trial in self._at(arm, look).wanted
            if (final and look == reached) or trial.settings != (BEST_POINT,)
        }
        complete = not last.tuning.asking and all(key in self.results for key in wanted)
        return replace(last, wanted=tuple(wanted.values()), complete=complete)


def _note(study: Study, state: ComparisonState, scores: Mapping[str, SeedScores], look: int) -> bool:
    """Put into a state that is open what a look finds; whether scores are to come."""
    arm, reference = scores[state.arm.config_hash], scores[state.reference.config_hash]
    why = arm.excluded or (reference.excluded and f"{state.reference.label}: {reference.excluded}")
    waits = arm.waits or (reference.waits and not arm.excluded)
    if why is None:
        seeds = study.protocol.evaluation.seeds[:look]
        state.seeds, state.excluded = tuple(unit[0] for unit in units_of_seeds(study, seeds)), None
    else:
        state.excluded = f"open after {len(state.seeds)} seeds: {why}" if waits and state.seeds else why
        state.open = waits
    return waits


def _take_back(state: ComparisonState, seeds: tuple[int, ...]) -> None:
    """Of a look that waits for others of the family: what it found of a comparison that has all its scores."""
    if state.excluded is None:
        why = "others of its family are pending"
        state.seeds, state.excluded = seeds, f"open after {len(seeds)} seeds: {why}" if seeds else why
