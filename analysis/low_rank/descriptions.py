"""H3 and H4, which describe and decide nothing: directions that recur across seeds, spectra beside two nulls."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float

from analysis.low_rank.study_runs import StudyRuns
from analysis.low_rank.truncated_scores import Update
from analysis.stats.reference_lines import reference_measures
from analysis.stats.reproducible_rank import contrast_test, sign_flip_test, split_seed_rank
from analysis.stats.singular_values import energy_rank
from lora_variants.frozen_model.layer_names import places

ENERGY = 0.9
Stack = Float[np.ndarray, "seeds d_out d_in"]


@dataclass(frozen=True)
class Matrix:
    """What one adapted matrix says of itself; figures of false labels are None where the study has none."""

    name: str
    kind: str
    p: int
    r90: float  # mean over the seeds
    gaussian_r90: float
    false_labels_r90: float | None
    k_rep: int | None  # directions that recur in the other half of the seeds
    p_flip: float | None  # of whole seeds' signs
    p_contrast: float | None  # true against false labels
    not_tested: Mapping[str, str] = field(default_factory=dict)  # which of these three seeds are too few for -> why


def describe_matrices(
    updates: Mapping[int, Update],
    nulls: Mapping[int, Update] | None,
    study: StudyRuns,
    on_matrix: Callable[[int, int], None],
) -> list[Matrix]:
    """Every adapted matrix, in the model's order."""
    names = list(next(iter(updates.values())).matrices)
    where, found = places(names), []
    for number, name in enumerate(names, 1):
        true, false = _stack(updates, name), None if nulls is None else _stack(nulls, name)
        r90s = _mean_r90(updates, name), None if nulls is None else _mean_r90(nulls, name)
        found.append(_described(name, where[name].kind, true, false, r90s, study))
        on_matrix(number, len(names))
    return found


def _described(
    name: str, kind: str, true: Stack, false: Stack | None, r90s: tuple[float, float | None], study: StudyRuns
) -> Matrix:
    shape, seeds = (true.shape[1], true.shape[2]), list(study.seeds)
    recurring, flips = split_seed_rank(true, alpha=study.hypothesis["alpha"]), sign_flip_test(true)
    contrast = None if false is None else contrast_test(true, false, true_seeds=seeds, false_seeds=seeds)
    not_tested = {
        "k_rep": recurring.reason if recurring.k_rep is None else "",
        "p_flip": flips.reason,
        "p_contrast": "" if contrast is None else contrast.reason,
    }
    return Matrix(
        name=name,
        kind=kind,
        p=min(shape),
        r90=r90s[0],
        gaussian_r90=reference_measures(shape, None)["r90"],
        false_labels_r90=r90s[1],
        k_rep=recurring.k_rep,
        p_flip=flips.p,
        p_contrast=None if contrast is None else contrast.p,
        not_tested={name: reason for name, reason in not_tested.items() if reason},
    )


def _mean_r90(updates: Mapping[int, Update], name: str) -> float:
    return float(np.mean([energy_rank(update.svds[name].sigma, ENERGY) for update in updates.values()]))


def _stack(updates: Mapping[int, Update], name: str) -> Stack:
    return np.stack([update.matrices[name] for update in updates.values()])
