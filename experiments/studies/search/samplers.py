"""What a search tries next: Optuna's samplers, asked for a batch of trials given all that has ended before it.

A sampler lives for one question. Its seed follows from the search's seed and the number of the trial, and the history
is told to it anew: so the same finished trials lead to the same next one, in any process, after any crash.
"""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import Trial, TrialState, create_trial

from experiments.studies.search.allocations import Interval, Point, Space

SAMPLERS = ("tpe", "cmaes", "gp", "random")
CONSTRAINT = "budget"
MOST_ATTEMPTS = 400  # at a trial that keeps to the budget
OWN_ATTEMPTS = 100  # of the sampler; then points are random: a sampler may be stuck where none keeps to it
REMEMBERED = 8  # infeasible attempts before a trial that later questions hear of


@dataclass(frozen=True)
class Observation:
    """A point whose trial has ended: with a score, or pruned at a step with what it had `reached` there, or failed.

    `refused` are points that exceeded the budget.
    """

    point: Point
    score: float | None
    reached: tuple[int, float] | None = None
    refused: Sequence[Point] = ()
    excess: Sequence[float] = ()  # of each refused point


@dataclass(frozen=True)
class Suggestion:
    """A point to try, and the last of the points before it that exceeded the budget, with their excess."""

    point: dict[str, float | int]
    refused: tuple[dict[str, float | int], ...] = ()
    excess: tuple[float, ...] = ()


Excess = Callable[[Point], float]


def suggest(
    space: Space,
    history: Sequence[Observation],
    numbers: Sequence[int],
    *,
    sampler: str,
    seed: int,
    higher_is_better: bool,
    excess: Excess = lambda point: 0.0,
) -> list[Suggestion]:
    """The points of the trials with these numbers, which train side by side.

    A point that exceeds the budget is told infeasible, untrained, and another one asked for. Without history, points
    are random. Raises: ValueError where no point keeps to the budget.
    """
    distributions = {name: _distribution(interval) for name, interval in space.items()}
    chosen = sampler if any(observation.score is not None for observation in history) else "random"
    with quietly():
        study = optuna.create_study(
            direction="maximize" if higher_is_better else "minimize", sampler=RandomSampler(seed=0)
        )  # each question has a sampler of its own
        told = _Told(study, distributions, worst=_worst(history, higher_is_better=higher_is_better))
        for observation in history:
            told.recall(observation, replayed=chosen == "cmaes")
        return [_ask(told, number, chosen, seed, excess) for number in numbers]


@dataclass(frozen=True)
class _Told:
    """A study in memory that has heard the history; an infeasible point counts as the worst score there was."""

    study: Study
    distributions: dict[str, BaseDistribution]
    worst: float

    def recall(self, observation: Observation, *, replayed: bool) -> None:
        """CMA-ES learns only from trials that it was asked for, so they are asked for again, at their points."""
        for point, excess in zip(observation.refused, observation.excess, strict=True):
            self._add(point, self.worst, excess, replayed=replayed)
        self._add(observation.point, observation.score, 0.0, observation.reached, replayed=replayed)

    def _add(
        self,
        point: Point,
        score: float | None,
        excess: float,
        reached: tuple[int, float] | None = None,
        *,
        replayed: bool,
    ) -> None:
        pruned = score is None and reached is not None
        state = TrialState.PRUNED if pruned else TrialState.FAIL if score is None else TrialState.COMPLETE
        if replayed:
            self.study.sampler = CmaEsSampler(seed=0, warn_independent_sampling=False)
            self.study.enqueue_trial(dict(point))
            trial = self.study.ask(self.distributions)
            trial.set_constraint(CONSTRAINT, excess)
            self.study.tell(trial, score, state=state)
            return
        self.study.add_trial(
            create_trial(
                state=state,
                value=score,
                intermediate_values=dict([reached]) if pruned and reached is not None else {},
                params=dict(point),
                distributions=self.distributions,
                constraints={CONSTRAINT: excess},
            )
        )


def _ask(told: _Told, number: int, sampler: str, seed: int, excess: Excess) -> Suggestion:
    refused: list[tuple[dict[str, float | int], float]] = []
    for attempt in range(MOST_ATTEMPTS):
        told.study.sampler = _sampler(sampler if attempt < OWN_ATTEMPTS else "random", _seed(seed, number, attempt))
        trial: Trial = told.study.ask(told.distributions)
        over = excess(trial.params)
        trial.set_constraint(CONSTRAINT, over)
        if over <= 0:
            points, amounts = zip(*refused[-REMEMBERED:], strict=True) if refused else ((), ())
            return Suggestion(dict(trial.params), tuple(points), tuple(amounts))
        refused.append((dict(trial.params), float(over)))
        told.study.tell(trial, told.worst)
    raise ValueError(
        f"{MOST_ATTEMPTS} points in a row exceed the budget, the last by {refused[-1][1]:g}: it is too small for this "
        "encoding; raise the budget, lower search.highest_rank, or take the encoding 'priority', which keeps to it"
    )


def _sampler(name: str, seed: int) -> BaseSampler:
    makers: Mapping[str, Callable[[], BaseSampler]] = {
        "tpe": lambda: TPESampler(seed=seed, n_startup_trials=0),
        "cmaes": lambda: CmaEsSampler(seed=seed, warn_independent_sampling=False),
        "gp": lambda: GPSampler(seed=seed, n_startup_trials=0, deterministic_objective=False),
        "random": lambda: RandomSampler(seed=seed),
    }
    return makers[name]()


def _seed(*words: object) -> int:
    return int.from_bytes(hashlib.sha256(repr(words).encode()).digest()[:4])


def _worst(history: Sequence[Observation], *, higher_is_better: bool) -> float:
    scores = [observation.score for observation in history if observation.score is not None]
    return (min if higher_is_better else max)(scores, default=0.0)


def _distribution(interval: Interval) -> BaseDistribution:
    low, high, log = interval
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


@contextmanager
def quietly() -> Iterator[None]:
    """Optuna says nothing of trials that only live in memory."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            for harmless in (
                "Constraints have been set",  # CMA-ES goes by the score they are told with
                "Target and region quantiles select the same set",  # a resample of few trials: all knobs are equal then
            ):
                warnings.filterwarnings("ignore", harmless)
            yield
    finally:
        optuna.logging.set_verbosity(before)
