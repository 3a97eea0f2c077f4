"""Invariants of a study (weights, data, versions, protocol): recorded by the first launch, checked by later ones."""

import json
import platform
import secrets
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments.config.errors import ConfigError
from experiments.record.learned_on import refuse_other_base
from experiments.record.starting_point import read_start
from experiments.studies.protocol.progress import FAMILY, StudyState, families_of
from experiments.studies.queue.storage import QueueError
from experiments.studies.queue.trial_queue import TrialQueue
from experiments.studies.spec.frozen import changes, frozen
from experiments.studies.spec.study import Study
from experiments.studies.status import awake
from experiments.training.context import TrainingContext
from experiments.user_cache import NotHereError

TOKEN = ".token"
FROZEN = "frozen-"
NAMED = 3  # arms of one error
HIGHEST_OF_ONE = 1.01  # accuracy and correlations are at most 1, to rounding
NO_FLOOR = (
    "hypothesis.floor: base is W0 with a head that nobody trained; add the arm that trains the head alone, "
    "{variant: head}, and name it: floor: {variant: head}"
)


@dataclass(frozen=True)
class Change:
    """What a changed file means for what was done with the earlier one, in numbers of trials."""

    new: int
    done: int
    unwanted: int

    def __str__(self) -> str:
        return (
            f"the study's file has changed: {self.new} trials are new, {self.done} are done already, "
            f"{self.unwanted} are no longer wanted (their run directories stay)"
        )


def shared_context(study: Study) -> TrainingContext:
    """What the arms of a study share.

    Raises: ConfigError where they do not, or where an arm does not fit the base model; ValueError for what this
    machine does not have.
    """
    first = study.arms[0]
    errors = []
    for arm in study.arms[1:]:
        for what, mine, theirs in _shared(arm.config, first.config):
            if mine != theirs:
                errors.append(
                    f"{arm.label}: {what} is another one than that of {first.label}; "
                    "the arms of a study train over one base model: make two studies of it"
                )
    if errors:
        raise ConfigError(errors)
    return TrainingContext(first.config)


def _shared(config: Any, other: Any) -> list[tuple[str, Any, Any]]:
    ours, theirs = config.training, other.training
    return [
        ("task", config.task, other.task),
        ("model", config.model, other.model),
        ("training.device", ours.device, theirs.device),
        ("training.threads", ours.threads, theirs.threads),
    ]


def warnings_of_arms(study: Study, context: TrainingContext) -> list[str]:
    """What is doubtful about arms.

    Raises: ConfigError with every arm that does not fit the base model; NotHereError.
    """
    errors: dict[str, list[str]] = {}
    warnings: dict[str, list[str]] = {}
    asked = study.config.hypothesis
    if asked is not None and asked.score is not None and asked.score not in (known := context.task.scores):
        raise ConfigError([f"hypothesis.score: {asked.score!r} is no score of this task; it has {', '.join(known)}"])
    for arm in study.arms:
        try:
            variant, of_arm = context.plan(arm.config, read_start(arm.config.start))
        except NotHereError:
            raise
        except (ValueError, OSError) as error:
            errors.setdefault(str(error), []).append(arm.label)
        else:
            for warning in of_arm:
                warnings.setdefault(str(warning), []).append(arm.label)
            if variant.heads and asked is not None and asked.floor == "base":
                errors.setdefault(NO_FLOOR, []).append(arm.label)
    if errors:
        raise ConfigError([f"{_named(arms)}: {message}" for message, arms in errors.items()])
    return [*_margin_warnings(study, context), *(f"{_named(arms)}: {warning}" for warning, arms in warnings.items())]


def _margin_warnings(study: Study, context: TrainingContext) -> list[str]:
    """A warning of a margin as wide as the scores themselves: it was meant in points of a hundred."""
    margin, greatest = study.protocol.margin, context.task.score_range[1]
    if margin < 1 or greatest > HIGHEST_OF_ONE:
        return []
    unit = f"in units of {context.task.score_name}, which is at most 1"
    return [f"protocol.margin: {margin:g} is {unit}, so no difference would exceed it; one point of a hundred is 0.01"]


def _named(arms: Sequence[str]) -> str:
    """'a, b, c and 9 more arms'."""
    more = len(arms) - NAMED
    return ", ".join(arms[:NAMED]) + (f" and {more} more arm{'s' * (more > 1)}" if more > 0 else "")


def check_file(study: Study, queue: TrialQueue, path: Path) -> None:
    """Raises: QueueError if the study of that name has another file."""
    queue.record_or_check({"file": path.name})


def refuse_other_bases(study: Study, base_sha256: str) -> None:
    """Raises: ConfigError with every arm that starts from what was learned on another base model."""
    errors: dict[str, list[str]] = {}
    for arm in study.arms:
        try:
            refuse_other_base(arm.config, base_sha256)
        except ValueError as error:
            errors.setdefault(str(error), []).append(arm.label)
    if errors:
        raise ConfigError([f"{_named(arms)}: {message}" for message, arms in errors.items()])


def check_content(study: Study, queue: TrialQueue, context: TrainingContext, base_sha256: str) -> None:
    """Raises: QueueError where weights, data, device or what computes with them differ from those of earlier trials."""
    own_model = study.arms[0].config.model is not None
    packages = {name: version(name) for name in ("torch", "numpy", *(["transformers"] if own_model else []))}
    python = ".".join(platform.python_version_tuple()[:2])
    queue.record_or_check(
        {
            "base_sha256": base_sha256,
            "data_sha256": context.data_sha256,
            "device": context.device.type,
            "packages": {"python": python, **packages},
        }
    )


def check_runs_dir(study: Study, queue: TrialQueue, runs_dir: Path, *, separate: bool) -> None:
    """The study's folder holds the token that its queue knows: what one worker leaves, the others find.

    Raises: QueueError for a folder that is not the others'.
    """
    token, settled = runs_dir / study.name / TOKEN, queue.facts().get("runs_folder")
    if settled is None:
        if not token.exists():
            token.write_text(f"{secrets.token_hex(8)} of {socket.gethostname()}\n", encoding="utf-8")
        queue.record_or_check({"runs_folder": token.read_text(encoding="utf-8").strip()})
        return
    here = token.read_text(encoding="utf-8").strip() if token.exists() else None
    if here != settled and not separate:
        raise QueueError(
            f"study {study.name!r} in {queue.store.address} keeps its run directories in a folder of "
            f"{str(settled).partition(' of ')[2]}, and {token.parent} is another one; give --runs-dir a folder that "
            "all machines share, or --separate-runs, and bring them together at the end with --collect"
        )


def check_protocol(study: Study, queue: TrialQueue, study_state: StudyState, folder: Path) -> Change | None:
    """Record what the file says now; returns what changed since the last launch, if anything.

    `folder`: the study's, whose summary knows what was settled where the queue has been lost, and runs are found again.

    Raises: QueueError for a change of what was frozen by the first evaluation, or while others work by the other file.
    """
    versions = {name: tree for name, tree in queue.facts().items() if name.startswith(FROZEN)}
    number = len(versions)
    left = {} if versions else _left_behind(folder)
    before: Mapping[str, Any] = versions.get(f"{FROZEN}{number}", left)
    after = frozen(study)
    if before == after and versions:
        return None
    if before:
        evaluated = sum(
            e.state == "done" and e.given.get("stage") == "evaluation" for e in study_state.entries.values()
        ) or bool(left)
        found = changes(before, after)
        if evaluated and found:
            raise QueueError(
                f"study {study.name!r}: {'' if left else f'{evaluated} '}trials of the evaluation have finished, and "
                f"what was settled before them has changed: {'; '.join(found)}; undo it, or give the study another name"
            )
        others = [worker.name for worker in awake(queue.workers(), within=timedelta(hours=1))]
        if others:
            raise QueueError(
                f"study {study.name!r}: its file has changed and {len(others)} workers train what it said before "
                f"({', '.join(others)}); stop them first (Ctrl-C)"
            )
        if evaluated:
            _settle_families(queue, before["arms"], after["arms"])
    queue.record_or_check({f"{FROZEN}{number + 1}": after})
    return _change(study_state) if before and not left else None


def _left_behind(folder: Path) -> dict[str, Any]:
    """What was settled for the evaluation whose summary is in the folder; empty where none has been seen."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        seen = any(summary["evaluation"]["settings"].values())
        return dict(summary["frozen"]) if seen else {}
    except (OSError, ValueError, KeyError):
        return {}


def _settle_families(queue: TrialQueue, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    """Arms that come after an evaluation was seen are a family of their own: they change no word of the others."""
    settled = families_of(queue.facts())
    if not settled:
        queue.record_or_check({f"{FAMILY}1": sorted(before)})
        settled = dict.fromkeys(before, 1)
    late = sorted(after.keys() - settled.keys())
    if late:
        queue.record_or_check({f"{FAMILY}{max(settled.values()) + 1}": late})


def _change(study_state: StudyState) -> Change:
    done = sum(entry.state == "done" and key in study_state.wanted for key, entry in study_state.entries.items())
    unwanted = sum(key not in study_state.wanted for key in study_state.entries)
    return Change(sum(key not in study_state.entries for key in study_state.wanted), done, unwanted)
