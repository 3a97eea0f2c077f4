"""The trials of a study in a storage: what its workers agreed on, what entries there are, how more are added."""

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from optuna.trial import FrozenTrial

from experiments.studies.queue.entries import (
    Entry,
    NewTrial,
    entry_of,
    missing,
    refuse_unfit,
    that_count,
    waiting_trials,
)
from experiments.studies.queue.storage import QueueError, Store, TurnLostError

FORMAT = 2  # of the facts that trials have, and of what workers agree on
PORTION = 64  # trials added in one turn, which a slow link also ends well within its seconds


class Listing:
    """One study of a storage. Every method raises QueueError if the storage cannot be used."""

    def __init__(self, store: Store, study: str, study_id: int) -> None:
        self.store = store
        self.study = study
        self._study_id = study_id
        self._read: list[tuple[FrozenTrial, Entry]] = []

    def record_or_check(self, facts: Mapping[str, Any]) -> None:
        """The first worker settles them for the study (JSON values); every later one has the same.

        Raises: QueueError, naming all that differ, with both values.
        """
        facts = json.loads(json.dumps(facts))
        settled = self.facts()
        if facts.keys() - settled.keys():
            with self.store.turn(self.study), self.store.use() as storage:
                settled = dict(storage.get_study_user_attrs(self._study_id))
                for name in facts.keys() - settled.keys():
                    storage.set_study_user_attr(self._study_id, name, facts[name])
        different = [name for name in facts if name in settled and settled[name] != facts[name]]
        if different:
            raise QueueError(
                f"study {self.study!r} in {self.store.address} was started with "
                + "; ".join(f"{name} = {settled[name]!r}, here it is {facts[name]!r}" for name in different)
                + "; make them the same here, or give yours another name"
            )

    def refuse_earlier_format(self) -> None:
        """Raises: QueueError for a study whose keys and facts have the names that an earlier version gave them."""
        written = self.facts().get("format", FORMAT)
        if written < FORMAT:
            way_out = "" if self.store.address.journal is None else ", or move its journal away"
            raise QueueError(
                f"study {self.study!r} in {self.store.address} was written by an earlier version (format {written}, "
                f"this one has {FORMAT}), whose keys and facts of trials have other names; "
                f"give the study another name{way_out}"
            )

    def facts(self) -> dict[str, Any]:
        """What the workers have agreed on."""
        with self.store.use() as storage:
            return dict(storage.get_study_user_attrs(self._study_id))

    def entries(self) -> list[Entry]:
        """All, by number; one that has not changed since the last call is the same object."""
        with self.store.use() as storage:
            trials = storage.get_all_trials(self._study_id, deepcopy=False)
        known = len(self._read)
        self._read = [
            self._read[place] if place < known and self._read[place][0] is trial else (trial, self._entry(trial))
            for place, trial in enumerate(trials)
        ]
        return [entry for _, entry in self._read]

    def latest(self) -> dict[str, Entry]:
        """By key, the entry that counts."""
        return that_count(self.entries())

    def add(self, wanted: Sequence[NewTrial], *, retry_failed: bool = False) -> int:
        """Every key of `wanted` waits, runs or is done, or has failed without `retry_failed`; how many were added.

        Raises: QueueError, before any is added, for a parameter or fact that an entry cannot hold.
        """
        lacking = missing(wanted, self.latest(), retry_failed=retry_failed)
        for trial in lacking:
            refuse_unfit(trial)
        return sum(
            self._add_in_turn(lacking[start : start + PORTION], retry_failed=retry_failed)
            for start in range(0, len(lacking), PORTION)
        )

    def _add_in_turn(self, wanted: Sequence[NewTrial], *, retry_failed: bool) -> int:
        """If the turn is lost meanwhile, another worker may add them too: of such twins one counts."""
        with suppress(TurnLostError), self.store.turn(self.study):
            entries = self.entries()
            trials = waiting_trials(missing(wanted, that_count(entries), retry_failed=retry_failed), entries)
            with self.store.use() as storage:
                for trial in trials:
                    storage.create_new_trial(self._study_id, trial)
        return len(trials)

    def _entry(self, trial: FrozenTrial) -> Entry:
        entry = entry_of(trial)
        if entry is None:
            raise QueueError(
                f"study {self.study!r} in {self.store.address} has trials of another program; give yours another name"
            )
        return entry


def study_named(store: Store, study: str) -> int | None:
    with store.use() as storage:
        try:
            return storage.get_study_id_from_name(study)
        except KeyError:
            return None
