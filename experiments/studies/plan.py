"""What a study would do, without doing it: arms, trials, packs, and the time they take on this machine."""

import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from analysis.stats.rank_hypothesis import capacity_ranks, k0_of
from experiments.config.schema import RunConfig
from experiments.plan import has_base, show_data, show_unknown
from experiments.record.runs_dir import refuse_unusable
from experiments.record.starting_point import StartingPoint, read_start
from experiments.studies.consistency import shared_context, warnings_of_arms
from experiments.studies.costs import Count, GroupCost, group_costs
from experiments.studies.looks_ahead import describe_looks
from experiments.studies.protocol.estimand import holds_for, holds_over, unit
from experiments.studies.protocol.grid import points_of
from experiments.studies.protocol.grid_stage import POINTS_ADDED
from experiments.studies.protocol.protocol import plan_ahead
from experiments.studies.queue.storage import Address
from experiments.studies.queue.trial_queue import TrialQueue
from experiments.studies.search.proposer import refuse_impossible_searches
from experiments.studies.spec.arm import Arm
from experiments.studies.spec.study import Study
from experiments.studies.terminal import StudyView, duration
from experiments.studies.workers.packing import Packing, groups_of
from experiments.training.context import TrainingContext
from experiments.user_cache import NotHereError, read_only
from lora_variants.interface.ranks import RankWarning
from lora_variants.interface.variant import Variant

PATIENCE_SECONDS = 2.0  # of measuring packs, before further groups are estimated


class PlanningContext(TrainingContext):
    """One that may have arbitrary weights, and remembers the last arm that it planned."""

    def __init__(self, config: RunConfig) -> None:
        super().__init__(config)
        self._last: tuple[RunConfig, tuple[Variant, list[str]]] | None = None

    def build(self) -> None:
        """Have a base of arbitrary weights."""
        self.base = self.task.architecture().to(self.device)

    def plan(self, config: RunConfig, start: StartingPoint | None = None) -> tuple[Variant, list[str]]:
        if self._last is None or self._last[0] is not config:
            self._last = config, super().plan(config, read_start(config.start) if start is None else start)
        return self._last[1]


def plan_study(
    study: Study, view: StudyView, address: Address, runs_dir: Path, *, workers: int, pack: int | None, sd: float | None
) -> None:
    """Print the plan; nothing is trained for keeps, downloaded or written. Costs are measured, once a group.

    `sd`: of the difference of two arms over seeds, from which the trials to expect follow.

    What is not on this machine yet is said, and what depends on it is left out.
    Raises: what a launch would raise before it trains.
    """
    refuse_unusable(runs_dir / study.name)
    TrialQueue.find(address, study.name)  # to know whether it can be read
    shared_context(study)
    context = PlanningContext(study.arms[0].config)
    torch.set_num_threads(study.arms[0].config.training.threads or 1)
    unknown: list[str] = []
    with read_only():
        planned = _known(lambda: _check_arms(study, context, view), unknown)
        packing = Packing(context, size=pack, workers=workers, patience=PATIENCE_SECONDS)
        _show_arms(study, packing if planned else None, view)
        for line in describe_looks(study, lambda arm, look: _count(study, arm, look).trained, sd):
            view.display.say(line)
        if planned:
            _show_hypothesis(study, context, view)
        readable = _known(lambda: show_data(context, view.display), unknown)
        if planned and readable:
            _known(lambda: has_base(context, view.display), unknown)
            _show_costs(study, packing, view)
    show_unknown(unknown, view.display)


def _show_hypothesis(study: Study, context: PlanningContext, view: StudyView) -> None:
    """Print which rank is in question, and which adapters can say something of it."""
    asked, roles = study.config.hypothesis, study.roles()
    if asked is None or roles is None:
        return
    layers = context.plan(roles.full.config)[0].layers.values()
    p = min(min(layer.base.d_out, layer.base.d_in) for layer in layers)
    k0 = k0_of(asked.rho0, p)
    holds, fails = capacity_ranks([int(arm.keys["rank"]) for arm in roles.capacity], k0)
    over = "W0" if roles.floor is None else roles.floor.label
    view.display.say(
        f"low-rank test: the gain of {roles.full.label} over {over}; full rank {p}, k0 = {k0} (rho0 {asked.rho0:g}); "
        f"the top {k0} of ΔW, and adapters of that rank, are to keep {asked.retention:g} of it"
    )
    for rank, where, word in ((holds, "up to", "hold"), (fails, "at or above", "fail")):
        if rank is None:
            view.display.warn(f"hypothesis: no adapter has a rank {where} {k0}, so of adapters it can not {word}")


def _known(show: Callable[[], object], unknown: list[str]) -> bool:
    """Whether all that `show` needs is on this machine; what is not is added to `unknown`."""
    try:
        show()
    except NotHereError as error:
        unknown.append(str(error))
        return False
    return True


def _check_arms(study: Study, context: "PlanningContext", view: StudyView) -> None:
    """Raises: ConfigError with every arm that does not fit the base, ValueError for searches; NotHereError."""
    for warning in warnings_of_arms(study, context):
        view.display.warn(warning)
    context.build()
    refuse_impossible_searches(study, context)


def _show_arms(study: Study, packing: Packing | None, view: StudyView) -> None:
    """Print every arm with its trials; without a packing its base is not here, and its parameters are not known."""
    rows = [_row(study, arm, packing) for arm in study.arms]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [[row.get(column, "-") for column in columns] for row in rows]
    view.plan(columns, cells, title=f"study {study.name}: {len(rows)} arms; {_legend(study)}")
    view.display.say(_grid(study))
    view.display.say(f"{unit(study)}; verdicts are {holds_for(study)}, and hold {holds_over(study)}")


def _grid(study: Study) -> str:
    """What arms are tuned over: 'grid: learning rates x 0.5, 1, 2 of an arm's own (rate), alpha_per_rank 2, 8'."""
    if study.config.search is not None:
        return f"{study.config.search.trials} trials of a search, at most, tune an arm"
    points = study.protocol.tuning.points
    rates = ", ".join(f"{rate:g}" for rate in sorted(points.learning_rate_multipliers))
    knobs = [f"{name} {', '.join(f'{value:g}' for value in values)}" for name, values in points.knobs.items()]
    return "; ".join([f"grid: learning rates x {rates} of an arm's own (rate)", *knobs])


def _legend(study: Study) -> str:
    """What the numbers of trials are."""
    if study.config.search is not None:
        return "trials of tuning and evaluation"
    more = "more: where best rates are at an end"
    halved = ", in whole runs: a halved one counts for its part" if study.protocol.tuning.halving is not None else ""
    if study.protocol.tuning.shared:
        return f"trials of tuning and evaluation; {more}"
    taken = "; taken: at the rates of another arm" if any(arm.rate_of is not None for arm in study.arms) else ""
    look = f" to the look after {looks[-1]} seeds" if len(looks := study.protocol.evaluation.looks) > 1 else ""
    return f"trials of tuning{look}{halved}; reads: of the test split, at most; {more}{taken}"


def _show_costs(study: Study, packing: Packing, view: StudyView) -> None:
    counts = {arm.config_hash: _count(study, arm) for arm in study.arms}
    groups = groups_of(study.arms, packing)
    view.display.say(f"measuring {len(groups)} group{'s' * (len(groups) > 1)} of arms whose trials can train together")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RankWarning)
        costs = list(group_costs(packing, groups.values(), counts))
    title = "trials that can train together; ms/step: of one trial in its pack"
    if any(cost.is_estimated for cost in costs):
        title += "; ≈: measured alone, and taken to gain in packs what another group gains"
    columns = ("group", "arms", "trials", "pack", "ms/step", "one core")
    view.plan(columns, [_words(cost) for cost in costs], title=title)
    view.display.say(_describe(study, packing, counts, costs, ready_seconds=time.process_time()))


def _count(study: Study, arm: Arm, look: int | None = None) -> Count:
    """Of an arm that goes to a look; to the last, where none is given."""
    protocol = study.protocol if look is None else study.protocol.at_look(look)
    planned = plan_ahead(arm, protocol, study.config.search)
    reads = sum(trial.run_of is not None for trial in planned)
    evaluation = sum(trial.stage == "evaluation" for trial in planned) - reads
    trained = len(planned) - evaluation - reads
    if study.config.search is not None:
        return Count(0, trained, trained, evaluation, reads, 0, extended_for_sure=False)
    if arm.rate_of is not None:
        return Count(0, 0, 0, evaluation, 0, 0, extended_for_sure=False)
    runs = math.ceil(sum(trial.part for trial in planned if trial.stage in ("rung", "tuning")) - 1e-9)
    tuning, points = protocol.tuning, points_of(arm, protocol.tuning.points)
    seeds = len(tuning.own_seeds if tuning.shared else protocol.evaluation.seeds)
    sure = len({point.multiplier for point in points}) == 2  # the better one is at an end
    return Count(len(points), trained, runs, evaluation, reads, POINTS_ADDED * seeds, extended_for_sure=sure)


def _row(study: Study, arm: Arm, packing: Packing | None) -> dict[str, str]:
    """By column, in their order, what the plan says of an arm."""
    count, row = _count(study, arm), {"arm": arm.label, "rate": f"{arm.centre:g}"}
    if study.config.search is not None:
        budget = study.config.search.budget.description
        return row | {"budget": budget, "tuning": str(count.tuning), "evaluation": str(count.evaluation)}
    if packing is not None:
        packing.group(arm)
        trainable = packing.context.plan(arm.config)[0].trainable_parameters(0)  # of the plan that it remembers
        row["parameters"] = f"{trainable:,}" if trainable else "trains nothing"
    if study.protocol.tuning.points.knobs:
        row["beside rate"] = _tunes(study, arm)
    if arm.rate_of is not None:
        chooser = next(other.label for other in study.arms if other.config_hash == arm.rate_of)
        return row | {"rate": f"of {chooser}", "taken": str(count.evaluation)}
    row |= {"points": str(count.points), "tuning": str(count.tuning_runs)}
    if study.protocol.tuning.shared:
        row["evaluation"] = str(count.evaluation)
    else:
        row |= {"fixed": str(count.evaluation)} if study.protocol.fixed_learning_rates else {}
        row["reads"] = str(count.reads)
    return row | {"more": str(count.extension)}


def _tunes(study: Study, arm: Arm) -> str:
    """'alpha': the arm's own names of what the grid varies beside the rate; '-' where that is nothing."""
    own = type(arm.config.variant).tuned_knobs
    return ", ".join(own[name][0] for name in study.protocol.tuning.points.knobs if name in own) or "-"


def _words(cost: GroupCost) -> tuple[str, ...]:
    sizes = (str(cost.arms), str(cost.trials), str(cost.pack))
    step = f"{'≈ ' * cost.is_estimated}{1e3 * cost.step_seconds:.2f}" if cost.step_seconds else "trains nothing"
    return (cost.label, *sizes, step, duration(cost.seconds))


def _describe(
    study: Study, packing: Packing, counts: dict[str, Count], costs: Sequence[GroupCost], *, ready_seconds: float
) -> str:
    """The sum: what this process needed to get ready, every worker needs too."""
    context, workers = packing.context, packing.workers
    base = sum(parameter.numel() for parameter in context.base.parameters())
    at_once = 1 if context.device.type == "cuda" else min(workers, _cores())
    ready = ready_seconds * workers / at_once
    seconds = ready + sum(cost.seconds for cost in costs) / at_once
    longest = seconds + sum(cost.seconds_of_extension for cost in costs) / at_once
    trials = sum(cost.trials for cost in costs)
    more = sum(count.extension for count in counts.values() if not count.extended_for_sure)
    reads = sum(count.reads for count in counts.values())
    text = f"{trials} trained trials of a base of {base:,} parameters"
    text += f" (up to {more} more where a best rate is at an end of its grid)" if more else ""
    text += f" and up to {reads} reads of the test split, which the study counts as trials too" if reads else ""
    halved = study.config.search is not None and study.config.search.halving is not None
    text += f"; {'at most' if halved else 'about'} {duration(seconds)} with {workers} worker{'s' * (workers > 1)}"
    text += f" on {_cores()} free cores"
    return text + (f" ({duration(longest)} if every grid is extended)" if more else "")


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
