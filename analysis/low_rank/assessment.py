"""The low-rank test of one study: the gain first, then what truncated updates and small adapters keep of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from analysis.low_rank.descriptions import Matrix
from analysis.low_rank.seeds_to_settle import seeds_by_hypothesis
from analysis.low_rank.study_runs import HypothesisError, StudyRuns
from analysis.low_rank.truncated_scores import ENERGY, TruncatedScores, Update, grid_of, least_rank
from analysis.stats.paired_scores import FEWEST_PAIRS
from analysis.stats.rank_hypothesis import Hypothesis, Judgement, Task, capacity_ranks, judge, k0_of
from analysis.stats.retention import (
    FixedSequence,
    Gain,
    Retention,
    fixed_sequence,
    gain_test,
    linear_form,
    retention,
)

RHO0S = (0.05, 0.1, 0.25, 0.5)  # against which the verdict is printed
ALONG = ("top", "random", "shrunk")  # kinds that are scored along the whole grid
AT_K0 = ("removed", "weighted", "shared")
ROUNDING = 1e-3  # of the gain: by so much a run's own score may differ when its whole ΔW is scored again

NO_GAIN = Task(testable=False)
Scores = Float[np.ndarray, " seeds"]


class Kept(NamedTuple):
    """What is left of an update, or an adapter, and the share of the gain that it keeps."""

    kind: str  # of a truncation, or 'adapter'
    k: int
    found: Retention
    energy: float | None  # share of ‖ΔW‖² of all matrices, mean over the seeds


@dataclass(frozen=True)
class Assessment:
    """All that the scores of one study say; after a failed gate the gain alone."""

    study: StudyRuns
    p: int
    k0: int
    gain: Gain
    testable: bool
    full: Scores
    floor: Scores
    kept: tuple[Kept, ...] = ()
    k95: FixedSequence | None = None
    r95: FixedSequence | None = None
    matrices: int = 0
    task: Task = NO_GAIN
    by_rho0: Mapping[float, Judgement] = field(default_factory=dict)
    seeds_needed: Mapping[str, int | None] = field(default_factory=dict)  # hypothesis -> seeds for a word on it
    missing: tuple[str, ...] = ()
    from_own_head: Retention | None = None  # of the top k0, were the floor W0 under the run's own head
    described: tuple[Matrix, ...] = ()  # H3 and H4: of every adapted matrix

    def of(self, kind: str, k: int) -> Kept | None:
        return next((each for each in self.kept if (each.kind, each.k) == (kind, k)), None)


def assess(
    study: StudyRuns, updates: Mapping[int, Update], truncated: TruncatedScores, on_score: Callable[[int, int], None]
) -> Assessment:
    """Raises: HypothesisError for an arm that is not tuned, and for updates that do not give their runs' scores."""
    asked, p = study.hypothesis, least_rank(updates)
    k0 = k0_of(asked["rho0"], p)
    full = study.scores(study.full)
    truncated.need([("base", 0)], on_score)
    floor = truncated.of("base", 0, study.score) if study.floor is None else study.scores(study.floor)
    gain = gain_test(full, floor, higher_is_better=study.higher_is_better, alpha=asked["alpha"])
    if not gain.p <= asked["alpha"]:
        doubts = tuple(f"{label} is not tuned ({why}): that may be why" for label, why in study.not_tuned.items())
        return Assessment(study, p, k0, gain, False, full, floor, matrices=len(truncated.shapes), missing=doubts)
    if study.not_tuned:
        told = "; ".join(f"{label}: {why}" for label, why in study.not_tuned.items())
        raise HypothesisError(
            f"{study.name}: arms that are not tuned ({told}); give them a wider grid, in a study of another name"
        )
    ks = grid_of(p, [k0_of(rho0, p) for rho0 in (*RHO0S, asked["rho0"])])
    wanted = [*((kind, k) for kind in ALONG for k in ks), *((kind, k0) for kind in AT_K0)]
    truncated.need(dict.fromkeys([*wanted, ("top", truncated.widest)]), on_score)
    _refuse_other_scores(study, truncated, full, gain)
    return _assessment(study, truncated, wanted, p, k0, gain, full, floor)


def _assessment(
    study: StudyRuns,
    truncated: TruncatedScores,
    wanted: Sequence[tuple[str, int]],
    p: int,
    k0: int,
    gain: Gain,
    full: Scores,
    floor: Scores,
) -> Assessment:
    asked = study.hypothesis
    options = {"higher_is_better": study.higher_is_better, "required": asked["retention"]}

    def kept(kind: str, k: int, scores: Scores, energy: float | None) -> Kept:
        return Kept(kind, k, retention(scores, full, floor, **options, alpha=asked["alpha"]), energy)

    cut = [
        kept(kind, k, truncated.of(kind, k, study.score), float(truncated.of(kind, k, ENERGY).mean()))
        for kind, k in wanted
    ]
    if study.floor is not None:  # the run's own head over W0: where the curve of a task with a head begins
        cut.append(kept("base", 0, truncated.of("base", 0, study.score), 0.0))
    adapters = [kept("adapter", rank, study.scores(runs), None) for rank, runs in study.capacity.items()]
    of_cut = {each.k: each.found for each in cut if each.kind == "top"}
    of_rank = {each.k: each.found for each in adapters}
    task, missing = _task(of_cut, of_rank, k0)
    forms = {rank: linear_form(study.scores(runs), full, floor, **options) for rank, runs in study.capacity.items()}
    of_top = linear_form(truncated.of("top", k0, study.score), full, floor, **options)
    first_step = asked["alpha"] / (2 * max(1, len(asked["family"])))  # of Holm, over all tests of the family
    return Assessment(
        study, p, k0, gain, True, full, floor,
        kept=(*cut, *adapters),
        matrices=len(truncated.shapes),
        k95=_least(of_cut, asked["alpha"]),
        r95=_least(of_rank, asked["alpha"]),
        task=task,
        by_rho0={
            rho0: judge([_task(of_cut, of_rank, k0_of(rho0, p))[0]], alpha=asked["alpha"])[0] for rho0 in RHO0S
        },
        seeds_needed=seeds_by_hypothesis(of_top, forms, k0, alpha=first_step),
        missing=(*missing, *_controls_that_keep_as_much(cut, k0, asked["retention"])),
        from_own_head=_from_own_head(study, truncated, k0, full),
    )  # fmt: skip


def _least(found: Mapping[int, Retention], alpha: float) -> FixedSequence | None:
    """The least rank that surely keeps enough; None under five seeds: it would be a word."""
    enough = all(each.n >= FEWEST_PAIRS for each in found.values())
    return fixed_sequence({rank: each.p_holds for rank, each in found.items()}, alpha) if enough else None


def _controls_that_keep_as_much(cut: Sequence[Kept], k0: int, required: float) -> list[str]:
    """Of those that should fail where the hypothesis is true: then a word on H1 says little."""
    return [
        f"the control '{each.kind}' at {k0} may keep {required:g} as well, so H1 says little here"
        for each in cut
        if each.kind in ("random", "removed") and each.k == k0 and not each.found.low <= each.found.high < required
    ]


def _from_own_head(study: StudyRuns, truncated: TruncatedScores, k0: int, full: Scores) -> Retention | None:
    """How much the top k0 keep of a looser gain, which leaves out what the head alone does; it decides nothing."""
    own, asked = truncated.of("base", 0, study.score), study.hypothesis
    if study.floor is None or own.mean() == full.mean():
        return None
    return retention(
        truncated.of("top", k0, study.score), full, own,
        higher_is_better=study.higher_is_better, required=asked["retention"], alpha=asked["alpha"],
    )  # fmt: skip


def _task(of_cut: Mapping[int, Retention], of_rank: Mapping[int, Retention], k0: int) -> tuple[Task, tuple[str, ...]]:
    supporting, contradicting = capacity_ranks(of_rank, k0)
    missing = [
        f"no adapter of rank {where} {k0}, so H2 can not {word}"
        for rank, where, word in ((supporting, "up to", "hold"), (contradicting, "at or above", "fail"))
        if rank is None
    ]
    capacity = Hypothesis(
        None if supporting is None else of_rank[supporting], None if contradicting is None else of_rank[contradicting]
    )
    return Task(True, Hypothesis(of_cut[k0], of_cut[k0]), capacity), tuple(missing)


def _refuse_other_scores(study: StudyRuns, truncated: TruncatedScores, full: Scores, gain: Gain) -> None:
    """The whole ΔW, scored again, is the run: otherwise the truncations are of something else."""
    again = truncated.of("top", truncated.widest, study.score)
    worst = int(np.argmax(np.abs(again - full)))
    if abs(again[worst] - full[worst]) > ROUNDING * abs(gain.gain):
        raise HypothesisError(
            f"{study.name}, seed {study.seeds[worst]}: its whole ΔW over W0 scores {again[worst]:.6g}, the run "
            f"{full[worst]:.6g}: the base or the data are not those that it was trained on"
        )
