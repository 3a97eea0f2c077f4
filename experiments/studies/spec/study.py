"""A study as it was asked for: its file, its arms, what is compared with what, and what may not change later."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from analysis.stats.paired_scores import FEWEST_PAIRS
from experiments.config.errors import ConfigError, explained
from experiments.config.loading import OF_A_RUN, OF_A_STUDY, parse_override, read_run_tree
from experiments.config.schema import RunConfig
from experiments.config.yaml_files import read_tree
from experiments.studies.spec.arm import Arm
from experiments.studies.spec.arms import Expansion, expand
from experiments.studies.spec.comparisons import (
    comparison_warnings,
    comparisons,
    reference_errors,
    train_alike,
)
from experiments.studies.spec.hypothesis_roles import Roles, roles_of
from experiments.studies.spec.search_config import SearchConfig
from experiments.studies.spec.seed_offsets import seed_offset_errors, sharing_draws
from experiments.studies.spec.study_config import MOST_TRIALS, ProtocolConfig, StudyConfig
from experiments.studies.spec.tuning_config import combinations
from experiments.tasks.registry import TASKS
from experiments.tasks.task import Task


@dataclass(frozen=True)
class Study:
    """A study's file, resolved."""

    config: StudyConfig
    arms: tuple[Arm, ...]
    collapsed: Mapping[str, tuple[str, ...]]  # label of an arm -> the points of the grid that all are this arm
    warnings: tuple[str, ...]
    score_name: str
    higher_is_better: bool

    @property
    def name(self) -> str:
        return self.config.name

    @property
    def protocol(self) -> ProtocolConfig:
        return self.config.protocol

    @property
    def notes(self) -> tuple[str, ...]:
        """What the arms take over from another variant of the run configuration and what not, each line once."""
        return tuple(dict.fromkeys(note for arm in self.arms for note in arm.notes))

    def comparisons(self, *, tuned: bool = True) -> list[tuple[Arm, Arm]]:
        """The pairs (arm, reference arm) that are tested, at the points that tuning chose or at a rate for all."""
        same = self.same(tuned=tuned)
        return [pair for pair in self._pairs() if pair not in same]

    def same(self, *, tuned: bool = True) -> list[tuple[Arm, Arm]]:
        """The pairs that come to one configuration there, and are not tested: there is nothing to find."""
        points = combinations(self.protocol.tuning.points.knobs) if tuned else [{}]
        return [pair for pair in self._pairs() if train_alike(*pair, points, at_own_rates=tuned)]

    def roles(self) -> Roles | None:
        """What its arms are to the low-rank test; None where the file says nothing of it."""
        return None if self.config.hypothesis is None else roles_of(self.config.hypothesis, self.arms, [])

    def _pairs(self) -> list[tuple[Arm, Arm]]:
        return comparisons(self.arms, self.protocol.reference)


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """The study of a file; `overrides` are 'key=value': `protocol.*` of the study, all others of its runs (`set`).

    Raises: ConfigError with every error of the file, of the command line and of the arms.
    """
    errors: list[str] = []
    tree = read_tree(path)
    if tree.keys() & OF_A_RUN and not tree.keys() & OF_A_STUDY:
        raise ConfigError([f"{path}: this is the file of a run, which run.py reads: run.py --config {path}"])
    for override in overrides:
        for key, value in parse_override(override, errors).items():
            _put(tree, key, value)
    for key in [key for key in tree if key in RunConfig.model_fields and key not in StudyConfig.model_fields]:
        errors.append(f"{key}: a key of a run; put it into the file that `config` names, or under `set`")
        del tree[key]
    config = None
    try:
        config = StudyConfig.model_validate(tree)
    except ValidationError as error:
        errors += explained(StudyConfig, error, tree)
    if config is None and tree.get("search") is not None:
        raise ConfigError(errors)  # what arms are depends on the search, which may be what is wrong
    name, search = (config.name, config.search) if config else ("study", None)
    expansion = _expansion(path, tree, study=name, search=search, errors=errors)
    errors += expansion.errors
    task = _task(expansion.arms, errors)
    reference = config.protocol.reference if config else {}
    if len(expansion.arms) > 1 and not expansion.errors:
        errors += reference_errors(expansion.arms, reference)
    if config is not None:
        errors += _tuned_twice(config, expansion.arms)
        if config.hypothesis is not None and expansion.arms and not expansion.errors:
            roles_of(config.hypothesis, expansion.arms, errors)
        errors += seed_offset_errors(expansion.arms, config.seeds)
    if config is not None and (trials := len(expansion.arms) * _most_trials(config)) > MOST_TRIALS:
        errors.append(
            f"protocol: up to {trials:,} trials; a study has at most {MOST_TRIALS:,}: leave out arms, rates or seeds"
        )
    if errors or config is None or task is None:
        raise ConfigError(errors)
    return Study(
        config=config,
        arms=expansion.arms,
        collapsed=expansion.collapsed,
        warnings=tuple(_warnings(config, expansion.arms)),
        score_name=task.score_name,
        higher_is_better=task.higher_is_better,
    )


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    """An override of the command line, where it belongs in the study's tree."""
    section, parts = tree, key.split(".")
    if parts[0] == "set" or parts[0] not in StudyConfig.model_fields:
        section, parts = tree.setdefault("set", {}), [key.removeprefix("set.")]
    for part in parts[:-1]:
        section = section.setdefault(part, {}) if isinstance(section, dict) else {}
    if isinstance(section, dict):  # else the study's file has an error there, which is reported
        section[parts[-1]] = value


def _expansion(
    path: Path, tree: Mapping[str, Any], *, study: str, search: SearchConfig | None, errors: list[str]
) -> Expansion:
    """The arms of a tree that may have errors elsewhere; without arms where it has them here."""
    config, common, entries = tree.get("config"), tree.get("set", {}), tree.get("arms")
    whole = isinstance(config, str) and _is_map(common) and isinstance(entries, list) and all(map(_is_map, entries))
    if not whole:
        return Expansion((), {}, ())
    try:
        base = read_run_tree(path.parent / str(config))
    except ConfigError as error:
        errors += [f"config: {message}" for message in error.errors]
        return Expansion((), {}, ())
    if search is None:
        return expand(list(entries or ()), base=base, common=common, study=study)
    common = {**common, "rank": 1, "pad_rank_to": search.highest_rank}  # every trial has ranks of its own
    plan = search.model_dump(mode="json", exclude={"sampler", "seed", "trials", "contenders"})
    defaults = {"sampler": search.sampler, "search_seed": search.seed, **plan}
    return expand(list(entries or ()), base=base, common=common, study=study, search=defaults)


def _tuned_twice(config: StudyConfig, arms: Sequence[Arm]) -> list[str]:
    """An arm, or all of them, that set a knob which the grid sets at every point."""
    errors = []
    common = {key.rpartition(".")[2]: f"set.{key}" for key in config.set}
    for name, (value, *_) in config.protocol.tuning.points.knobs.items():
        tuned = {arm.label: arm.at({name: value}).keys() for arm in arms}
        errors += [
            f"{arm.label}: protocol.tuning.grid.{name} sets that knob at every point; leave it out of the arm, or out "
            "of the grid"
            for arm in arms
            if tuned[arm.label] & arm.keys.keys()
        ]
        for knob in frozenset().union(*tuned.values()) & common.keys():
            errors.append(f"{common[knob]}: protocol.tuning.grid.{name} sets it at every point; leave one of them out")
    return errors


def _most_trials(config: StudyConfig) -> int:
    """What an arm takes at most, where its grid is not extended."""
    tuning, evaluation = config.protocol.tuning, len(config.protocol.evaluation.seeds)
    if config.search is not None:
        return (
            config.search.repeats * config.search.trials + config.search.contenders * len(tuning.own_seeds) + evaluation
        )
    seeds = len(tuning.own_seeds) if tuning.shared else evaluation
    read = 1 if tuning.shared else 2  # at the seeds' own points, and at the best one for all
    return tuning.points.size * seeds + (read + len(config.protocol.fixed_learning_rates)) * evaluation


def _is_map(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(key, str) for key in value)


def _task(arms: Sequence[Arm], errors: list[str]) -> Task | None:
    """The task that says what the score is; an error where arms are scored differently."""
    tasks = {
        (task.config.name, task.score_name): task
        for arm in arms
        for task in (TASKS[arm.config.task.name].load()(arm.config.task, arm.config.model),)
    }
    if len(tasks) > 1:
        scores = " and ".join(f"{score} of {name}" for name, score in tasks)
        errors.append(f"arms: a study compares one score of one task; these have {scores}")
    return next(iter(tasks.values()), None)


def _warnings(config: StudyConfig, arms: Sequence[Arm]) -> list[str]:
    protocol, search = config.protocol, config.search
    found = comparison_warnings(arms, protocol.reference) if len(arms) > 1 else []
    seeds = len(protocol.evaluation.seeds)
    if seeds < FEWEST_PAIRS:
        found.append(f"a verdict needs {FEWEST_PAIRS} seeds; protocol.evaluation.seeds has {seeds}")
    tuned_nulls = [arm.label for arm in arms if arm.config.training.labels is not True and arm.rate_of is None]
    if tuned_nulls and len(tuned_nulls) < len(arms):
        found.append(
            f"{', '.join(tuned_nulls)}: tuned on false labels an arm finds the rate that does the least harm; as a "
            "null of another arm it takes that one's rates: rate_of: {variant: full}"
        )
    if overlapping := sharing_draws(arms, config.seeds):
        found.append(f"{overlapping} train with some of the same seeds: take seed_offsets further apart than the seeds")
    if search is not None and 1 < search.repeats < FEWEST_PAIRS:
        found.append(f"a verdict of methods needs {FEWEST_PAIRS} searches; search.repeats is {search.repeats}")
    if search is not None and len(protocol.tuning.own_seeds) == search.repeats:
        found.append("protocol.tuning.seeds has one seed a search, its own: without a race the luckiest trial wins")
    if search is None and protocol.tuning.shared:
        found.append(
            "tuning is shared: verdicts are of the chosen points, not of the methods, and forget the noise of tuning"
        )
    if search is None and len(protocol.tuning.points.learning_rate_multipliers) == 2:
        found.append("the better of two learning rates is always at an end of the grid, so it is extended every time")
    return found
