"""Scores of what is left of the updates of full fine-tuning: evaluated once, and kept in `truncations.parquet`.

Kinds, of a ΔW with singular values σ: `top` its k largest alone; `removed` all but them; `random` ΔW on k random
orthonormal directions of its shorter side; `shrunk` c ΔW, of the energy that the top k have; `weighted` the rank-k
matrix whose outputs are nearest on the inputs that the base sees; `shared` as many values as k in every matrix, the
largest of all matrices. In each the k of all adapted matrices go at once, k beyond a matrix is all of it.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analysis.low_rank.stored_tables import stored_table
from analysis.low_rank.study_runs import HypothesisError, Runs, StudyRuns
from analysis.stats.truncation import (
    Svd,
    activation_weighted_top,
    decompose,
    global_budget,
    random_projection,
    removed,
    shrunk,
    top,
)
from analysis.study_results.results import write_table
from experiments.record.adapter_formats import Adapter
from experiments.record.adapter_reading import read_adapter
from experiments.record.output_folder import refuse_unwritable
from experiments.training.context import TrainingContext
from experiments.training.input_moments import input_moments
from experiments.training.scoring import Scored, score_updates
from lora_variants.interface.rng import stream_key

FILE = "truncations.parquet"
ENERGY = "energy"
PURPOSE = "hypothesis: "  # how that of a read begins in the ledger
KEY = ("run", "kind", "k")  # of a row; what else a row has to have is in `COLUMNS`
SOURCES = {"update_sha256": str, "base_sha256": str, "test_sha256": str}
COLUMNS = {"run": str, **SOURCES, "seed": int, "kind": str, "k": int, ENERGY: float}
WAY_OUT = "delete it: the scores are evaluated again, and those reads of the test split are counted as well"
PACK = 8
OnScore = Callable[[int, int], None]


@dataclass(frozen=True)
class Wanted:
    """One evaluation: what is left of the ΔW of a run; `base`, k 0: W0 with the heads of the run."""

    run: str
    kind: str
    k: int

    @property
    def purpose(self) -> str:
        return PURPOSE + ("W0 alone" if self.kind == "base" else f"{self.kind} {self.k}")


class Update:
    """The ΔW of one run, decomposed when it is first asked for."""

    def __init__(self, path: Path, moments: Callable[[], Mapping[str, Tensor]]) -> None:
        self.path, self._moments = path, moments

    @cached_property
    def adapter(self) -> Adapter:
        """What the run stored."""
        return read_adapter(self.path)

    @cached_property
    def matrices(self) -> dict[str, Float[np.ndarray, "d_out d_in"]]:
        """Raises: HypothesisError for entries that are not finite, and where the run stored no dense ΔW."""
        found = {}
        for name, update in self.adapter.updates.items():
            if not isinstance(update, Tensor):
                raise HypothesisError(
                    f"{self.path.name}: {name} is a product of factors; hypothesis.full is a dense ΔW"
                )
            dense = update.double().numpy()
            if not np.isfinite(dense).all():
                raise HypothesisError(
                    f"{self.path.name}: ΔW of {name} has entries that are not finite; train the run again"
                )
            found[name] = dense
        return found

    @cached_property
    def sha256(self) -> str:
        """Of what the run learned: its ΔW and its heads."""
        digest = hashlib.sha256()
        for name, array in sorted({**self.matrices, **{k: v.numpy() for k, v in self.heads.items()}}.items()):
            digest.update(f"{name} {array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    @property
    def heads(self) -> dict[str, Tensor]:
        return dict(self.adapter.others)

    @cached_property
    def svds(self) -> dict[str, Svd]:
        return {name: decompose(matrix) for name, matrix in self.matrices.items()}

    def left(self, kind: str, k: int) -> dict[str, Tensor]:
        """What is left of every matrix, float32."""
        if kind == "base":
            return {name: torch.zeros(matrix.shape) for name, matrix in self.matrices.items()}
        own = global_budget(self.svds, k * len(self.svds)) if kind == "shared" else dict.fromkeys(self.svds, k)
        return {name: torch.from_numpy(self._one(kind, name, own[name])).float() for name in self.svds}

    def share_of_energy(self, left: Mapping[str, Tensor]) -> float:
        """How much of ‖ΔW‖², over all matrices, is left."""
        whole = sum(float(np.sum(matrix**2)) for matrix in self.matrices.values())
        return sum(float(tensor.double().square().sum()) for tensor in left.values()) / whole if whole else 0.0

    def _one(self, kind: str, name: str, k: int) -> Float[np.ndarray, "d_out d_in"]:
        matrix, svd = self.matrices[name], self.svds[name]
        k = min(k, min(matrix.shape))
        if kind == "removed":
            return removed(svd, k)
        if kind == "random":
            return random_projection(
                matrix, k, np.random.default_rng(stream_key(0, "projection", self.path.name, name))
            )
        if kind == "shrunk":
            return shrunk(matrix, svd, k)
        if kind == "weighted":
            if (moment := self._moments().get(name)) is None:
                raise HypothesisError(f"{name}: W0 was not seen to call it, so its inputs are not known")
            return activation_weighted_top(matrix, moment.numpy(), k)
        return top(svd, k)


class TruncatedScores:
    """The scores of a study's updates on the test split; what the file has is not evaluated again."""

    def __init__(self, study: StudyRuns, updates: Mapping[int, Update], load: Callable[[], TrainingContext]) -> None:
        self.study, self.updates, self.load = study, updates, load
        self.path = study.folder / FILE
        self.table = self._of_these_updates(_kept(self.path, study.score)) if self.path.exists() else pd.DataFrame()

    def need(self, kinds: Iterable[tuple[str, int]], on_score: OnScore) -> None:
        """Have these kinds and ks of every seed's update; each read of the test split goes into the ledger."""
        asked = list(kinds)
        known = set(zip(*(self.table[key] for key in ("run", "kind", "k")), strict=True)) if len(self.table) else set()
        wanted = [
            (seed, Wanted(self.updates[seed].path.name, kind, k)) for seed in self.study.seeds for kind, k in asked
        ]
        lacking = [(seed, each) for seed, each in wanted if (each.run, each.kind, each.k) not in known]
        if lacking:
            refuse_unwritable(self.path.parent, (), way_out="scores are kept there: copy the study to another folder")
        for first in range(0, len(lacking), PACK):
            self._evaluate(lacking[first : first + PACK])
            on_score(min(first + PACK, len(lacking)), len(lacking))

    def _of_these_updates(self, stored: pd.DataFrame) -> pd.DataFrame:
        """The rows that are of the updates, W0 and test split of now; a run may have been trained again since."""
        now = {update.path.name: update.sha256 for update in self.updates.values()}
        same = [now.get(run) == sha for run, sha in zip(stored["run"], stored["update_sha256"], strict=True)]
        for key, value in self._sources.items():
            same = [known and other == value for known, other in zip(same, stored[key], strict=True)]
        return stored[same].reset_index(drop=True)

    @property
    def _sources(self) -> dict[str, str]:
        return {"base_sha256": self.study.base_sha256, "test_sha256": self.study.test_sha256}

    @property
    def shapes(self) -> list[tuple[int, ...]]:
        """(d_out, d_in) of the adapted matrices."""
        return [matrix.shape for matrix in next(iter(self.updates.values())).matrices.values()]

    @property
    def widest(self) -> int:
        """The k from which on the top k is the whole of every matrix."""
        return max(min(matrix) for matrix in self.shapes)

    def of(self, kind: str, k: int, score: str) -> Float[np.ndarray, " seeds"]:
        """A score, or the share of the energy that is left, in the order of the seeds."""
        rows = self.table[(self.table["kind"] == kind) & (self.table["k"] == k)].set_index("run")[score]
        return np.array([rows[self.updates[seed].path.name] for seed in self.study.seeds], dtype=np.float64)

    def _refuse_not_finite(self, rows: Sequence[Mapping[str, Any]]) -> None:
        study = self.study
        for row in rows:
            if not np.isfinite(row.get(study.score, np.nan)):
                raise HypothesisError(
                    f"{study.name}: {study.score} is {row.get(study.score)} on the test split for {row['run']}, kind "
                    f"{row['kind']}, k {row['k']}, so that no share of the gain can be measured in it: name another "
                    "score (hypothesis.score) in a study of another name"
                )

    def _evaluate(self, wanted: Sequence[tuple[int, Wanted]]) -> None:
        context, config = self.load(), self.study.config()
        given = [
            Scored(each.run, each.purpose, self.updates[seed].left(each.kind, each.k), self.updates[seed].heads)
            for seed, each in wanted
        ]
        energies = [self.updates[seed].share_of_energy(of.updates) for (seed, _), of in zip(wanted, given, strict=True)]
        scores = list(score_updates(context, config, given, runs_dir=self.study.runs_dir, pack=PACK))
        rows = [
            {
                "run": each.run, "update_sha256": self.updates[seed].sha256, **self._sources,
                "seed": seed, "kind": each.kind, "k": each.k, ENERGY: energy, **found,
            }
            for (seed, each), energy, found in zip(wanted, energies, scores, strict=True)
        ]  # fmt: skip
        self._refuse_not_finite(rows)
        self.table = pd.concat([self.table, pd.DataFrame(rows)], ignore_index=True)
        write_table(self.table, self.path)


def _kept(path: Path, score: str) -> pd.DataFrame:
    """What was scored before. Raises: RecordError where the file is not what was written, or lacks a score."""
    return stored_table(path, {**COLUMNS, score: float}, key=KEY, way_out=WAY_OUT)


def updates_of(runs: Runs, study: StudyRuns, load: Callable[[], TrainingContext]) -> dict[int, Update]:
    """The update of each seed's run."""
    known: dict[str, Any] = {}

    def moments() -> Mapping[str, Tensor]:
        if not known:
            known.update(input_moments(load(), study.config()))
        return known

    return {seed: Update(path, moments) for seed, path in runs.items()}


def grid_of(p: int, more: Sequence[int] = ()) -> list[int]:
    """1, 2, 4, ... and p itself, with some more."""
    powers = [2**i for i in range(p.bit_length()) if 2**i < p]
    return sorted({*powers, p, *(k for k in more if 1 <= k <= p)})


def least_rank(updates: Mapping[int, Update]) -> int:
    """p: the least min(d_out, d_in) of the adapted matrices."""
    first = next(iter(updates.values()))
    return min(min(matrix.shape) for matrix in first.matrices.values())
