"""What is kept of full fine-tuning's gain at low rank: by rank, and by the energy of what is left."""

import math

import matplotlib as mpl
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from analysis.figures.captions import numbers, put_caption
from analysis.figures.style import WIDTH_INCHES, figure_style

ACROSS = 3
PANEL_INCHES = 2.3
FLOOR, CEILING = -0.6, 1.15  # of the axis: below the floor it is worse than nothing by more than half the gain
LINES = {
    "top": ("top k of ΔW", 0, "o", "-"),
    "adapter": ("adapter of rank k", 1, "s", "-"),
    "random": ("random k of ΔW", 7, "^", (0, (4, 1.5))),
    "shrunk": ("ΔW shrunk to the energy of the top k", 2, "D", (0, (1, 1))),
}
DRAWN = ("shrunk", "random", "adapter", "top")  # what is tested on top
WITH_BANDS = ("top", "adapter")


def retention_figure(kept: pd.DataFrame) -> Figure:
    """The share of the gain that is kept against k (log2), a panel a task.

    `kept` has the columns task, kind ('top', 'adapter', 'random', 'shrunk'), k, value, low, high, n, energy, required,
    k0, p, confidence, score. The band is the Fieller interval; values below the floor of the axis lie on it.
    """
    with mpl.rc_context(figure_style()):
        figure, panels = _panels(kept)
        for axes, (task, of_task) in zip(panels, kept.groupby("task", sort=False), strict=False):
            axes.set_xscale("log", base=2)
            for kind in DRAWN:
                _draw(axes, of_task[of_task["kind"] == kind].sort_values("k"), "k")
            axes.axvline(of_task["k0"].iloc[0], color="0.3", linewidth=0.7, linestyle=(0, (1, 2)))
            ticks = [2**i for i in range(int(of_task["p"].iloc[0]).bit_length()) if 2**i <= of_task["p"].iloc[0]]
            axes.xaxis.set_major_locator(FixedLocator(ticks))
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter("{x:.0f}")
            axes.set_title(str(task), loc="left")
            axes.set_xlabel("rank k")
        _finish(figure, panels, kept)
        put_caption(figure, [*_caption(kept), f"dotted: k0 ({_k0s(kept)})"])
    return figure


def energy_figure(kept: pd.DataFrame) -> Figure:
    """The same share against the energy ‖·‖² of what is left, as a share of that of ΔW; the grey line is equality."""
    kept = kept[kept["energy"].notna()]
    with mpl.rc_context(figure_style()):
        figure, panels = _panels(kept)
        for axes, (task, of_task) in zip(panels, kept.groupby("task", sort=False), strict=False):
            axes.plot([0, 1], [0, 1], color="0.8", linewidth=0.7)
            for kind in DRAWN:
                _draw(axes, of_task[of_task["kind"] == kind].sort_values("energy"), "energy")
            axes.set_title(str(task), loc="left")
            axes.set_xlabel("share of the energy that is left")
        _finish(figure, panels, kept)
        put_caption(figure, [*_caption(kept), "thin diagonal: gain in proportion to energy"])
    return figure


def _panels(kept: pd.DataFrame) -> tuple[Figure, list[Axes]]:
    tasks = kept["task"].nunique()
    across = min(ACROSS, tasks)
    down = math.ceil(tasks / across)
    width = WIDTH_INCHES if across > 1 else 0.62 * WIDTH_INCHES
    figure = Figure(figsize=(width, PANEL_INCHES * down + 0.5), layout="constrained")
    panels = list(figure.subplots(down, across, sharey=True, squeeze=False).flat)
    for axes in panels[tasks:]:
        axes.set_axis_off()
    return figure, panels


def _draw(axes: Axes, of_kind: pd.DataFrame, along: str) -> None:
    if of_kind.empty:
        return
    kind = str(of_kind["kind"].iloc[0])
    label, place, marker, style = LINES[kind]
    colour = sns.color_palette("colorblind")[place]
    shown = of_kind["value"].clip(lower=FLOOR)
    if kind in WITH_BANDS:
        low, high = (of_kind[end].fillna(of_kind["value"]).clip(FLOOR, CEILING) for end in ("low", "high"))
        axes.fill_between(of_kind[along], low, high, color=colour, alpha=0.2, linewidth=0)
    axes.plot(of_kind[along], shown, marker=marker, linestyle=style, color=colour, markersize=3, label=label)


def _finish(figure: Figure, panels: list[Axes], kept: pd.DataFrame) -> None:
    for axes in panels[: kept["task"].nunique()]:
        axes.axhline(kept["required"].iloc[0], color="0.3", linewidth=0.7, linestyle=(0, (4, 2)))
        axes.axhline(0, color="0.85", linewidth=0.6, zorder=0)
        axes.set_ylim(FLOOR - 0.03, CEILING)
        sns.despine(ax=axes)
    panels[0].set_ylabel("share of the gain that is kept")
    drawn, names = panels[0].get_legend_handles_labels()
    handles, labels = drawn[::-1], names[::-1]
    figure.legend(handles, labels, loc="outside upper center", ncols=min(2, len(handles)), frameon=False)


def _caption(kept: pd.DataFrame) -> list[str]:
    beyond = int((kept["value"] < FLOOR).sum())
    return [
        f"gain of full fine-tuning on the test split ({', '.join(dict.fromkeys(kept['score']))}), "
        f"means of n = {numbers(kept['n'].tolist())} seeds",
        f"bands: {100 * kept['confidence'].iloc[0]:g} % Fieller intervals, cut at the frame",
        f"dashed: {kept['required'].iloc[0]:g} of the gain",
        f"{beyond} point{'s' * (beyond != 1)} below {FLOOR:g} drawn there" if beyond else "",
    ]


def _k0s(kept: pd.DataFrame) -> str:
    return ", ".join(f"{k0:g}" for k0 in dict.fromkeys(kept["k0"]))
