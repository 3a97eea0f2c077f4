"""A pack in training: its trials go on together until one of them ends; a single run is a pack of one."""

import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from experiments.training.context import Setting, regime_of, trial_of
from experiments.training.evaluation import evaluate
from experiments.training.interruption import Interrupted, Interruption
from experiments.training.loop import Training
from experiments.training.trial import Member
from lora_variants.interface.variant import Variant

Heard = Callable[[int], None]


def train_together(
    setting: Setting, members: Sequence[Member], *, interruption: Interruption, heard: Heard = lambda trials: None
) -> list[Member]:
    """Train a pack until a trial of it ends, and close those that ended; returns the others, ready for another pack.

    The pack is made anew whenever its trials change, and every trial brings its state: what a trial is does not
    depend on its neighbours. `heard(n)` hears of every step of n trials.
    Raises: Interrupted after a checkpoint of every trial, where somebody asked to stop.
    """
    configs, began, before = [m.config for m in members], time.perf_counter(), _training_seconds(members)
    variant = setting.attached(configs, [member.start for member in members])

    def after_step() -> None:
        heard(len(members))
        if interruption.asked and not any(member.ended for member in members):
            _stop(members)

    try:
        training = Training(variant, setting.task, [trial_of(config) for config in configs], regime_of(configs[0]))
        for slot, member in enumerate(members):
            member.sit(training, slot)
        training.train_until_one_ends(members, after_step=after_step)
        ended, others = ([m for m in members if m.ended is so] for so in (True, False))
        scores = _scores(setting, training, ended)
        spent = time.perf_counter() - began - (_training_seconds(members) - before)
        for member in members:
            member.besides += spent / len(members)
        for member, (validation, forgetting) in zip(ended, scores, strict=True):
            member.conclude(validation, forgetting)
        for member in others:
            member.rise()
    finally:
        variant.detach()
    for member in ended:
        member.close()
    return others


def _training_seconds(members: Sequence[Member]) -> float:
    return sum(member.seconds for member in members)


def _stop(members: Sequence[Member]) -> NoReturn:
    for member in members:
        member.keep(now=True)
    raise Interrupted(f"stopped after step {members[0].step}, with a checkpoint; the same command goes on from there")


Scores = tuple[dict[str, float], dict[str, float] | None]


def _scores(setting: Setting, training: Training, ended: Sequence[Member]) -> list[Scores]:
    """On validation, and on the base's own domain where there are such data, of each trial that has ended."""
    if all(member.failure is not None or member.stopped is not None for member in ended):
        return [({}, None) for _ in ended]
    precision = training.regime.precision
    validation = evaluate(training.variant, setting.task, "validation", precision)
    forgetting = _forgetting(setting, training.variant, precision) if setting.task.has_forgetting_split else None
    return [(validation[m.slot], None if forgetting is None else forgetting[m.slot]) for m in ended]


def _forgetting(setting: Setting, variant: Variant, precision: str) -> list[dict[str, float]]:
    """The loss on text of the base's own domain: of the untouched base, of the adapted model, and the difference."""
    with variant.disabled():
        before = evaluate(variant, setting.task, "forgetting", precision)
    after = evaluate(variant, setting.task, "forgetting", precision)
    losses = [(b["loss"], a["loss"]) for b, a in zip(before, after, strict=True)]
    return [{"before": b, "after": a, "change": a - b} for b, a in losses]
