"""Which rank each matrix got: a map of the model for every way of allocating ranks."""

import math
import textwrap
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import FuncNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from analysis.figures.captions import LETTERS_PER_INCH, put_caption, score_label
from analysis.figures.style import WIDTH_INCHES, figure_style

ACROSS = 3
PAGE_INCHES = 8.0  # for all panels, one below the other
ROW_INCHES = (0.07, 0.24)
LEAST_PANEL_INCHES = 0.8
LABEL_INCHES = 0.115  # from one label to the next
LETTER_INCHES = 0.056  # in the labels
BESIDE_INCHES = 0.55  # labels at the left of all panels
BAR_INCHES = 2.4
COLOURS = "viridis"
RANK_POINTS, RANGE_POINTS = 6.5, 5.0
LETTER = 0.64  # how wide a figure is, as a part of the size of its font
LIGHT = 0.4  # the luminance from which black reads better than white
WEIGHTS = (0.2126, 0.7152, 0.0722)  # of red, green and blue in the luminance of Rec. 709


def rank_map_figure(ranks: pd.DataFrame) -> Figure:
    """A panel for each arm: layers down, kinds of matrices across, the colour of a cell is its rank.

    In a cell the rank and, small, its range; no ranges where one has no room in its cell, no ranks where one has none.
    All panels have one scale of colours, log(1 + rank) from 0. The map is blank where an arm has no such matrix.
    `ranks` has the columns arm, layer, kind, value, low, high, n, over, score, higher_is_better; low and high are the
    range of n ranks, and `over` says of what: '5 contenders' or, where the value is their median, '10 searches'.
    """
    arms, layers, kinds = (list(dict.fromkeys(ranks[column])) for column in ("arm", "layer", "kind"))
    across = 2 if len(arms) == 4 else min(ACROSS, len(arms))
    down = math.ceil(len(arms) / across)
    width = WIDTH_INCHES if across > 1 else 0.6 * WIDTH_INCHES
    row = float(np.clip((PAGE_INCHES / down - 0.35) / len(layers), *ROW_INCHES))
    panel_width, panel_height = (width - BESIDE_INCHES) / across - 0.1, max(LEAST_PANEL_INCHES, row * len(layers))
    norm = FuncNorm((np.log1p, np.expm1), vmin=0, vmax=max(1.0, ranks["value"].max()))
    with mpl.rc_context(figure_style()):
        figure = Figure(figsize=(width, down * (panel_height + 0.25) + 0.7), layout="constrained")
        grid = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False)
        panels = dict(zip(arms, grid.flat, strict=False))
        for arm, axes in panels.items():
            _draw(axes, ranks[ranks["arm"] == arm], layers, kinds, norm)
            axes.set_title(textwrap.fill(arm, max(8, int(0.8 * panel_width * LETTERS_PER_INCH))), loc="left")
        for axes in list(grid.flat)[len(arms) :]:
            axes.set_axis_off()
        _name_layers(list(grid[:, 0]), layers, panel_height / len(layers))
        inches = _name_kinds(list(panels.values())[-across:], kinds, panel_width / len(kinds))
        figure.set_figheight(figure.get_figheight() + inches * (2 if len(arms) % across else 1))
        _put_colour_bar(figure, list(grid.flat), norm)
        with_ranges = _annotate(figure, panels, ranks, norm)
        blank = len(ranks) < len(arms) * len(layers) * len(kinds)
        put_caption(figure, _caption(ranks, with_ranges=with_ranges, blank=blank))
    return figure


def _draw(axes: Axes, of_arm: pd.DataFrame, layers: list[str], kinds: list[str], norm: Normalize) -> None:
    cells = np.full((len(layers), len(kinds)), np.nan)
    for row in of_arm.to_dict("records"):
        cells[layers.index(row["layer"]), kinds.index(row["kind"])] = row["value"]
    axes.pcolormesh(
        np.arange(len(kinds) + 1) - 0.5, np.arange(len(layers) + 1) - 0.5, np.ma.masked_invalid(cells),
        cmap=COLOURS, norm=norm, edgecolor="white", linewidth=0.4,
    )  # fmt: skip
    axes.set_ylim(len(layers) - 0.5, -0.5)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _name_layers(leftmost: Sequence[Axes], layers: list[str], row_inches: float) -> None:
    """All, or every second one and so on where rows are lower than words."""
    every = math.ceil(LABEL_INCHES / row_inches)
    for axes in leftmost:
        axes.set_yticks(range(0, len(layers), every), layers[::every])
        axes.set_ylabel("layer")


def _name_kinds(lowest: Sequence[Axes], kinds: list[str], cell_inches: float) -> float:
    """Below the lowest panels, in lines or upright where cells are narrow; returns how high that is, in inches."""
    names = kinds
    if _inches(kinds) > cell_inches:
        names = [kind.replace(".", ".\n") for kind in kinds]
    upright = _inches(names) > cell_inches
    names = kinds if upright else names
    for axes in lowest:
        axes.set_xticks(range(len(kinds)), names, rotation=90 if upright else 0)
        axes.tick_params(labelbottom=True)
        axes.set_xlabel("kind of matrix")
    return 0.2 + (_inches(kinds) if upright else LABEL_INCHES * max(1 + name.count("\n") for name in names))


def _inches(names: Sequence[str]) -> float:
    """How wide the longest line of these labels is."""
    return LETTER_INCHES * (1 + max(len(line) for name in names for line in name.split("\n")))


def _put_colour_bar(figure: Figure, panels: list[Axes], norm: Normalize) -> None:
    width, height = figure.get_size_inches()
    bar = figure.colorbar(
        ScalarMappable(norm, COLOURS), ax=panels, location="top", shrink=BAR_INCHES / width, aspect=25,
        pad=0.09 / height, label="rank",
    )  # fmt: skip
    highest = float(norm.vmax or 1.0)
    powers = [2.0**power for power in range(math.ceil(math.log2(highest))) if 1.3 * 2**power < highest]
    bar.set_ticks([0.0, *powers, highest])
    bar.ax.xaxis.set_major_formatter(lambda rank, _: f"{rank:g}")
    bar.minorticks_off()
    bar.outline.set_visible(False)


def _annotate(figure: Figure, panels: dict[str, Axes], ranks: pd.DataFrame, norm: Normalize) -> bool:
    """Writes what has room in the cells; returns whether ranges have."""
    layers, kinds = (list(dict.fromkeys(ranks[column])) for column in ("layer", "kind"))
    wide, high = _cell_points(figure, next(iter(panels.values())), len(kinds), len(layers))
    shown = ranks[ranks["value"].notna()].to_dict("records")
    words = [f"{round(row['value'], 1):g}" for row in shown]
    ranges = [_range(row["low"], row["high"]) for row in shown]
    with_ranks = high > 1.1 * RANK_POINTS and _fit(words, RANK_POINTS, wide)
    with_ranges = with_ranks and high > 1.1 * (RANK_POINTS + RANGE_POINTS) and _fit(ranges, RANGE_POINTS, wide)
    for row, rank, spread in zip(shown, words, ranges, strict=True):
        two = with_ranges and spread != ""
        parts = [(rank, RANK_POINTS, 0.6 * RANGE_POINTS if two else 0.0)] if with_ranks else []
        parts += [(spread, RANGE_POINTS, -0.52 * RANK_POINTS)] if two else []
        for text, size, above in parts:
            axes = panels[row["arm"]]
            axes.text(
                kinds.index(row["kind"]), layers.index(row["layer"]), text, fontsize=size, ha="center",
                va="center_baseline", color=_ink(float(norm(row["value"]))), in_layout=False,
                transform=axes.transData + ScaledTranslation(0, above / 72, figure.dpi_scale_trans),
            )  # fmt: skip
    return with_ranges


def _cell_points(figure: Figure, panel: Axes, across: int, down: int) -> tuple[float, float]:
    """Width and height of a panel's cells as they are laid out."""
    engine = figure.get_layout_engine()
    assert engine is not None  # the figure was made with one
    engine.execute(figure)
    box = panel.get_window_extent()
    return float(72 / figure.dpi * box.width / across), float(72 / figure.dpi * box.height / down)


def _range(low: float, high: float) -> str:
    """'4–16', or nothing where there is no range."""
    there = pd.notna(low) and pd.notna(high) and round(low) != round(high)
    return f"{low:.0f}–{high:.0f}" if there else ""


def _fit(words: Sequence[str], points: float, wide: float) -> bool:
    return all(LETTER * points * len(word) <= wide for word in words)


def _ink(part: float) -> str:
    """The colour of words on the colour at that part of the scale."""
    return "black" if float(np.dot(WEIGHTS, mpl.colormaps[COLOURS](part)[:3])) > LIGHT else "white"


def _caption(ranks: pd.DataFrame, *, with_ranges: bool, blank: bool) -> list[str]:
    ranged = ranks[[_range(low, high) != "" for low, high in zip(ranks["low"], ranks["high"], strict=True)]]
    place = "small" if with_ranges else "not drawn, but in the table"
    return [
        f"rank of each matrix in the allocation that was chosen by {score_label(ranks, 'validation')}",
        "of several searches the median" if ranks["over"].str.endswith("searches").any() else "",
        f"{place}: the range of its ranks over {_counted(ranged)}" if len(ranged) else "",
        "blank: no such matrix" if blank else "",
    ]


def _counted(ranged: pd.DataFrame) -> str:
    """'5 contenders', or '5 contenders (grouped, mlp) and 10 searches (random)'."""
    arms: dict[str, list[str]] = {}
    for words, arm in dict.fromkeys(ranged[["over", "arm"]].itertuples(index=False, name=None)):
        arms.setdefault(words, []).append(arm)
    if len(arms) == 1:
        return next(iter(arms))
    return " and ".join(f"{words} ({', '.join(names)})" for words, names in arms.items())
