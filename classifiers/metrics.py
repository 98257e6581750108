"""Measures of a classifier that cannot mislead, from labels and probabilities alone.

Top-1 accuracy is the share of cells named right.  It is not the mean of one-vs-rest accuracies, which
with K classes stays above 1 - 2/K however poor the classifier is: see docs/classification.md.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from pipeline.statistics import wilson


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts (K, K): row truth, column prediction."""
    matrix = np.zeros((classes, classes), np.int64)
    np.add.at(matrix, (truth, predicted), 1)
    return matrix


def f1_scores(matrix: np.ndarray) -> np.ndarray:
    """F1 of every class (K,), NaN for a class neither present nor predicted."""
    hits = np.diag(matrix).astype(float)
    total = matrix.sum(0) + matrix.sum(1)
    return np.where(total > 0, 2 * hits / np.maximum(total, 1), np.nan)


def macro_f1(matrix: np.ndarray) -> float:
    """Mean F1 of the classes that are present in the truth."""
    present = matrix.sum(1) > 0
    return float(f1_scores(matrix)[present].mean()) if present.any() else float("nan")


def mean_binary_accuracy(precision: float, recall: float, classes: int) -> float:
    """What a K-class classifier of this micro-averaged precision and recall has as mean binary accuracy.

    Of one cell's K yes-or-no questions recall are true positives, recall / precision were answered yes; wrong
    are the yes answers that miss and the class that was not named.  It is no share of cells named right.
    """
    false_positive = recall / precision - recall
    false_negative = 1 - recall
    return 1 - (false_positive + false_negative) / classes


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> float:
    """ECE over equal-width bins of confidence (Guo et al. 2017, eq. 3)."""
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    error = 0.0
    for b in range(bins):
        inside = which == b
        if inside.any():
            error += inside.mean() * abs(float(right[inside].mean()) - float(confidence[inside].mean()))
    return float(error)


def auroc(negative: np.ndarray, positive: np.ndarray) -> float:
    """The chance that a positive scores above a negative, ties half (Mann-Whitney)."""
    if len(negative) == 0 or len(positive) == 0:
        return float("nan")
    ordered = np.sort(negative)
    below = np.searchsorted(ordered, positive, side="left")
    level = np.searchsorted(ordered, positive, side="right") - below
    return float((below + level / 2).mean() / len(negative))


def one_vs_rest_auc(truth: np.ndarray, probabilities: np.ndarray) -> list[float]:
    """AUROC of each class against all others, NaN for an absent class."""
    return [
        auroc(probabilities[truth != k, k], probabilities[truth == k, k])
        for k in range(probabilities.shape[1])
    ]


def fit_temperature(logits: np.ndarray, truth: np.ndarray, weights: np.ndarray | None = None) -> float:
    """The temperature in [0.25, 8] with the least, weighted, negative log-likelihood (Guo et al. 2017)."""

    def loss(t: float) -> float:
        scaled = logits / t
        scaled = scaled - scaled.max(1, keepdims=True)
        each = np.log(np.exp(scaled).sum(1)) - scaled[np.arange(len(truth)), truth]
        return float(np.average(each, weights=weights))

    grid = np.geomspace(0.25, 8, 400)
    return float(grid[int(np.argmin([loss(t) for t in grid]))])


def bootstrap_macro_f1(
    truth: np.ndarray, predicted: np.ndarray, classes: int, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Percentile interval (95 %) of macro-F1 over resampled cells."""
    random = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        i = random.integers(0, len(truth), len(truth))
        values.append(macro_f1(confusion(truth[i], predicted[i], classes)))
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def summary(truth: np.ndarray, probabilities: np.ndarray, names: tuple[str, ...]) -> dict[str, Any]:
    """All measures of cells with class indices `truth` (N,) and probabilities (N, K)."""
    predicted = probabilities.argmax(1)
    matrix = confusion(truth, predicted, len(names))
    right = predicted == truth
    f1, auc = f1_scores(matrix), one_vs_rest_auc(truth, probabilities)
    per_class = {}
    for k, name in enumerate(names):
        hits, present, named = int(matrix[k, k]), int(matrix[k].sum()), int(matrix[:, k].sum())
        if present == 0 and named == 0:
            continue
        per_class[name] = {
            "n": present,
            "precision": hits / named if named else None,
            "precision_interval": wilson(hits, named),
            "recall": hits / present if present else None,
            "recall_interval": wilson(hits, present),
            "f1": float(f1[k]),
            "auc_one_vs_rest": None if math.isnan(auc[k]) else auc[k],
        }
    n, k = len(truth), len(names)
    binary = (
        [(n - matrix[i].sum() - matrix[:, i].sum() + 2 * matrix[i, i]) / n for i in range(k)] if n else []
    )
    return {
        "n": n,
        "top1": float(right.mean()) if n else None,
        "top1_interval": wilson(int(right.sum()), n),
        "macro_f1": macro_f1(matrix),
        "macro_f1_interval": bootstrap_macro_f1(truth, predicted, k) if n else None,
        "ece": expected_calibration_error(probabilities.max(1), right) if n else None,
        "mean_confidence": float(probabilities.max(1).mean()) if n else None,
        "mean_binary_accuracy_not_top1": float(np.mean(binary)) if n else None,
        "per_class": per_class,
        "confusion": matrix.tolist(),
        "classes": list(names),
    }
