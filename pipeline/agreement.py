"""Agreement between people who judged the same things: kappa, with an interval.

Chance-corrected, since two experts who call everything real agree on everything.  The interval draws
whole images again (percentile bootstrap), because the answers to one image belong together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Kappa:
    """Agreement of raters on n items; value and limits are None where they are not defined.

    It is not defined where every answer is the same: there is nothing that chance could not explain.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int


def cohen_value(first: np.ndarray, second: np.ndarray) -> float:
    """Cohen's kappa of two binary ratings (N,) (Cohen 1960, Educ. Psychol. Meas. 20:37); NaN undefined."""
    observed = float(np.mean(first == second))
    p, q = float(np.mean(first)), float(np.mean(second))
    by_chance = p * q + (1 - p) * (1 - q)
    return float("nan") if by_chance >= 1 else (observed - by_chance) / (1 - by_chance)


def fleiss_value(ratings: np.ndarray) -> float:
    """Fleiss' kappa of binary ratings (N, R), R >= 2 raters (Fleiss 1971, Psychol. Bull. 76:378)."""
    n, raters = ratings.shape
    yes = ratings.sum(axis=1).astype(float)
    no = raters - yes
    agreed = float(np.mean((yes * (yes - 1) + no * (no - 1)) / (raters * (raters - 1))))
    p = float(yes.sum()) / (n * raters)
    by_chance = p * p + (1 - p) * (1 - p)
    return float("nan") if by_chance >= 1 else (agreed - by_chance) / (1 - by_chance)


def kappa(ratings: np.ndarray, *, level: float = 0.95, draws: int = 2000, seed: int = 0) -> Kappa:
    """Kappa of binary ratings (N, R) with its interval: Cohen's for two raters, Fleiss' for more.

    Fewer than two raters or no item: all None.  Raises ValueError for another shape.
    """
    ratings = np.asarray(ratings, dtype=bool)
    if ratings.ndim != 2:
        raise ValueError(f"ratings are (items, raters), not {ratings.shape}")
    n, raters = ratings.shape
    if n == 0 or raters < 2:
        return Kappa(None, None, None, n)
    measure: Callable[[np.ndarray], float]
    measure = fleiss_value if raters > 2 else lambda r: cohen_value(r[:, 0], r[:, 1])
    value = measure(ratings)
    if not np.isfinite(value):
        return Kappa(None, None, None, n)
    rng = np.random.default_rng(seed)
    drawn = np.array([measure(ratings[rng.integers(0, n, n)]) for _ in range(draws)])
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < draws / 2:
        return Kappa(value, None, None, n)
    low, high = np.percentile(drawn, [50 * (1 - level), 100 - 50 * (1 - level)])
    return Kappa(value, float(low), float(high), n)
