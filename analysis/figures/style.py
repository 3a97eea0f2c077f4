"""How figures look and are saved: for a paper, and so that equal data give equal bytes."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import seaborn as sns
from matplotlib.figure import Figure

WIDTH_INCHES = 6.75  # the text width of a two-column page


def figure_style() -> dict[Any, Any]:
    """Settings for `matplotlib.rc_context`: paper context, ticks, 8 pt, editable text in the PDF."""
    sizes = ("font.size", "axes.labelsize", "axes.titlesize", "legend.title_fontsize")
    return {
        **sns.axes_style("ticks"),
        **sns.plotting_context("paper"),
        **dict.fromkeys(sizes, 8),
        **dict.fromkeys(("xtick.labelsize", "ytick.labelsize", "legend.fontsize"), 7),
        "axes.linewidth": 0.6,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.major.size": 3,
        "ytick.major.size": 3,
        "ytick.minor.width": 0.4,
        "ytick.minor.size": 1.5,
        "lines.linewidth": 0.9,
        "pdf.fonttype": 42,
        "svg.fonttype": "none",
        "svg.hashsalt": "analysis",
    }


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Saves `name`.png (300 dpi) and `name`.pdf, without dates; returns their paths."""
    png, pdf = folder / f"{name}.png", folder / f"{name}.pdf"
    with mpl.rc_context(figure_style()):
        figure.savefig(png, dpi=300)
        figure.savefig(pdf, metadata={"CreationDate": None, "ModDate": None})
    return [png, pdf]
