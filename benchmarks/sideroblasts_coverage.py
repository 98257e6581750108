"""What the intervals of a percentage of ring sideroblasts are worth: how often they hold the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from pipeline.reader_error import ReaderErrors, corrected_estimate, corrected_interval
from pipeline.statistics import clopper_pearson


@dataclass(frozen=True)
class Pools:
    """What finder and reader made of measured cells: rings and others (N,) 0 not counted, 1 read as other,
    2 read as ring; false (M,) whether a box without an erythroblast was read as ring."""

    rings: np.ndarray
    others: np.ndarray
    false: np.ndarray


def many_draws(
    pools: Pools,
    errors: ReaderErrors,
    *,
    fractions: Sequence[float] = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.45, 0.6),
    sizes: Sequence[int] = (50, 100, 200, 500),
    draws: int = 400,
    seed: int = 0,
) -> list[dict[str, float]]:
    """How often the intervals hold the true share when cases are drawn from what was really read.

    A draw is a marrow of a known share: its erythroblasts are drawn from the measured ones, each with what
    finder and reader made of it, so every error is in it; false boxes come at their measured rate.
    """
    rng = np.random.default_rng(seed)
    corrected_of = cache(lambda x, m: corrected_interval(x, m, errors))
    rate = len(pools.false) / max(1, len(pools.rings) + len(pools.others))
    rows = []
    for n in sizes:
        for p in fractions:
            held, width = np.zeros(2), np.zeros(2)
            estimates = []
            for _ in range(draws):
                rings = rng.binomial(n, p)
                drawn = np.concatenate([rng.choice(pools.rings, rings), rng.choice(pools.others, n - rings)])
                extra = rng.poisson(rate * n)
                x = int((drawn == 2).sum()) + (
                    int(rng.binomial(extra, pools.false.mean())) if len(pools.false) else 0
                )
                m = int((drawn > 0).sum()) + extra
                pairs = clopper_pearson(x, m), corrected_of(x, m)
                held += [a <= p <= b for a, b in pairs]
                width += [b - a for a, b in pairs]
                estimates.append((x / m, corrected_estimate(x, m, errors)))
            bias = 100 * (np.array(estimates, float).mean(0) - p)
            rows.append(
                {
                    "n": n,
                    "true_pct": 100 * p,
                    "cp_coverage": held[0] / draws,
                    "coverage": held[1] / draws,
                    "cp_width": 100 * width[0] / draws,
                    "width": 100 * width[1] / draws,
                    "bias": bias[0],
                    "corrected_bias": bias[1],
                }
            )
    return rows


@dataclass(frozen=True)
class Chain:
    """True rates of a finder and reader, for drawing what they would be measured as and what they read."""

    sensitivity: float
    specificity: float
    ring_lost: float
    other_lost: float
    false_per_cell: float
    false_ring: float

    def drawn(self, rings: int, others: int, rng: np.random.Generator) -> tuple[int, ...]:
        """(ring read, ring missed, other read, other wrong, ring lost, other lost, false, false rings)."""
        a, b = rng.binomial(rings, 1 - self.ring_lost), rng.binomial(others, 1 - self.other_lost)
        x, y = rng.binomial(a, self.sensitivity), rng.binomial(b, self.specificity)
        false = rng.poisson(self.false_per_cell * (rings + others))
        return tuple(
            int(v)
            for v in (x, a - x, y, b - y, rings - a, others - b, false, rng.binomial(false, self.false_ring))
        )


CHAINS = {
    "like the shipped one on phantoms": Chain(0.99, 0.995, 0.01, 0.015, 0.01, 0.02),
    "worse": Chain(0.93, 0.96, 0.02, 0.06, 0.05, 0.05),
}


def simulated_coverage(
    chain: Chain, *, draws: int, n_measured: tuple[int, int] = (100, 200), seed: int = 0
) -> list[dict[str, float]]:
    """How often intervals hold the true share when the measurement of the chain is drawn anew as well.

    Each draw measures the chain on `n_measured` rings and others, then reads a case of n erythroblasts of
    a known share: both doubts are in it.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for n in (100, 500):
        for p in (0.0, 0.03, 0.05, 0.15, 0.3, 0.6):
            held, width = np.zeros(2), np.zeros(2)
            for _ in range(draws):
                errors = ReaderErrors(*chain.drawn(*n_measured, rng))
                rings = int(rng.binomial(n, p))
                x, missed, y, wrong, _, _, false, false_rings = chain.drawn(rings, n - rings, rng)
                k, m = x + wrong + false_rings, x + missed + y + wrong + false
                pairs = clopper_pearson(k, m), corrected_interval(k, m, errors)
                held += [a <= p <= b for a, b in pairs]
                width += [b - a for a, b in pairs]
            rows.append(
                {
                    "n": n,
                    "true_pct": 100 * p,
                    "cp_coverage": held[0] / draws,
                    "coverage": held[1] / draws,
                    "cp_width": 100 * width[0] / draws,
                    "width": 100 * width[1] / draws,
                }
            )
    return rows


def print_coverage(rows: Sequence[dict[str, float]]) -> None:
    for row in rows:
        print(" | ".join(f"{k} {v:.3f}" for k, v in row.items()))
    for key in ("cp_coverage", "coverage", "cp_width", "width"):
        print(f"mean {key}: {np.mean([r[key] for r in rows]):.4f}, least {min(r[key] for r in rows):.3f}")
