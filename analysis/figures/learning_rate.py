"""How the learning rate was chosen: the validation score of every rate that was tried."""

import math
import textwrap
from collections import Counter
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from analysis.figures.axes import score_frame
from analysis.figures.captions import LETTERS_PER_INCH, numbers, put_caption, score_label
from analysis.figures.style import WIDTH_INCHES, figure_style

ACROSS = 3
PANEL_INCHES = 1.75
FEW_DECADES = 100
UNRANKED = (0.1, 0.1, 0.1)
Colour = tuple[float, float, float]


def learning_rate_figure(rates: pd.DataFrame) -> Figure:
    """Validation score against learning rate (log), a panel for each line of the table, in it a curve for each rank.

    Dots are runs, curves go through the means of a rate's runs; squares are rates by which the grid was extended, rings
    the chosen ones (the larger the more seeds chose it), a cross at the edge a rate at which a run failed. Scores far
    worse than most lie beyond the frame. `rates` has the columns line, arm, rank, kind ('seed', 'mean', 'chosen',
    'failed'), learning_rate, seed, value, n, added, chosen, share, tuning, score, higher_is_better.
    """
    lines = list(dict.fromkeys(rates["line"]))
    across = 2 if len(lines) == 4 else min(ACROSS, len(lines))
    down = math.ceil(len(lines) / across)
    ranks = sorted(rates["rank"].dropna().unique())
    hues = dict(zip(ranks, map(to_rgb, mpl.colormaps["viridis"](np.linspace(0, 0.9, len(ranks)))), strict=True))
    with mpl.rc_context(figure_style()):
        size = (WIDTH_INCHES if across > 1 else 0.6 * WIDTH_INCHES, PANEL_INCHES * down + 0.6)
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        grid[0, 0].set_xscale("log")
        _set_ticks(grid[0, 0], rates["learning_rate"])
        grid[0, 0].set_ylim(*_range(rates))
        for axes, line in zip(grid.flat, lines, strict=False):
            _draw(axes, rates[rates["line"] == line], hues)
            axes.set_title(textwrap.fill(line, int(LETTERS_PER_INCH * 0.85 * size[0] / across)), loc="left")
        for axes in list(grid.flat)[len(lines) :]:
            axes.set_axis_off()
        for column in range(across):
            lowest = max(row for row in range(down) if row * across + column < len(lines))
            grid[lowest, column].tick_params(labelbottom=True)
            grid[lowest, column].set_xlabel("learning rate")
        label = score_label(rates, "validation")
        figure.supylabel(label if down > 1 else label.replace(" (", "\n("), fontsize=8)
        _put_legend(figure, rates, hues)
        put_caption(figure, _caption(rates))
    return figure


def _draw(axes: Axes, of_line: pd.DataFrame, hues: dict[float, Colour]) -> None:
    """The arms of one line; those without a rank are black."""
    edge, step = (0.04, 0.06) if of_line["higher_is_better"].iloc[0] else (0.96, -0.06)
    crosses: Counter[float] = Counter()
    for arm in dict.fromkeys(of_line["arm"]):
        of_arm = of_line[of_line["arm"] == arm]
        colour = hues.get(of_arm["rank"].iloc[0], UNRANKED)
        runs, failed = of_arm[of_arm["kind"] == "seed"], of_arm[of_arm["kind"] == "failed"]
        means = of_arm[of_arm["kind"] == "mean"].sort_values("learning_rate")
        for added, marker, size in ((False, ".", 3), (True, "s", 2)):
            some = runs[runs["added"] == added]
            axes.plot(
                some["learning_rate"], some["value"], marker, color=colour, markersize=size, alpha=0.4,
                markeredgewidth=0,
            )  # fmt: skip
        axes.plot(means["learning_rate"], means["value"], color=colour)
        for added, marker in ((False, "o"), (True, "s")):
            part = means[means["added"] == added]
            axes.plot(part["learning_rate"], part["value"], marker, color=colour, markersize=3.2, markeredgewidth=0)
        for row in of_arm[of_arm["kind"] == "chosen"].to_dict("records"):
            axes.plot(
                row["learning_rate"], row["value"], "o", markersize=4.5 + 3 * row["share"], markerfacecolor="none",
                color=colour, markeredgewidth=1.0,
            )  # fmt: skip
        broken = sorted(failed["learning_rate"].unique())
        if broken:  # an empty line that is not clipped still takes room in the layout
            axes.plot(
            broken, [edge + step * crosses[rate] for rate in broken], "x", color=colour, markersize=4,
            transform=axes.get_xaxis_transform(), clip_on=False,
        )  # fmt: skip
        crosses.update(broken)
    sns.despine(ax=axes)


def _set_ticks(axes: Axes, rates: "pd.Series[float]") -> None:
    """Labels at powers of ten; also at twice and five times these where there are few."""
    few = rates.max() < FEW_DECADES * rates.min()
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,)))
    axes.xaxis.set_major_formatter(lambda rate, _: f"{rate:.0e}".replace("e-0", "e-").replace("e+00", ""))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _range(rates: pd.DataFrame) -> tuple[float, float]:
    scored = rates[rates["value"].notna() & (rates["kind"] != "chosen")]
    means = scored[scored["kind"] == "mean"] if (scored["kind"] == "mean").any() else scored
    chosen = rates[rates["kind"] == "chosen"] if (rates["kind"] == "chosen").any() else means
    return score_frame(
        scored["value"].to_numpy(),
        means["value"].to_numpy(),
        chosen["value"].to_numpy(),
        higher_is_better=bool(rates["higher_is_better"].iloc[0]),
    )


def _put_legend(figure: Figure, rates: pd.DataFrame, hues: dict[float, Colour]) -> None:
    """Ranks at the left, signs at the right."""
    curves = [Line2D([], [], color=colour, label=f"{rank:g}") for rank, colour in hues.items()]
    if curves:
        curves.insert(0, Line2D([], [], linestyle="", label="rank"))
    if rates["rank"].isna().any() and curves:
        curves.append(Line2D([], [], color=UNRANKED, label="none"))
    signs = [("o", "none", 7.0, "chosen", bool(rates["chosen"].any()))]
    signs += [("s", "0.4", 3.2, "grid extended", bool(rates["added"].any()))]
    signs += [("x", "0.4", 4.0, "run failed", bool((rates["kind"] == "failed").any()))]
    marks = [
        Line2D([], [], linestyle="", marker=marker, markerfacecolor=face, color="0.4", markersize=size, label=words)
        for marker, face, size, words, there in signs
        if there
    ]
    wide = figure.get_figwidth() == WIDTH_INCHES
    style: dict[str, Any] = {"frameon": False, "columnspacing": 0.9, "handlelength": 1.0, "handletextpad": 0.4}
    if curves:
        figure.legend(handles=curves, loc="outside upper left", ncols=min(9 if wide else 4, len(curves)), **style)
    if marks:
        figure.legend(handles=marks, loc="outside upper right", ncols=len(marks) if wide else 1, **style)


def _caption(rates: pd.DataFrame) -> list[str]:
    counts = rates.loc[rates["kind"] == "mean", "n"]
    open_ones = rates.loc[rates["tuning"] == "not tuned", "arm"].nunique()
    low, high = _range(rates)
    outside = (rates["kind"] != "chosen") & rates["value"].notna() & ~rates["value"].between(low, high)
    return [
        f"curves: means of n = {numbers(counts.tolist())} seeds, without intervals" if len(counts) else "",
        "dots: single runs",
        "rings: chosen, the larger the more seeds" if rates["share"].between(0, 1, inclusive="neither").any() else "",
        f"{int(outside.sum())} worse points lie beyond the frame" if outside.any() else "",
        f"{open_ones} arm{'s' * (open_ones != 1)} not tuned" if open_ones else "",
    ]
