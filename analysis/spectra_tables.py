"""The spectra of what runs changed, as tidy tables and as the table a terminal shows."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

from analysis.stats.reference_lines import reference_measures, reference_sigma
from analysis.stats.singular_values import summary
from experiments.record.adapter_formats import RunStoreError
from experiments.record.adapter_spectra import read_matrices, spectrum_of
from lora_variants.frozen_model.layer_names import places, short_names
from lora_variants.interface.warm_start import Update, rank_of, shape_of

RANKS_SHOWN = ("stable_rank", "participation_ratio", "entropy_rank_energy", "entropy_rank_sigma", "r90", "r99")
RANDOM = {"gaussian": "Gaussian", "factors": "random factors"}  # what a ΔW without and with factors is read against
LEGEND = (
    "stable ‖ΔW‖_F²/σ1² · PR participation ratio of σ² · eff effective rank, exp of the entropy of σ² · "
    "erank exp of the entropy of σ (Roy & Vetterli) · r90, r99 values that hold 90 %, 99 % of ‖ΔW‖_F²"
)
RATIOS = {
    "gaussian": "0.50x: half of what a Gaussian matrix of that shape has (last lines of the table)",
    "factors": "0.50x: half of what random factors B A of that shape and r have (last lines of the table)",
}


@dataclass(frozen=True)
class Spectrum:
    """The singular values of one ΔW; `rank` is that of its factors, None where it has none."""

    shape: tuple[int, int]
    rank: int | None
    sigma: Float[np.ndarray, " k"]


@dataclass(frozen=True)
class SpectrumTables:
    """Tidy tables of the spectra of runs.

    `summary` has a row per run and matrix: run, matrix, name (short), layer, kind, d_out, d_in, r (missing where
    ΔW has no factors), scale_known, and the measures of `singular_values.summary`; of each but ‖ΔW‖_F also what
    random factors of that shape and rank, or a Gaussian matrix, of the same ‖·‖_F have (`<measure>_random`), and the
    ratio to it (`<measure>_ratio`). `values` has a row per singular value: run, matrix, index (from 1), sigma,
    sigma_random. `unadapted` names the runs that adapted no matrix.
    """

    summary: pd.DataFrame
    values: pd.DataFrame
    unadapted: tuple[str, ...]


def spectrum_tables(runs: Sequence[Path]) -> SpectrumTables:
    """The spectrum of every adapted matrix of every run; a run given twice counts once. Raises RunStoreError."""
    adapters = {label: read_matrices(path) for label, path in run_labels(runs).items()}
    tables = []
    for label, adapter in adapters.items():
        spectra = {name: _spectrum(label, name, update) for name, update in adapter.updates.items()}
        tables.append(tables_of(label, spectra, scale_known=adapter.scale_known))
    return SpectrumTables(
        summary=pd.concat([table.summary for table in tables], ignore_index=True),
        values=pd.concat([table.values for table in tables], ignore_index=True),
        unadapted=tuple(label for table in tables for label in table.unadapted),
    )


def tables_of(label: str, spectra: Mapping[str, Spectrum], *, scale_known: bool) -> SpectrumTables:
    """The tables of one run, from the spectrum of every matrix by its name."""
    if not spectra:
        return SpectrumTables(pd.DataFrame(), pd.DataFrame(), (label,))
    short, where = short_names(list(spectra)), places(list(spectra))
    rows, values = [], []
    for name, spectrum in spectra.items():
        d_out, d_in = spectrum.shape
        named = {
            "run": label,
            "matrix": name,
            "name": short[name],
            "layer": where[name].layer,
            "kind": where[name].kind,
        }
        sizes = {"d_out": d_out, "d_in": d_in, "r": spectrum.rank, "scale_known": scale_known}
        rows.append({**named, **sizes, **_measures(spectrum)})
        values.append(
            _values(spectrum).assign(run=label, matrix=name)[["run", "matrix", "index", "sigma", "sigma_random"]]
        )
    return SpectrumTables(pd.DataFrame(rows).astype({"r": "Int64"}), pd.concat(values, ignore_index=True), ())


def run_labels(runs: Sequence[Path]) -> dict[str, Path]:
    """Runs by the shortest end of their resolved path that tells them apart."""
    given = {Path(os.path.realpath(run)): run for run in runs}  # which makes no error of a loop of links
    for length in range(1, max(len(path.parts) for path in given)):
        labels = {"/".join(path.parts[-length:]): run for path, run in given.items()}
        if len(labels) == len(given):
            return labels
    return {str(path): run for path, run in given.items()}


def terminal_table(summary: pd.DataFrame, run: str) -> Table:
    """The rows of one run for a terminal of 80 columns and more; only the names may wrap.

    Below each rank stands its ratio to that of a random matrix, which the last rows hold.
    """
    table = Table(title=run, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    table.add_column("matrix", overflow="fold", ratio=1)
    for header in ("shape", "r", "‖ΔW‖_F", "σ1", "stable", "PR", "eff", "erank", "r90", "r99"):
        table.add_column(header, justify="right", no_wrap=True)
    rows = summary[summary["run"] == run]
    for row in rows.to_dict("records"):
        norms = (f"{row[norm]:#.3g}".rstrip(".") for norm in ("frobenius", "sigma_1"))
        table.add_row(row["name"], *_sizes(row), *norms, *(_with_ratio(row, measure) for measure in RANKS_SHOWN))
    for row in rows.drop_duplicates(["d_out", "d_in", "r"]).to_dict("records"):
        ranks = (_rank(row[f"{measure}_random"]) for measure in RANKS_SHOWN)
        table.add_row(RANDOM[_random(row["r"])], *_sizes(row), "", "", *ranks)
    return table


def print_tables(tables: SpectrumTables, console: Console) -> None:
    """A table a run, what its columns and names stand for, and which runs adapted nothing or lack their scale."""
    for run in tables.unadapted:
        console.print(f"{run}: nothing adapted")
    if tables.summary.empty:
        return
    for run in dict.fromkeys(tables.summary["run"]):
        console.print(terminal_table(tables.summary, run))
        console.print()
    console.print(LEGEND)
    for kind in dict.fromkeys(map(_random, tables.summary["r"])):
        console.print(RATIOS[kind])
    shortened = tables.summary[tables.summary["name"] != tables.summary["matrix"]]
    for first in shortened.drop_duplicates("run").to_dict("records"):
        console.print(f"{first['name']} is {first['matrix']}")
    for run in dict.fromkeys(tables.summary.loc[~tables.summary["scale_known"], "run"]):
        console.print(
            f"{run} does not hold its scale: ‖ΔW‖_F and σ1 are those of the factors' product; the ranks are the same"
        )


def _random(rank: Any) -> str:
    return "gaussian" if pd.isna(rank) else "factors"


def _sizes(row: Mapping[Any, Any]) -> tuple[str, str]:
    return f"{row['d_out']}x{row['d_in']}", "-" if pd.isna(row["r"]) else str(row["r"])


def _with_ratio(row: Mapping[Any, Any], measure: str) -> str:
    value, ratio = row[measure], row[f"{measure}_ratio"]
    shown = str(value) if measure in ("r90", "r99") else _rank(value)
    return shown if np.isnan(ratio) else f"{shown}\n{ratio:.2f}x"


def _rank(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.1f}"


def _spectrum(label: str, name: str, update: Update) -> Spectrum:
    d_out, d_in = shape_of(update)
    rank = None if isinstance(update, Tensor) else rank_of(update)
    try:
        return Spectrum((d_out, d_in), rank, spectrum_of(update))
    except ValueError as error:
        raise RunStoreError(f"run {label}, matrix {name}: {error}: the training diverged; leave it out") from error


def _measures(spectrum: Spectrum) -> dict[str, float]:
    """Every measure, with that of a random matrix of the same norm, and the ratio of both."""
    found = summary(spectrum.sigma, spectrum.shape)
    random = reference_measures(spectrum.shape, spectrum.rank)
    random["sigma_1"] *= found["frobenius"]
    ratios = {f"{name}_ratio": found[name] / value if value > 0 else np.nan for name, value in random.items()}
    return {**found, **{f"{name}_random": value for name, value in random.items()}, **ratios}


def _values(spectrum: Spectrum) -> pd.DataFrame:
    sigma = spectrum.sigma
    random = reference_sigma(spectrum.shape, spectrum.rank) * scipy.linalg.norm(sigma)
    return pd.DataFrame({"index": range(1, len(sigma) + 1), "sigma": sigma, "sigma_random": random})
