"""The interval of a percentage of ring sideroblasts when the reader itself errs.

A count of what was *read* as ring is corrected by the errors that the chain of finder and reader made on
cells of known type (Rogan and Gladen, Am. J. Epidemiol. 107, 71, 1978).  The doubt of the count and of
each error rate are joined by melding their exact confidence distributions (Fay, Proschan and Brittain,
Biometrics 71, 146, 2015; for prevalence with an imperfect test: Bayer, Fay and Graubard, arXiv
2205.13494).  Where the errors are nil and perfectly known, it is Clopper and Pearson's interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np

from pipeline.statistics import MOST_CELLS, spans

DRAWS = 4096  # points of one scrambled Sobol sequence, the same for every case


@dataclass(frozen=True)
class ReaderErrors:
    """What finder and reader made of erythroblasts of known type, summed over measured cases.

    ring_read, ring_missed: true ring sideroblasts that were counted, read as ring or as another type;
    other_read, other_wrong: other erythroblasts counted, read as another type or wrongly as ring;
    ring_lost, other_lost: not found or indeterminate; false_cells: counted but no erythroblasts, of which
    false_rings were read as ring.  `overdispersion` is how many times more the error rates differ between
    cases than chance explains (1: not at all); counts are divided by it.
    """

    ring_read: int
    ring_missed: int
    other_read: int
    other_wrong: int
    ring_lost: int = 0
    other_lost: int = 0
    false_cells: int = 0
    false_rings: int = 0
    overdispersion: float = 1.0
    source: str = ""

    @property
    def sensitivity(self) -> float:
        """Share of counted ring sideroblasts that are read as such."""
        return self.ring_read / max(1, self.ring_read + self.ring_missed)

    @property
    def specificity(self) -> float:
        """Share of other counted erythroblasts that are read as other."""
        return self.other_read / max(1, self.other_read + self.other_wrong)

    @property
    def precision(self) -> float:
        """Share of what is counted that is an erythroblast."""
        true = self.ring_read + self.ring_missed + self.other_read + self.other_wrong
        return true / max(1, true + self.false_cells)


def corrected_estimate(successes: int, n: int, errors: ReaderErrors) -> float | None:
    """The share of ring sideroblasts, in [0, 1], that would be read as `successes` of `n`; None for n = 0."""
    if n == 0:
        return None
    rings, others = _rings(errors), _others(errors)
    value = _true_share(
        np.array(successes / n),
        np.array(errors.sensitivity),
        np.array(errors.specificity),
        np.array(1 - errors.precision),
        np.array(errors.false_rings / max(1, errors.false_cells)),
        np.array(rings[0] / max(1, sum(rings))),
        np.array(others[0] / max(1, sum(others))),
    )
    return float(value)


def corrected_interval(
    successes: float, n: float, errors: ReaderErrors, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the true share of ring sideroblasts, sampling and reader error included, in [0, 1].

    n = 0 gives (0, 1).
    `successes` may be fractional, for planning.  Raises ValueError unless 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no proportion")
    if n == 0:
        return 0.0, 1.0
    tail = (1.0 - level) / 2.0
    low, high = (_end(successes, n, errors, low=low) for low in (True, False))
    return float(np.quantile(low, tail)), float(np.quantile(high, 1.0 - tail))


def _end(successes: float, n: float, errors: ReaderErrors, *, low: bool) -> np.ndarray:
    """Draws of the true share, every figure taken towards one end of it.

    More false cells lower the share where more of them than of all cells are read as rings, and raise it
    else: of each draw both are tried.
    """
    read = _confidence(successes, n, _points()[:, 0], low)
    shares = [_true_share(read, *_error_draws(errors, low, few)) for few in (True, False)]
    return np.minimum(*shares) if low else np.maximum(*shares)


@lru_cache(maxsize=16)
def _error_draws(errors: ReaderErrors, low: bool, few: bool) -> tuple[np.ndarray, ...]:
    """Draws of the figures of `_true_share` after the first, each taken towards one end of the share.

    `few`: the share of false cells is taken towards none of them.
    """
    u = _points()
    rings, others = _rings(errors), _others(errors)
    true = sum(rings[:1]) + sum(others[:1])
    d = max(1.0, errors.overdispersion)
    return (
        _confidence(errors.ring_read / d, rings[0] / d, u[:, 1], not low),
        _confidence(errors.other_read / d, others[0] / d, u[:, 2], low),
        _confidence(errors.false_cells / d, (true + errors.false_cells) / d, u[:, 3], few),
        _confidence(errors.false_rings / d, errors.false_cells / d, u[:, 4], not low),
        _confidence(rings[0] / d, sum(rings) / d, u[:, 5], not low),
        _confidence(others[0] / d, sum(others) / d, u[:, 6], low),
    )


def more_cells(successes: int, n: int, limit: float, errors: ReaderErrors, level: float = 0.95) -> int | None:
    """How many more cells, at the proportion seen, until the corrected interval excludes a limit.

    0 where it does.  None where counting cannot settle it: the doubt that is left is the reader's own.
    """

    def open_at(cells: int) -> bool:
        return spans(*corrected_interval(successes * cells / n, cells, errors, level), limit)

    if n == 0:
        return None
    if not open_at(n):
        return 0
    # What no count settles is seen first, so that a hopeless search is not made.
    if open_at(MOST_CELLS):
        return None
    settled = 2 * n
    while open_at(settled):
        settled *= 2
    still_open = settled // 2 if settled > 2 * n else n
    while settled - still_open > max(1, settled // 500):
        middle = (settled + still_open) // 2
        if open_at(middle):
            still_open = middle
        else:
            settled = middle
    return settled - n


def _rings(errors: ReaderErrors) -> tuple[int, int]:
    return errors.ring_read + errors.ring_missed, errors.ring_lost


def _others(errors: ReaderErrors) -> tuple[int, int]:
    return errors.other_read + errors.other_wrong, errors.other_lost


def _true_share(
    read: np.ndarray,
    sensitivity: np.ndarray,
    specificity: np.ndarray,
    false: np.ndarray,
    false_ring: np.ndarray,
    ring_kept: np.ndarray,
    other_kept: np.ndarray,
) -> np.ndarray:
    """Share of rings among all erythroblasts from the share read as ring among all that was counted.

    In turn: boxes that hold no erythroblast are taken out, the reader's two errors are undone, and those
    that were lost are put back.
    """
    of_true = np.clip((read - false * false_ring) / np.maximum(1 - false, 1e-6), 0, 1)
    power = np.maximum(sensitivity + specificity - 1, 1e-6)
    counted = np.clip((of_true + specificity - 1) / power, 0, 1)
    rings, others = counted * np.maximum(other_kept, 1e-6), (1 - counted) * np.maximum(ring_kept, 1e-6)
    return rings / np.maximum(rings + others, 1e-12)


def _confidence(successes: float, n: float, u: np.ndarray, low: bool) -> np.ndarray:
    """Quantiles of the lower or upper confidence distribution of a proportion (Clopper and Pearson's)."""
    from scipy.special import betaincinv

    if low:
        return np.zeros_like(u) if successes <= 0 else betaincinv(successes, n - successes + 1, u)
    return np.ones_like(u) if successes >= n else betaincinv(successes + 1, n - successes, u)


@cache
def _points() -> np.ndarray:
    from scipy.stats import qmc

    points = qmc.Sobol(7, scramble=True, seed=20261121).random(DRAWS)
    return np.clip(points, 1e-12, 1 - 1e-12)
