"""Scores of predictions, from the means over a split of what each row contributes.

Accuracy, MCC and F1 come from how often classes are true, predicted, and both; Pearson's correlation from means of
products. They are exact: a mean of counts is a count divided by the rows. Spearman's needs the rows themselves.
A correlation is 0 where a side is constant, as is MCC.
"""

from collections.abc import Mapping
from typing import Literal

import torch
from jaxtyping import Float, Shaped
from scipy.stats import rankdata
from torch import Tensor

Metric = Literal["accuracy", "mcc", "f1", "pearson", "spearman"]
OF_CLASSES: tuple[Metric, ...] = ("accuracy", "mcc", "f1")
OF_NUMBERS: tuple[Metric, ...] = ("pearson", "spearman")
ROUNDING = 1e-6  # of a perfect correlation


def metric_range(metric: Metric) -> tuple[float, float]:
    """The least and the greatest value that it can have."""
    return (0.0, 1.0) if metric in ("accuracy", "f1") else (-1.0 - ROUNDING, 1.0 + ROUNDING)


def class_counts(
    guesses: Shaped[Tensor, " rows"], labels: Shaped[Tensor, " rows"], classes: int
) -> dict[str, Float[Tensor, " rows"]]:
    """For each row 0 or 1: is it right, is class k true, predicted, both."""
    counts = {"right": guesses == labels}
    for k in range(classes):
        counts |= {f"true/{k}": labels == k, f"guessed/{k}": guesses == k, f"both/{k}": (labels == k) & (guesses == k)}
    return {name: count.double() for name, count in counts.items()}


def products(guesses: Float[Tensor, " rows"], values: Float[Tensor, " rows"]) -> dict[str, Float[Tensor, " rows"]]:
    """For each row guess x and value y and their products, in float64 on the CPU."""
    x, y = guesses.detach().cpu().double(), values.detach().cpu().double()
    return {"x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y}


def score(metric: Metric, means: Mapping[str, float]) -> float:
    """A metric from the means of `class_counts` or `products`."""
    if metric == "accuracy":
        return means["right"]
    if metric == "mcc":
        return _mcc(means)
    if metric == "f1":  # of class 1
        true, guessed, both = (means[f"{name}/1"] for name in ("true", "guessed", "both"))
        return 2 * both / (true + guessed) if true + guessed else 0.0
    covariance = means["xy"] - means["x"] * means["y"]
    variances = (means["xx"] - means["x"] ** 2) * (means["yy"] - means["y"] ** 2)
    return float(covariance / variances**0.5) if variances > 0 else 0.0


def spearman(guesses: Tensor, values: Tensor) -> float:
    """Pearson's correlation of the ranks; ties have the mean of their ranks."""
    ranks = [torch.from_numpy(rankdata(side.cpu().numpy())) for side in (guesses, values)]
    return score("pearson", {name: float(rows.mean()) for name, rows in products(*ranks).items()})


def _mcc(means: Mapping[str, float]) -> float:
    """R_K of Gorodkin 2004 (doi 10.1016/j.compbiolchem.2004.09.006), with two classes Matthews' coefficient."""
    classes = [name.partition("/")[2] for name in means if name.startswith("true/")]
    true, guessed = ([means[f"{side}/{k}"] for k in classes] for side in ("true", "guessed"))
    covariance = means["right"] - sum(t * g for t, g in zip(true, guessed, strict=True))
    spread = (1 - sum(t * t for t in true)) * (1 - sum(g * g for g in guessed))
    return covariance / spread**0.5 if spread > 1e-12 else 0.0
