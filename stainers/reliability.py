"""Does a confidence mean what it says: its correlation with the error, its bins, its AUROC, a picture of
them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from storage.whole_files import write_figure

Array = np.ndarray[Any, Any]

BINS = 8
MIN_FOR_CORRELATION = 3


def auroc(negative: Array, positive: Array) -> float:
    """Chance that a positive scores above a negative; ties count half."""
    values = np.concatenate([negative, positive])
    order = np.argsort(values, kind="stable")
    ranks = np.empty(len(values))
    ranks[order] = np.arange(1, len(values) + 1)
    for value in np.unique(values):
        same = values == value
        ranks[same] = ranks[same].mean()
    n, p = len(negative), len(positive)
    return float((ranks[n:].sum() - p * (p + 1) / 2) / (n * p))


def _pearson(a: Array, b: Array) -> float:
    if len(a) < MIN_FOR_CORRELATION or a.std() < 1e-9 or b.std() < 1e-9:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: Array) -> Array:
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(count)
    return np.asarray((last - (count - 1) / 2)[place])


def correlations(
    confidence: Array, error: Array, groups: Sequence[str], *, draws: int = 400, seed: int = 0
) -> dict[str, Any]:
    """Pearson with a 95 % bootstrap interval over groups, Spearman, and n.

    Of fewer than two groups the ends of the interval are NaN: there is nothing to draw from.
    """
    confidence, error = np.asarray(confidence, float), np.asarray(error, float)
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    members = [np.flatnonzero(index == i) for i in range(len(names))]
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws if len(names) > 1 else 0):
        rows = np.concatenate([members[i] for i in rng.integers(len(names), size=len(names))])
        found.append(_pearson(confidence[rows], error[rows]))
    known = np.asarray(found)[np.isfinite(found)]
    low, high = np.percentile(known, [2.5, 97.5]) if len(known) else (float("nan"),) * 2
    return {
        "pearson": (_pearson(confidence, error), float(low), float(high)),
        "spearman": _pearson(_ranks(confidence), _ranks(error)),
        "n": len(confidence),
    }


def reliability_bins(
    confidence: Array, errors: Mapping[str, Array], bins: int = BINS
) -> list[dict[str, float]]:
    """Patches in bins of equal number by rising confidence: range, n, mean confidence and mean errors."""
    order = np.argsort(confidence, kind="stable")
    rows = []
    for part in np.array_split(order, min(bins, len(order))):
        row = {"low": float(confidence[part].min()), "high": float(confidence[part].max()), "n": len(part)}
        row["confidence"] = float(confidence[part].mean())
        shown = [k for k in errors if k.startswith(("rmse", "structure"))]
        rows.append(row | {k: float(errors[k][part].mean()) for k in shown})
    return rows


def draw_reliability(
    path: Path,
    confidence: Array,
    errors: Mapping[str, Array],
    spoilt: Mapping[str, tuple[Array, Mapping[str, Array]]],
    *,
    threshold: float | None,
    title: str,
) -> None:
    """Left: every patch and the mean of each bin, raw and of the structure.  Right: how the confidence of
    unspoilt and spoilt inputs is spread, with the threshold of the card."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), dpi=110)
    left, right = figure.subplots(1, 2)
    bins = reliability_bins(confidence, errors)
    for key, colour, label in (
        ("rmse", "#c2662d", "RMSE"),
        ("structure_error", "#1f5fa8", "structure not shown, share"),
    ):
        left.plot(confidence, errors[key], ".", color=colour, alpha=0.35, markersize=5)
        r = _pearson(np.asarray(confidence, float), np.asarray(errors[key], float))
        left.plot(
            [b["confidence"] for b in bins],
            [b[key] for b in bins],
            "o-",
            color=colour,
            label=f"{label}: r = {r:.2f}",
        )
    left.set(xlabel="confidence", ylabel="true error", ylim=(0, None))
    left.legend(loc="best", fontsize=8)
    left.grid(alpha=0.3)
    edges = np.linspace(0, 1, 26)
    groups = {"unspoilt": np.asarray(confidence), **{k: np.asarray(v[0]) for k, v in spoilt.items()}}
    for (name, values), colour in zip(
        groups.items(), ("#1f5fa8", "#c2662d", "#5a8f3c", "#8a4fa0"), strict=False
    ):
        found = "" if name == "unspoilt" else f", AUROC {auroc(-np.asarray(confidence), -values):.3f}"
        right.hist(values, edges, histtype="step", color=colour, label=name.replace("_", " ") + found)
    if threshold is not None:
        right.axvline(threshold, color="black", linestyle=":", label="threshold of the card")
    right.set(xlabel="confidence", ylabel="patches")
    right.legend(loc="best", fontsize=8)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    write_figure(path, figure)
