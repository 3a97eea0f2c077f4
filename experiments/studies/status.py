"""The status of a study, in the numbers that a display shows: per arm and in all."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import fmean

from experiments.studies.protocol.progress import StudyState
from experiments.studies.protocol.protocol import plan_ahead
from experiments.studies.protocol.trials import TUNED, ArmProgress, PlannedTrial
from experiments.studies.queue.entries import ENDED, Entry
from experiments.studies.queue.liveness import WorkerSeen
from experiments.studies.spec.study import Study

STATES = ("done", "pruned", "running", "waiting", "failed")


@dataclass(frozen=True)
class ArmStatus:
    """One arm: its state in a word or two, and trials that have ended of those planned."""

    label: str
    state: str
    tuning: tuple[int, int]
    rates: tuple[float, ...]  # chosen, once for each replication of the tuning
    evaluation: tuple[int, int]
    score: float | None  # best on validation so far: the mean over the seeds of a rate
    failed: int
    complete: bool
    tuned: bool
    reason: str  # of the tuning's outcome


@dataclass(frozen=True)
class StudyStatus:
    """A whole study. `seconds_left` is None while no worker has said how fast it is."""

    name: str
    score_name: str
    arms: tuple[ArmStatus, ...]
    counts: Mapping[str, int]  # of the trials planned, by state
    failures: tuple[tuple[str, str], ...]  # (description of the trial, reason)
    workers: int
    steps_per_second: float | None  # trial-steps of all workers
    seconds_left: float | None
    complete: bool

    @property
    def planned(self) -> int:
        return sum(self.counts.values())


def status_of(study: Study, study_state: StudyState, workers: Sequence[WorkerSeen] = ()) -> StudyStatus:
    """The status of the study by a snapshot of its queue and the last heartbeats of its workers."""
    counts = Counter(dict.fromkeys(STATES, 0))
    counts.update(study_state.state(key) for key in study_state.wanted)
    counts["waiting"] += sum(sum(_yet_unknown(study, arm)) for arm in study_state.arms)
    failed = (
        (study_state.wanted[key], entry) for key, entry in study_state.entries.items() if key in study_state.wanted
    )
    failures = tuple(
        (describe_trial(trial), str(entry.facts.get("failure"))) for trial, entry in failed if entry.state == "failed"
    )
    speed = _speed(workers)
    return StudyStatus(
        name=study.name,
        score_name=study.score_name,
        arms=tuple(_of_arm(study, study_state, arm) for arm in study_state.arms),
        counts=dict(counts),
        failures=failures,
        workers=len(workers),
        steps_per_second=speed,
        seconds_left=_steps_left(study, study_state) / speed if speed else None,
        complete=study_state.complete,
    )


def describe_trial(trial: PlannedTrial) -> str:
    rate = "" if trial.learning_rate is None else f" at {trial.learning_rate:g}"
    return f"{trial.arm.label}{rate}, seed {trial.seed} ({trial.stage})"


def awake(workers: Sequence[WorkerSeen], *, within: timedelta) -> list[WorkerSeen]:
    """Those whose last heartbeat, by their own clock, is not older: a machine that is switched off does not leave."""
    earliest = datetime.now(UTC) - within
    return [worker for worker in workers if datetime.fromisoformat(worker.last_seen_at) >= earliest]


def _yet_unknown(study: Study, arm: ArmProgress) -> tuple[int, int]:
    """Trials of stage 1 and of the evaluation at a rate, or a point of a search, that is yet to be chosen."""
    if arm.tuning.state != "open":
        return 0, 0
    planned = plan_ahead(arm.arm, study.protocol.at_look(len(arm.seeds)), study.config.search)
    stage_1 = sum(trial.stage != "evaluation" for trial in planned) - len(arm.tuning.trials)
    chosen = sum(trial.stage == "evaluation" and trial.learning_rate is None for trial in planned)
    ahead = study.config.search is not None or study.protocol.tuning.halving is not None
    return (max(0, stage_1) if ahead else 0), chosen


def _of_arm(study: Study, study_state: StudyState, arm: ArmProgress) -> ArmStatus:
    ended = {key for trial in arm.wanted if study_state.state(key := trial.key) in ENDED}
    begun = any(study_state.state(trial.key) != "waiting" for trial in arm.wanted)
    evaluations = [trial.key for trial in arm.wanted if trial.stage == "evaluation"]
    tuned = sum(trial.key in ended for trial in arm.tuning.trials)
    tuning, evaluation = _yet_unknown(study, arm)
    return ArmStatus(
        label=arm.arm.label,
        state=_state(arm, begun=begun),
        tuning=(tuned, len(arm.tuning.trials) + tuning),
        rates=arm.tuning.chosen_rates if arm.tuning.state != "open" else (),
        evaluation=(sum(key in ended for key in evaluations), len(evaluations) + evaluation),
        score=_best(arm.wanted, study_state.entries, higher_is_better=study.higher_is_better),
        failed=sum(study_state.state(trial.key) == "failed" for trial in arm.wanted),
        complete=arm.complete,
        tuned=arm.tuning.state == "tuned",
        reason=arm.tuning.reason,
    )


def _state(arm: ArmProgress, *, begun: bool) -> str:
    if arm.complete:
        return "done" if arm.tuning.state == "tuned" else "done, not tuned"
    if arm.tuning.state == "open":
        extended = any(one.added for one in arm.tuning.replications)
        return ("tuning, extended" if extended else "tuning") if begun else "waiting"
    return "evaluation"


def _best(trials: Iterable[PlannedTrial], entries: Mapping[str, Entry], *, higher_is_better: bool) -> float | None:
    """Where tuning has chosen, that of the choices: a best point's score in its tuning is the best of many."""
    scores: dict[tuple[str, str], list[float]] = {}
    for trial in trials:
        entry = entries.get(trial.key)
        if entry is not None and entry.score is not None:
            chosen = trial.stage == "evaluation" and TUNED in trial.settings
            point = TUNED if chosen else f"{trial.learning_rate} {dict(trial.knobs)}"
            scores.setdefault((trial.stage, point), []).append(entry.score)
    stage = "evaluation" if any(of == "evaluation" for of, _ in scores) else "tuning"
    means = [fmean(found) for (of, _), found in scores.items() if of == stage]
    if ("evaluation", TUNED) in scores:
        return fmean(scores["evaluation", TUNED])
    return (max if higher_is_better else min)(means, default=None)


def _speed(workers: Sequence[WorkerSeen]) -> float | None:
    """Trial-steps per second since each began, all that is not a step included; None before the first heartbeats."""
    said = [worker.progress for worker in workers if worker.progress.get("trial_steps")]
    return sum(progress["trial_steps"] / max(progress["seconds"], 1e-3) for progress in said) or None


def _steps_left(study: Study, study_state: StudyState) -> float:
    """Those of the trials that have not ended; one that runs is taken to be half way."""
    share = {"waiting": 1.0, "running": 0.5}
    known = sum(
        share.get(study_state.state(key), 0.0) * trial.part * trial.arm.config.training.steps
        for key, trial in study_state.wanted.items()
        if trial.run_of is None
    )
    return known + sum(_trained_later(study, arm) * arm.arm.config.training.steps for arm in study_state.arms)


def _trained_later(study: Study, arm: ArmProgress) -> int:
    """Of the trials at points yet to be chosen, those that train: a run of the tuning is only read."""
    tuning, evaluation = _yet_unknown(study, arm)
    return tuning + (evaluation if study.config.search is not None or study.protocol.tuning.shared else 0)
