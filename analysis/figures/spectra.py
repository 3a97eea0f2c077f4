"""The figures of spectra: one function each, drawn from tidy tables."""

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from analysis.figures.style import WIDTH_INCHES, figure_style
from lora_variants.frozen_model.layer_names import NO_LAYER, WHOLE

FLOOR = 1e-8  # float32 factors carry nothing below this part of sigma_1
DASHES: tuple[Any, ...] = ("", (4, 1.5), (1, 1), (5, 1, 1, 1), (3, 1, 1, 1, 1, 1), (8, 2), (2, 2), (6, 1, 2, 1))
LAYERS_ANNOTATED = 16  # more rows than this leave no room for a number in a cell
LINES_UNCROWDED = 48
LABEL_LETTERS = 24
UPRIGHT_FROM = 6  # letters of a name below the map that have no room side by side
GREY = (0.5, 0.5, 0.5)
RANDOM_LINE: dict[str, Any] = {"color": "#d55e00", "linewidth": 1.4, "dashes": (4, 2)}  # no hue of the layers


def spectra_figure(summary: pd.DataFrame, values: pd.DataFrame) -> Figure:
    """One row a run: left sigma_i / sigma_1 of every matrix, coloured by layer; right the effective rank by place.

    A dashed line is what a Gaussian matrix of that shape, or random factors of that shape and rank, have. `summary`
    and `values` are the tables of `spectrum_tables.SpectrumTables`. The effective rank is the
    exponential of the entropy of sigma²; its colours run from 0 to the largest rank the run allows. The strip
    between the two is the key to the colours of the lines.
    """
    runs = list(dict.fromkeys(summary["run"]))
    maps = {run: _rank_map(summary[summary["run"] == run]) for run in runs}
    heights = [_height(ranks) for ranks in maps.values()]
    columns = max(ranks.shape[1] for ranks in maps.values())
    with mpl.rc_context(figure_style()):
        figure = Figure(figsize=(WIDTH_INCHES, sum(heights)), layout="constrained")
        widths = [1.0, 0.03, float(np.clip(0.1 * columns, 0.15, 0.8))]
        grid = figure.add_gridspec(len(runs), 3, height_ratios=heights, width_ratios=widths)
        for row, (run, ranks) in enumerate(maps.items()):
            lines, strip, cells = (figure.add_subplot(grid[row, column]) for column in range(3))
            palette = _depth_palette(list(ranks.index))
            relative = _relative_values(summary, values, run)
            _draw_random(lines, relative)
            _draw_spectra(lines, relative, list(ranks.columns), palette)
            lines.set_title(run, loc="left")
            _draw_depth_key(strip, palette)
            _draw_rank_map(cells, ranks, _largest_rank(summary[summary["run"] == run]))
    return figure


def _height(ranks: pd.DataFrame) -> float:
    """Inches for the rows of the map, the key to the kinds of lines, and names that stand upright below the map."""
    rows, key = float(np.clip(0.15 * len(ranks) + 0.7, 2.3, 4.5)), 0.17 * (ranks.shape[1] + 1) + 0.8
    longest = max(len(_cut(kind)) for kind in ranks.columns)
    return max(rows, key) + (0.06 * longest if longest > UPRIGHT_FROM else 0.0)


def _rank_map(summary: pd.DataFrame) -> pd.DataFrame:
    """Effective rank, (layers, kinds), both in the order of the table."""
    placed = summary.assign(layer=summary["layer"].astype(str))
    layers, kinds = (list(dict.fromkeys(placed[column])) for column in ("layer", "kind"))
    layers.sort(key=lambda layer: layer == NO_LAYER)
    pivoted = placed.pivot_table(index="layer", columns="kind", values="entropy_rank_energy", sort=False)
    return pivoted.reindex(index=layers, columns=kinds)


def _largest_rank(summary: pd.DataFrame) -> int:
    sides = summary[["d_out", "d_in"]].min(axis=1)
    return int(np.minimum(sides, summary["r"].astype("Float64").fillna(np.inf).astype(float)).max())


def _relative_values(summary: pd.DataFrame, values: pd.DataFrame, run: str) -> pd.DataFrame:
    columns = ["matrix", "layer", "kind", "d_out", "d_in", "r", "sigma_1"]
    places = summary.loc[summary["run"] == run, columns]
    joined = values[values["run"] == run].merge(places.astype({"layer": str}), on="matrix")
    joined["relative"] = joined["sigma"] / joined["sigma_1"].where(joined["sigma_1"] > 0)
    return joined[joined["relative"] >= FLOOR]


def _depth_palette(layers: Sequence[str]) -> dict[str, tuple[float, float, float]]:
    """A hue by depth, without viridis' last tenth, too pale for a line on white; grey for no layer."""
    numbered = [layer for layer in layers if layer != NO_LAYER]
    hues = mpl.colormaps["viridis"](np.linspace(0, 0.9, max(len(numbered), 1)))
    return dict(zip(numbered, map(to_rgb, hues), strict=False)) | ({NO_LAYER: GREY} if NO_LAYER in layers else {})


def _draw_spectra(
    axes: Axes, relative: pd.DataFrame, kinds: list[str], palette: dict[str, tuple[float, float, float]]
) -> None:
    dashes = {kind: DASHES[position % len(DASHES)] for position, kind in enumerate(kinds)}
    longest = int(relative["index"].max()) if len(relative) else 1
    marker = {"marker": "o", "markersize": 2.5, "markeredgewidth": 0} if longest <= 16 else {}
    hue = {"hue": "layer", "palette": palette} if len(relative) else {}
    crowded = {"linewidth": 0.4, "alpha": 0.8} if relative["matrix"].nunique() > LINES_UNCROWDED else {}
    sns.lineplot(
        relative, x="index", y="relative", style="kind", dashes=dashes,
        units="matrix", estimator=None, legend=False, ax=axes, **hue, **marker, **crowded,
    )  # fmt: skip
    axes.set(xlabel="index $i$", ylabel=r"$\sigma_i\,/\,\sigma_1$", yscale="log")
    axes.set_ylim(min(axes.get_ylim()[0], 0.09), 1.3)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    sns.despine(ax=axes)
    handles = [
        Line2D([], [], color="0.25", dashes=dash or (None, None), label=_cut(kind))
        for kind, dash in dashes.items()
        if kinds != [WHOLE]
    ]
    handles += [Line2D([], [], label=label, **RANDOM_LINE) for label in _random_labels(relative)]
    axes.legend(
        handles=handles, framealpha=0.7, edgecolor="none", loc="lower left", handlelength=2.6, borderaxespad=0.2
    )


def _draw_random(axes: Axes, relative: pd.DataFrame) -> None:
    """A line for every shape and rank: it is the same for all matrices of those."""
    for _, group in relative.groupby(["d_out", "d_in", "r"], dropna=False, sort=False):
        line = group[group["matrix"] == group["matrix"].mode()[0]].sort_values("index")  # the longest above FLOOR
        axes.plot(line["index"], line["sigma_random"] / line["sigma_random"].iloc[0], zorder=3, **RANDOM_LINE)


def _random_labels(relative: pd.DataFrame) -> list[str]:
    dense = relative["r"].isna()
    labels = {"Gaussian": dense, "random factors": ~dense}
    return [label for label, held in labels.items() if held.any()]


def _draw_depth_key(axes: Axes, palette: dict[str, tuple[float, float, float]]) -> None:
    rows = np.arange(len(palette)).reshape(-1, 1)
    axes.pcolormesh(rows, cmap=ListedColormap(list(palette.values())))
    axes.set(xticks=[], ylabel="layer")
    step = int(np.ceil(len(palette) / LAYERS_ANNOTATED))
    axes.set_yticks(np.arange(0, len(palette), step) + 0.5, [_cut(layer) for layer in palette][::step])
    axes.tick_params(length=0)
    sns.despine(ax=axes, left=True, bottom=True)


def _cut(label: str) -> str:
    return label if len(label) <= LABEL_LETTERS else f"…{label[1 - LABEL_LETTERS :]}"


def _draw_rank_map(axes: Axes, ranks: pd.DataFrame, largest: int) -> None:
    annotated = len(ranks) <= LAYERS_ANNOTATED
    sns.heatmap(
        ranks.rename(columns=_cut), vmin=0, vmax=max(largest, 1), cmap="Blues", yticklabels=False,
        annot=annotated, annot_kws={"fontsize": 6}, fmt=".1f", cbar=not annotated,
        linewidths=0.4, linecolor="white", ax=axes,
    )  # fmt: skip
    axes.invert_yaxis()
    axes.set(xlabel="", ylabel="")
    axes.set_title("effective rank", loc="left")
    axes.tick_params(axis="x", rotation=90 if max(map(len, ranks.columns)) > UPRIGHT_FROM else 0, length=0)
