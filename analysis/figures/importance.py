"""Which knobs of a search matter: the importance of each, by one evaluator beside the other."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis.figures.captions import numbers, put_caption, score_label
from analysis.figures.style import WIDTH_INCHES, figure_style

SORTED_BY = "fANOVA"
PAGE_INCHES = 8.5
ROW_INCHES = (0.125, 0.2)
MARKERS = ("o", "s", "D", "^")
LETTERS = 34
Colour = tuple[float, float, float]


def importance_figure(importances: pd.DataFrame) -> Figure:
    """A row for each knob, a panel for each evaluator: the knob's share of the importance, and how far it spreads.

    The greatest is on top, by the evaluator at the left: fANOVA if it is there. `importances` has the columns knob,
    evaluator, value (a share of 1), low, high, n, resamples, score, higher_is_better; low and high are the 10th and
    90th percentile over so many resamples of the n random trials that the value is computed on.
    """
    evaluators = sorted(dict.fromkeys(importances["evaluator"]), key=lambda name: name != SORTED_BY)
    first = importances[importances["evaluator"] == evaluators[0]].sort_values("value", ascending=False, kind="stable")
    knobs = list(dict.fromkeys([*first["knob"], *importances["knob"]]))
    row = float(np.clip(PAGE_INCHES / len(knobs), *ROW_INCHES))
    width = WIDTH_INCHES if len(evaluators) > 1 else 0.6 * WIDTH_INCHES
    palette = sns.color_palette("colorblind")
    with mpl.rc_context(figure_style()):
        figure = Figure(figsize=(width, row * len(knobs) + 0.85), layout="constrained")
        panels = figure.subplots(1, len(evaluators), sharex=True, sharey=True, squeeze=False)[0]
        for place, (axes, evaluator) in enumerate(zip(panels, evaluators, strict=True)):
            of_evaluator = importances[importances["evaluator"] == evaluator]
            _draw(axes, of_evaluator, knobs, palette[place], MARKERS[place % len(MARKERS)])
            axes.set_title(evaluator, loc="left")
            axes.set_xlabel("importance (share of 1)")
        panels[0].set_yticks(range(len(knobs)), [_cut(knob) for knob in knobs])
        panels[0].set_ylim(len(knobs) - 0.4, -0.6)
        panels[0].set_xlim(0, _end(importances))
        put_caption(figure, _caption(importances, evaluators[0]))
    return figure


def _draw(axes: Axes, of_evaluator: pd.DataFrame, knobs: list[str], colour: Colour, marker: str) -> None:
    for row in of_evaluator.to_dict("records"):
        place = knobs.index(row["knob"])
        axes.hlines(place, row["low"], row["high"], color=colour, linewidth=1.2, zorder=2)
        axes.plot(row["value"], place, marker, color=colour, markersize=4, zorder=3, clip_on=False)
    axes.grid(axis="y", color="0.92", linewidth=0.5)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0, pad=6)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    sns.despine(ax=axes, left=True)


def _end(importances: pd.DataFrame) -> float:
    """The right end of the axis, which begins at 0."""
    largest = float(np.nanmax(importances[["value", "high"]].to_numpy(dtype=float), initial=0.0))
    return 1.06 * largest or 1.0


def _cut(knob: str) -> str:
    return knob if len(knob) <= LETTERS else f"{knob[: LETTERS - 1]}…"


def _caption(importances: pd.DataFrame, sorted_by: str) -> list[str]:
    spread = importances[importances["low"].notna()]
    return [
        f"share of each knob in the importance for {score_label(importances, 'validation')}",
        f"computed on n = {numbers(importances['n'].tolist())} random trials",
        f"bars: 10th to 90th percentile over {numbers(spread['resamples'].tolist())} resamples of the trials"
        if len(spread)
        else "",
        "the shares of one evaluator sum to one",
        f"sorted by {sorted_by}",
    ]
