"""The figures of a study, drawn from tidy tables alone: each is saved with the table that it shows."""

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
from matplotlib.figure import Figure

from analysis.figures.comparisons import comparison_figure
from analysis.figures.importance import importance_figure
from analysis.figures.learning_rate import learning_rate_figure
from analysis.figures.pareto import front_figure
from analysis.figures.rank_map import rank_map_figure
from analysis.figures.retention import energy_figure, retention_figure
from analysis.figures.scores import score_by_arm_figure, score_by_rank_figure
from analysis.figures.style import save_figure

FIGURES: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "score_by_rank": score_by_rank_figure,
    "score_by_rank_and_rate": score_by_rank_figure,
    "score_by_arm": score_by_arm_figure,
    "score_by_arm_and_rate": score_by_arm_figure,
    "learning_rates": learning_rate_figure,
    "comparisons": comparison_figure,
    "rank_map": rank_map_figure,
    "rank_importance": importance_figure,
    "score_by_parameters": front_figure,
    "retention": retention_figure,
    "retention_by_energy": energy_figure,
}
WORDS = (
    *("setting", "line", "arm", "reference", "kind", "excluded", "verdict", "tuning", "score"),
    *("layer", "over", "holds", "looks", "units", "knob", "evaluator", "task"),
)
CLAIMS = ("higher_is_better", "added", "chosen")


def save_drawn(name: str, table: pd.DataFrame, folder: Path) -> list[Path]:
    """`name`.csv holds the table, `name`.pdf and `name`.png what is drawn from that file; returns the three paths."""
    with TemporaryDirectory(prefix=".", dir=folder) as made:
        csv = Path(made) / f"{name}.csv"
        table.to_csv(csv, index=False)
        files = [csv, *save_figure(redrawn(name, csv), Path(made), name)]
        return [path.replace(folder / path.name) for path in files]


def redrawn(name: str, csv: Path) -> Figure:
    """The figure of that name from the table that was saved with it."""
    return FIGURES[name](read_drawn(csv))


def read_drawn(csv: Path) -> pd.DataFrame:
    """The table of a figure as it was saved."""
    table = pd.read_csv(csv, dtype="object", keep_default_na=False, na_values=[""])
    return typed(table.assign(**{claim: table[claim] == "True" for claim in CLAIMS if claim in table}))


def typed(table: pd.DataFrame) -> pd.DataFrame:
    """The table of a figure with columns of words, of claims, and of numbers otherwise."""
    kinds = {**dict.fromkeys(WORDS, "object"), **dict.fromkeys(CLAIMS, "bool")}
    return table.astype({column: kinds.get(str(column), "float64") for column in table})
