"""The spectra of what full fine-tuning changed between two stored models, and how much of them is rounding."""

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from analysis.spectra_tables import Spectrum, SpectrumTables, run_labels, tables_of
from analysis.stats.singular_values import singular_values
from analysis.stats.storage_precision import FORMATS, SHARES, rounding_noise
from experiments.record.adapter_formats import RunStoreError
from experiments.record.stored_models import ModelPair

NOT_TESTABLE = "NOT TESTABLE: a spectrum alone cannot test the hypothesis (no scores, no seeds)"


def difference_tables(pair: ModelPair, after: Path) -> SpectrumTables:
    """The spectrum of every matrix that changed, one read at a time.

    The summary also says the coarser of the types that the matrix is stored in (`dtype`), whether it has it before or
    after (`rounded`), the share of the rounding to it in ‖ΔW‖_F² (`rounding_share`), and which ranks count that
    rounding (`rounding_counted`). Raises RunStoreError where nothing changed, and where a weight is not finite.
    """
    spectra: dict[str, Spectrum] = {}
    rounding = []
    for name, first, last, before, dtype in pair.changes():
        sigma = singular_values((last - first).numpy())
        spectra[name] = Spectrum((last.shape[0], last.shape[1]), None, sigma)
        of_first = FORMATS[before] < FORMATS[dtype]  # fewer digits: its rounding is the larger one
        coarser, stored = (before, first) if of_first else (dtype, last)
        noise = rounding_noise(sigma, stored.numpy(), coarser)
        when = "before" if of_first else "after"
        rounding.append((name, coarser, when, noise.energy_share, " ".join(noise.blurred)))
    if not spectra:
        raise RunStoreError(
            f"a spectrum is that of a change; none of the {len(pair.matrices)} matrices that {after} shares with the "
            "model before it is another one there: give the base that was fine-tuned, and what became of it"
        )
    (label,) = run_labels([after])
    tables = tables_of(label, spectra, scale_known=True)
    columns = pd.DataFrame(rounding, columns=["matrix", "dtype", "rounded", "rounding_share", "rounding_counted"])
    return SpectrumTables(tables.summary.merge(columns, on="matrix", how="left"), tables.values, ())


def difference_notes(pair: ModelPair, summary: pd.DataFrame) -> Iterator[str]:
    """What to know of these spectra: what was left out, which ranks are made of rounding, and what they cannot say."""
    unchanged = len(pair.matrices) - len(summary)
    yield f"{len(summary)} matrices changed, {unchanged} did not"
    if pair.unpaired:
        more = ", ..." if len(pair.unpaired) > 3 else ""
        yield f"left out, in one of the models alone: {len(pair.unpaired)} ({', '.join(pair.unpaired[:3])}{more})"
    if pair.unread:
        shown = ", ".join(f"{name} {dtype}" for name, dtype in list(pair.unread.items())[:3])
        more = ", ..." if len(pair.unread) > 3 else ""
        yield f"left out, in a type that is not read: {len(pair.unread)} ({shown}{more})"
    for (dtype, when), rows in summary.groupby(["dtype", "rounded"], sort=False):
        counts = {name: int(rows["rounding_counted"].str.contains(name).sum()) for name in SHARES}
        counted = [f"{name} of {count}" for name, count in counts.items() if count]
        if counted:
            worst = rows.nlargest(1, "rounding_share").to_dict("records")[0]
            unless = " unless training started from the rounded weights" if when == "before" else ""
            yield (
                f"WARNING: stored in {dtype} {when}: {', '.join(counted)} of {len(rows)} matrices count rounding"
                f"{unless}, which is up to {worst['rounding_share']:.1%} of ‖ΔW‖_F² ({worst['name']}): compare models "
                "kept in float32"
            )
    yield NOT_TESTABLE
