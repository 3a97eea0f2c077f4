"""The figures of a benchmark: the cost of a training step as a part of PEFT's, by implementation and by pack size."""

from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis.figures.style import WIDTH_INCHES, figure_style, save_figure

MARKERS = ("o", "s", "D", "^", "v", "P")
SPREAD = 0.62  # of the height of a case, for its implementations


def save_benchmark_figure(ratios: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """Saves the figure as `name`.png and `name`.pdf; returns their paths."""
    return save_figure(benchmark_figure(ratios), folder, name)


def benchmark_figure(ratios: pd.DataFrame) -> Figure:
    """A panel a quantity, a row a case: the median of each implementation as a dot, its quartiles as a bar, PEFT at 1.

    `ratios` has a row for each number that was measured: case, implementation, quantity, ratio (to PEFT's; PEFT itself
    is the line). Cases, implementations and quantities are drawn in their order there.
    """
    implementations = list(dict.fromkeys(ratios["implementation"]))
    colours = dict(zip(implementations, sns.color_palette("colorblind", len(implementations)), strict=True))
    panels = {quantity: ratios[ratios["quantity"] == quantity] for quantity in dict.fromkeys(ratios["quantity"])}
    cases = {quantity: list(dict.fromkeys(part["case"])) for quantity, part in panels.items()}
    heights = [0.42 * len(of_panel) + 0.4 for of_panel in cases.values()]
    with mpl.rc_context(figure_style()):
        figure = Figure(figsize=(WIDTH_INCHES, sum(heights) + 0.3), layout="constrained")
        grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=heights)
        for axes, (quantity, part) in zip(grid[:, 0], panels.items(), strict=True):
            _draw(axes, part, cases[quantity], colours)
            axes.set_xlabel(f"{quantity} of a training step, PEFT = 1")
            axes.tick_params(axis="x", labelbottom=True)
        left, right = grid[0, 0].get_xlim()
        grid[0, 0].set_xlim(max(0, np.floor(10 * left) / 10), max(1.05, right))  # shared by all panels
        grid[0, 0].annotate("PEFT", (1, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom", fontsize=7.5)
        handles = [
            Line2D([], [], color=colour, marker=marker, linestyle="", markersize=4, label=name)
            for (name, colour), marker in zip(colours.items(), MARKERS, strict=False)
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, handletextpad=0.1)
    return figure


def _draw(axes: Axes, part: pd.DataFrame, cases: list[str], colours: dict[str, Any]) -> None:
    offsets = np.linspace(-SPREAD / 2, SPREAD / 2, len(colours)) if len(colours) > 1 else np.zeros(1)
    for (name, colour), marker, offset in zip(colours.items(), MARKERS, offsets, strict=False):
        for place, case in enumerate(cases):
            found = part.loc[(part["implementation"] == name) & (part["case"] == case), "ratio"]
            if found.empty:
                continue
            lower, middle, upper = found.quantile([0.25, 0.5, 0.75])
            axes.plot([lower, upper], [place + offset] * 2, color=colour, linewidth=1.4, solid_capstyle="butt")
            axes.plot(middle, place + offset, marker, color=colour, markersize=3.6, markeredgewidth=0)
    axes.axvline(1, color="0.35", linewidth=0.8, zorder=0)
    for boundary in range(1, len(cases)):
        axes.axhline(boundary - 0.5, color="0.9", linewidth=0.5, zorder=0)
    axes.set_yticks(range(len(cases)), [case.replace(", ", "\n", 1) for case in cases])
    axes.set_ylim(len(cases) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    sns.despine(ax=axes, left=True)


def save_pack_figure(ratios: pd.DataFrame, folder: Path, name: str) -> list[Path]:
    """Saves the figure as `name`.png and `name`.pdf; returns their paths."""
    return save_figure(pack_figure(ratios), folder, name)


def pack_figure(ratios: pd.DataFrame) -> Figure:
    """A panel a model, a line a case over the trials of a pack: the median in a band of quartiles, PEFT's step at 1.

    `ratios` has a row for each number that was measured: model, case, trials, ratio (of one trial's step to PEFT's).
    """
    models = list(dict.fromkeys(ratios["model"]))
    sizes = sorted(ratios["trials"].unique())
    with mpl.rc_context(figure_style()):
        figure = Figure(figsize=(WIDTH_INCHES, 2.7), layout="constrained")
        panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
        for axes, model in zip(panels, models, strict=True):
            _draw_packs(axes, ratios[ratios["model"] == model])
            axes.axhline(1, color="0.35", linewidth=0.8, zorder=0)
            axes.set_xscale("log", base=2)
            axes.set_xticks(sizes, [str(size) for size in sizes])
            axes.minorticks_off()
            axes.set_title(model)
            axes.set_xlabel("trials that train together")
            axes.legend(loc="upper right", bbox_to_anchor=(1, 0.9), frameon=False)
            sns.despine(ax=axes)
        panels[0].set_ylim(0, max(1.15, panels[0].get_ylim()[1]))
        panels[0].set_ylabel("time of one trial's step, PEFT's = 1")
        panels[-1].annotate("PEFT", (1, 1), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=7.5)
    return figure


def _draw_packs(axes: Axes, part: pd.DataFrame) -> None:
    cases = list(dict.fromkeys(part["case"]))
    for case, colour, marker in zip(cases, sns.color_palette("colorblind", len(cases)), cycle(MARKERS), strict=False):
        quartiles = part[part["case"] == case].groupby("trials")["ratio"].quantile([0.25, 0.5, 0.75]).unstack()
        axes.fill_between(quartiles.index, quartiles[0.25], quartiles[0.75], color=colour, alpha=0.2, linewidth=0)
        axes.plot(
            quartiles.index, quartiles[0.5], color=colour, marker=marker, markersize=3.6, markeredgewidth=0, label=case
        )
