"""The spectra of what full fine-tuning changed between two stored models, and how much of them is rounding."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from analysis.spectra_tables import Spectrum, SpectrumTables, run_labels, tables_of
from analysis.stats.singular_values import singular_values
from analysis.stats.storage_precision import SHARES, rounding_noise
from experiments.record.adapter_formats import RunStoreError
from experiments.record.stored_models import Change, ModelPair, unread_line

ROUNDING = ("dtype", "stored_so", "rounding_share", "rounding_counted")
WARNINGS = {  # what is stored in the coarser type; that of the base is no rounding of ΔW if training began from it
    "before": (
        "stored in {dtype} before: the difference is exact only if training started from these rounded weights; "
        "otherwise {found}: give the base that it started from"
    ),
    "after": "stored in {dtype}: {found}: compare models kept in float32",
    "both": (
        "stored in {dtype}: {found}, and about twice that unless training started from the rounded weights before: "
        "compare models kept in float32"
    ),
}
NOT_TESTABLE = "NOT TESTABLE: a spectrum alone cannot test the hypothesis (no scores, no seeds)"


def difference_tables(pair: ModelPair, after: Path) -> SpectrumTables:
    """The spectrum of every matrix that changed, one read at a time.

    The summary also says in which type the matrix is stored (`dtype`: the coarser one of both models) and by which
    model (`stored_so`: before, after or both), the share of the rounding to it in ‖ΔW‖_F² (`rounding_share`), and which
    ranks count that rounding (`rounding_counted`). Raises RunStoreError where nothing changed, and where a weight is
    not finite.
    """
    spectra: dict[str, Spectrum] = {}
    rounding = []
    for change in pair.changes():
        sigma = singular_values((change.after - change.before).numpy())
        spectra[change.name] = Spectrum((change.after.shape[0], change.after.shape[1]), None, sigma)
        rounding.append((change.name, *_rounding(change, sigma)))
    if not spectra:
        raise RunStoreError(
            f"a spectrum is that of a change; none of the {len(pair.matrices)} matrices that {after} shares with the "
            "model before it is another one there: give the base that was fine-tuned, and what became of it"
        )
    (label,) = run_labels([after])
    tables = tables_of(label, spectra, scale_known=True)
    columns = pd.DataFrame(rounding, columns=["matrix", *ROUNDING])
    return SpectrumTables(tables.summary.merge(columns, on="matrix", how="left"), tables.values, ())


def difference_notes(pair: ModelPair, summary: pd.DataFrame) -> Iterator[str]:
    """What to know of these spectra: what was left out, which ranks are made of rounding, and what they cannot say."""
    unchanged = len(pair.matrices) - len(summary)
    yield f"{len(summary)} matrices changed, {unchanged} did not"
    if pair.unpaired:
        more = ", ..." if len(pair.unpaired) > 3 else ""
        yield f"left out, in one of the models alone: {len(pair.unpaired)} ({', '.join(pair.unpaired[:3])}{more})"
    if pair.unread:
        yield f"left out: {unread_line(pair.unread)}"
    for (dtype, stored_so), rows in summary.groupby(["dtype", "stored_so"], sort=False):
        counts = {name: int(rows["rounding_counted"].str.contains(name).sum()) for name in SHARES}
        counted = [f"{name} of {count}" for name, count in counts.items() if count]
        if counted:
            worst = rows.nlargest(1, "rounding_share").to_dict("records")[0]
            found = (
                f"{', '.join(counted)} of {len(rows)} matrices count rounding, which is up to "
                f"{worst['rounding_share']:.1%} of ‖ΔW‖_F² ({worst['name']})"
            )
            yield f"WARNING: {WARNINGS[str(stored_so)].format(dtype=dtype, found=found)}"
    yield NOT_TESTABLE


def _rounding(change: Change, sigma: Float[np.ndarray, " k"]) -> tuple[str, str, float, str]:
    """The columns `ROUNDING`. The type whose rounding is larger in this matrix is the coarser one."""
    weights = {change.dtype_after: change.after.numpy()}
    weights.setdefault(change.dtype_before, change.before.numpy())
    noises = {dtype: rounding_noise(sigma, stored, dtype) for dtype, stored in weights.items()}
    coarser = max(noises, key=lambda dtype: noises[dtype].energy_share)
    stored_so = "both" if len(noises) == 1 else "after" if coarser == change.dtype_after else "before"
    return coarser, stored_so, noises[coarser].energy_share, " ".join(noises[coarser].blurred)
