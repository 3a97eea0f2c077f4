"""What the evaluation of an arm has come to, seed by seed, and why it gets no verdict where it gets none.

An arm gets none in a setting while a run of it there is pending (optional stopping inflates false positives), when one
failed (the seeds that finished are not a fair sample), and in the tuned setting when it is not tuned.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from analysis.stats.paired_scores import FEWEST_PAIRS
from experiments.studies.protocol.estimand import units_of
from experiments.studies.protocol.search_stage import repeats_of
from experiments.studies.protocol.trials import TUNED, ArmProgress, TrialResult
from experiments.studies.spec.study import Study


@dataclass(frozen=True)
class SeedScores:
    """The runs of an arm in one setting of the evaluation."""

    test: Mapping[int, float]  # seed (the first of a whole search's) -> score where it is done, in the protocol's order
    validation: Mapping[int, float]
    failed: tuple[int, ...]  # seeds
    pending: tuple[int, ...]
    excluded: str | None  # why the arm gets no verdict here
    waits: bool  # whether that is for want of scores that are to come


def seed_scores(study: Study, progress: ArmProgress, setting: str, results: Mapping[str, TrialResult]) -> SeedScores:
    """Of an arm on the seeds that it has come to."""
    of_seed = {trial.seed: trial.key for trial in progress.evaluations(setting)}
    tuned = progress.tuning.state if setting == TUNED else "tuned"  # a fixed rate needs no tuning
    none = {
        seed for seed in progress.seeds if seed not in of_seed and setting == TUNED and tuned != "open"
    }  # all points failed
    ended = {seed: results[key] for seed, key in of_seed.items() if key in results}
    done = {seed: ended[seed] for seed in progress.seeds if seed in ended and ended[seed].test is not None}
    failed = tuple(seed for seed in progress.seeds if seed in none or (seed in ended and seed not in done))
    pending = tuple(seed for seed in progress.seeds if seed not in done and seed not in failed)
    units = units_of_seeds(study, progress.seeds)
    return SeedScores(
        test=_of_units({seed: result.test or 0.0 for seed, result in done.items()}, units),
        validation=_of_units({seed: result.score or 0.0 for seed, result in done.items()}, units),
        failed=failed,
        pending=pending,
        excluded=_reason(study, progress, setting, failed=len(failed), pending=len(pending), n=len(units)),
        waits=tuned == "open" or bool(pending and not failed and tuned == "tuned"),
    )


def units_of_seeds(study: Study, seeds: Sequence[int]) -> list[tuple[int, ...]]:
    """Evaluation seeds in groups of which each is one independent unit: those of a whole search together."""
    search = study.config.search
    if search is None or search.repeats == 1:
        return [(seed,) for seed in seeds]
    return [repeat.serves for repeat in repeats_of(search, study.protocol)]


def units_at_looks(study: Study) -> list[int]:
    """How many independent units a comparison has at each look."""
    seeds, looks = study.protocol.evaluation.seeds, study.protocol.evaluation.looks
    return [len(units_of_seeds(study, seeds[:look])) for look in looks]


def _of_units(scores: Mapping[int, float], units: Sequence[tuple[int, ...]]) -> dict[int, float]:
    """The mean score of each unit that is complete, by its first seed."""
    whole = [unit for unit in units if all(seed in scores for seed in unit)]
    return {unit[0]: scores[unit[0]] if len(unit) == 1 else fmean(scores[seed] for seed in unit) for unit in whole}


def _reason(study: Study, progress: ArmProgress, setting: str, *, failed: int, pending: int, n: int) -> str | None:
    if setting == TUNED and progress.tuning.state != "tuned":
        return {"open": "its tuning is not over", "not tuned": "not tuned"}[progress.tuning.state]
    if failed:
        return f"{failed} of {len(progress.seeds)} evaluation runs failed"
    if pending:
        return f"{pending} of {len(progress.seeds)} evaluation runs pending"
    return f"a verdict needs {FEWEST_PAIRS} {units_of(study)}, there are {n}" if n < FEWEST_PAIRS else None
