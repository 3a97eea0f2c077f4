"""The spectra of what runs changed, as tidy tables and as the table a terminal shows."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float
from rich.console import Console
from rich.table import Table
from torch import Tensor

from analysis.stats.singular_values import summary
from experiments.record.adapter_formats import Adapter, RunStoreError
from experiments.record.adapter_spectra import read_matrices, spectrum_of
from lora_variants.frozen_model.layer_names import places, short_names
from lora_variants.interface.warm_start import Update, rank_of, shape_of

RANKS_SHOWN = ("stable_rank", "participation_ratio", "entropy_rank_energy", "entropy_rank_sigma")
LEGEND = (
    "stable ‖ΔW‖_F²/σ1² · PR participation ratio of σ² · eff effective rank, exp of the entropy of σ² · "
    "erank exp of the entropy of σ (Roy & Vetterli) · r90, r99 values that hold 90 %, 99 % of ‖ΔW‖_F²"
)


@dataclass(frozen=True)
class SpectrumTables:
    """Tidy tables of the spectra of runs.

    `summary` has a row per run and matrix: run, matrix, name (short), layer, kind, d_out, d_in, r (missing where
    ΔW has no factors), scale_known, and the measures of `singular_values.summary`. `values` has a row per
    singular value: run, matrix, index (from 1), sigma. `unadapted` names the runs that adapted no matrix.
    """

    summary: pd.DataFrame
    values: pd.DataFrame
    unadapted: tuple[str, ...]


def spectrum_tables(runs: Sequence[Path]) -> SpectrumTables:
    """The spectrum of every adapted matrix of every run; a run given twice counts once. Raises RunStoreError."""
    adapters = {label: read_matrices(path) for label, path in run_labels(runs).items()}
    summaries: list[pd.DataFrame] = []
    values: list[pd.DataFrame] = []
    for label, adapter in adapters.items():
        spectra = {name: _spectrum(label, name, update) for name, update in adapter.updates.items()}
        summaries.append(_summary_of_run(label, adapter, spectra))
        values.extend(
            pd.DataFrame({"run": label, "matrix": name, "index": range(1, len(sigma) + 1), "sigma": sigma})
            for name, sigma in spectra.items()
        )
    return SpectrumTables(
        summary=pd.concat(summaries, ignore_index=True),
        values=pd.concat(values, ignore_index=True) if values else pd.DataFrame(),
        unadapted=tuple(label for label, adapter in adapters.items() if not adapter.updates),
    )


def run_labels(runs: Sequence[Path]) -> dict[str, Path]:
    """Runs by the shortest end of their resolved path that tells them apart."""
    given = {Path(os.path.realpath(run)): run for run in runs}  # which makes no error of a loop of links
    for length in range(1, max(len(path.parts) for path in given)):
        labels = {"/".join(path.parts[-length:]): run for path, run in given.items()}
        if len(labels) == len(given):
            return labels
    return {str(path): run for path, run in given.items()}


def terminal_table(summary: pd.DataFrame, run: str) -> Table:
    """The rows of one run for a terminal of 80 columns and more; only the names may wrap."""
    table = Table(title=run, title_justify="left", title_style="bold", box=None, padding=(0, 1, 0, 0))
    table.add_column("matrix", overflow="fold", ratio=1)
    for header in ("shape", "r", "‖ΔW‖_F", "σ1", "stable", "PR", "eff", "erank", "r90", "r99"):
        table.add_column(header, justify="right", no_wrap=True)
    for row in summary[summary["run"] == run].to_dict("records"):
        table.add_row(
            row["name"],
            f"{row['d_out']}x{row['d_in']}",
            "-" if pd.isna(row["r"]) else str(row["r"]),
            *(f"{row[norm]:#.3g}".rstrip(".") for norm in ("frobenius", "sigma_1")),
            *(_rank(row[measure]) for measure in RANKS_SHOWN),
            str(row["r90"]),
            str(row["r99"]),
        )
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
    shortened = tables.summary[tables.summary["name"] != tables.summary["matrix"]]
    for first in shortened.drop_duplicates("run").to_dict("records"):
        console.print(f"{first['name']} is {first['matrix']}")
    for run in dict.fromkeys(tables.summary.loc[~tables.summary["scale_known"], "run"]):
        console.print(
            f"{run} does not hold its scale: ‖ΔW‖_F and σ1 are those of the factors' product; the ranks are the same"
        )


def _rank(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.1f}"


def _spectrum(label: str, name: str, update: Update) -> Float[np.ndarray, " k"]:
    try:
        return spectrum_of(update)
    except ValueError as error:
        raise RunStoreError(f"run {label}, matrix {name}: {error}: the training diverged; leave it out") from error


def _summary_of_run(label: str, adapter: Adapter, spectra: dict[str, Float[np.ndarray, " k"]]) -> pd.DataFrame:
    short, where = short_names(list(adapter.updates)), places(list(adapter.updates))
    rows = []
    for name, update in adapter.updates.items():
        d_out, d_in = shape_of(update)
        rows.append(
            {
                "run": label,
                "matrix": name,
                "name": short[name],
                "layer": where[name].layer,
                "kind": where[name].kind,
                "d_out": d_out,
                "d_in": d_in,
                "r": None if isinstance(update, Tensor) else rank_of(update),
                "scale_known": adapter.scale_known,
                **summary(spectra[name], (d_out, d_in)),
            }
        )
    return pd.DataFrame(rows).astype({"r": "Int64"}) if rows else pd.DataFrame()
