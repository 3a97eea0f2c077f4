"""Scores of text tasks against scikit-learn and SciPy."""

import pytest
import torch
from scipy import stats
from sklearn import metrics

from experiments.tasks.metrics import class_counts, products, score, spearman


def means(quantities: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: float(rows.double().mean()) for name, rows in quantities.items()}


@pytest.mark.parametrize("classes", [2, 5])
def test_accuracy_mcc_and_f1_are_those_of_scikit_learn(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(classes, (200,), generator=generator)
    logits = torch.randn(200, classes, generator=generator) + 1.5 * torch.nn.functional.one_hot(labels, classes)
    guesses = logits.argmax(1)
    found = means(class_counts(guesses, labels, classes))
    assert score("accuracy", found) == pytest.approx(metrics.accuracy_score(labels, guesses))
    assert score("mcc", found) == pytest.approx(metrics.matthews_corrcoef(labels, guesses))
    if classes == 2:
        assert score("f1", found) == pytest.approx(metrics.f1_score(labels, guesses))


def test_correlations_are_those_of_scipy_with_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(6, (300,), generator=generator).float()
    guesses = values + torch.randn(300, generator=generator).round()
    assert score("pearson", means(products(guesses, values))) == pytest.approx(stats.pearsonr(guesses, values)[0])
    assert spearman(guesses, values) == pytest.approx(stats.spearmanr(guesses, values)[0])


def test_a_model_that_always_says_the_same_has_no_correlation() -> None:
    labels = torch.tensor([0, 1, 1, 0])
    assert score("mcc", means(class_counts(labels * 0, labels, 2))) == 0.0
    assert score("f1", means(class_counts(labels * 0, labels * 0, 2))) == 0.0
    assert score("pearson", means(products(torch.full((4,), 0.1), labels))) == 0.0
