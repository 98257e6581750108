"""Means with 95 % intervals, for which whole source images are drawn again: the cells of one image are no
independent draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.statistics import clopper_pearson

Array = np.ndarray[Any, Any]
Interval = tuple[float, float, float]  # value, low, high


def interval(
    values: Array,
    groups: Sequence[str],
    draws: int = 1000,
    seed: int = 0,
    *,
    span: tuple[float, float] = (0.0, 1.0),
) -> Interval:
    """Mean and 95 % percentile bootstrap over groups; values that are not numbers are left out.

    Of fewer than two groups there is nothing to draw from: low and high are NaN.  Where every value is the
    same whole number (a question that all answer alike) drawing again has no width; then the share of groups
    that may answer otherwise is Clopper and Pearson's, and `span` the least and the most that they may say.
    """
    values = np.asarray(values, float)
    known = np.isfinite(values)
    if not known.any():
        return float("nan"), float("nan"), float("nan")
    values, groups = values[known], [g for g, k in zip(groups, known, strict=True) if k]
    names, index = np.unique(np.asarray(groups), return_inverse=True)
    mean = float(values.mean())
    if len(names) < 2:
        return mean, float("nan"), float("nan")
    if mean in (*span, 0.0) and (values == mean).all():
        others = 1 - clopper_pearson(len(names), len(names))[0]
        return mean, mean - others * (mean - span[0]), mean + others * (span[1] - mean)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    pick = np.random.default_rng(seed).integers(len(names), size=(draws, len(names)))
    means = sums[pick].sum(axis=1) / counts[pick].sum(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return mean, float(low), float(high)


def without_interval(rows: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Which rows of figures, by name, have a value without an interval, and why, for `not_measured`."""
    lone = [
        name
        for name, row in rows.items()
        if any(isinstance(v, tuple) and math.isfinite(v[0]) and math.isnan(v[1]) for v in row.values())
    ]
    return [f"intervals of {', '.join(lone)}: the cells are of one source image"] if lone else []
