"""The statistics of a count: intervals of a proportion, of ratios, and of fields that differ.

Proportions are in [0, 1] here; percentages are made where they are reported.  A Wald interval is not
offered: at the small counts of a differential it is too narrow and at zero it has no width at all
(Brown, Cai and DasGupta 2001, Statistical Science 16:101).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

Interval = Literal["clopper-pearson", "wilson"]

# More cells than anyone would count: a limit that would need them is not settled by counting.
MOST_CELLS = 10_000_000


def clopper_pearson(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Exact interval of a proportion (Clopper and Pearson 1934, Biometrika 26:404), central tails.

    Rounded outward to whole percent it is the table of Rümke (1978) that CLSI H20 prints.  `successes`
    may be fractional, for planning.  n = 0 says nothing: (0, 1).  Raises ValueError unless
    0 <= successes <= n and 0 < level < 1.
    """
    from scipy.special import betaincinv

    _check(successes, n, level)
    if n == 0:
        return 0.0, 1.0
    tail = (1.0 - level) / 2.0
    low = 0.0 if successes == 0 else float(betaincinv(successes, n - successes + 1.0, tail))
    high = 1.0 if successes == n else float(betaincinv(successes + 1.0, n - successes, 1.0 - tail))
    return low, high


def wilson(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Score interval of a proportion (Wilson 1927, JASA 22:209); n = 0 gives (0, 1).

    Raises ValueError as `clopper_pearson` does.
    """
    _check(successes, n, level)
    if n == 0:
        return 0.0, 1.0
    z = normal_quantile(level)
    p = successes / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    # At the ends the formula gives 0 and 1 but for rounding errors.
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == n else min(1.0, middle + half)
    return low, high


def proportion_interval(
    successes: float, n: float, interval: Interval = "clopper-pearson", level: float = 0.95
) -> tuple[float, float]:
    """The interval of a proportion by the method of a name; raises ValueError for another name."""
    if interval == "clopper-pearson":
        return clopper_pearson(successes, n, level)
    if interval == "wilson":
        return wilson(successes, n, level)
    raise ValueError(f"interval '{interval}' is not known; known are: clopper-pearson, wilson.")


def per_hundred_interval(
    events: int, base: int, interval: Interval = "clopper-pearson", level: float = 0.95
) -> tuple[float, float | None]:
    """Interval of 100 x events / base where events are not part of the base (NRBC per 100 WBC).

    Given their sum, the events are binomial; the interval of that proportion p is carried over by
    100 p / (1 - p) (Przyborowski and Wilenski 1940).  Without a base there is no upper end: None.
    """
    low, high = proportion_interval(events, events + base, interval, level)
    return 100.0 * low / (1.0 - low), 100.0 * high / (1.0 - high) if high < 1 else None


def ratio_interval(
    numerator: int, denominator: int, level: float = 0.95
) -> tuple[float, float, float] | tuple[None, None, None]:
    """Ratio of two counts and its interval on the log scale, exp(ln(M/E) ± z sqrt(1/M + 1/E)).

    All None where the denominator is 0.  Where the numerator is 0 the ratio is 0 and its logarithm
    has no interval: the limits are those of p / (1 - p) with p by Clopper-Pearson.
    """
    if numerator < 0 or denominator < 0:
        raise ValueError("counts are not negative")
    if denominator == 0:
        return None, None, None
    ratio = numerator / denominator
    if numerator == 0:
        high = clopper_pearson(0, denominator, level)[1]
        return 0.0, 0.0, high / (1 - high) if high < 1 else math.inf
    half = normal_quantile(level) * math.sqrt(1 / numerator + 1 / denominator)
    return ratio, math.exp(math.log(ratio) - half), math.exp(math.log(ratio) + half)


def largest_remainder(counts: Sequence[int], decimals: int = 1, total: float = 100.0) -> list[float]:
    """Percentages of counts that add to `total` exactly at the given decimals (Hamilton's method).

    A zero count stays 0; of equal remainders the larger count is rounded up, then the earlier one.
    Counts that add to 0 give zeros.
    """
    if any(c < 0 for c in counts):
        raise ValueError("counts are not negative")
    whole = sum(counts)
    if whole == 0:
        return [0.0] * len(counts)
    units = round(total * 10**decimals)
    # Integers throughout, so that no remainder is lost or won by floating point.
    parts = [divmod(int(c) * units, int(whole)) for c in counts]
    left = units - sum(q for q, _ in parts)
    order = sorted(range(len(counts)), key=lambda i: (-parts[i][1], -counts[i], i))
    up = set(order[:left])
    return [round((q + (i in up)) / 10**decimals, decimals) for i, (q, _) in enumerate(parts)]


def bootstrap_proportions(
    counts: np.ndarray,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    denominators: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Percentile intervals of class proportions when whole fields are drawn again.

    `counts` (F, K) are cells of K classes in F fields, `denominators` (F,) the cells that a field adds
    to the denominator, by default its row sum.  Fields are drawn with replacement (the cluster
    bootstrap, Davison and Hinkley 1997, section 3.8), so the width shows whether classes lie in
    clusters, which an interval of independent cells cannot.  Returns low (K,) and high (K,) in
    [0, 1]; None where fewer than two fields hold cells, where there is nothing to draw.
    """
    table = np.asarray(counts, dtype=np.int64)
    base = table.sum(axis=1) if denominators is None else np.asarray(denominators, dtype=np.int64)
    table, base = table[base > 0], base[base > 0]
    fields = len(base)
    if fields < 2 or draws < 1:
        return None
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(fields, np.full(fields, 1.0 / fields), size=draws)  # (draws, F)
    shares = (weights @ table) / (weights @ base)[:, None]
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(shares, [tail, 100.0 - tail], axis=0)
    return low, high


def spans(low: float, high: float, limit: float) -> bool:
    """Whether an interval leaves open on which side of a limit the value lies.

    A limit is read as "at or over", so an interval that begins at the limit has settled it.
    """
    return low < limit <= high


def cells_to_settle(
    successes: int, n: int, limit: float, interval: Interval = "clopper-pearson", level: float = 0.95
) -> int | None:
    """How many more cells, at the proportion seen so far, until the interval excludes a limit.

    0 where it does already.  None where counting cannot settle it: nothing counted yet, the proportion
    is the limit itself, or more than ten million cells would be needed.
    """

    def open_at(cells: int) -> bool:
        low, high = proportion_interval(successes * cells / n, cells, interval, level)
        return spans(low, high, limit)

    _check(successes, n, level)
    if n == 0:
        return None
    if not open_at(n):
        return 0
    if successes / n == limit:
        return None
    # The interval shrinks as cells are added at a constant proportion, so the answer is bracketed
    # by doubling and found by halving.
    settled = 2 * n
    while open_at(settled):
        if settled > MOST_CELLS:
            return None
        settled *= 2
    still_open = settled // 2 if settled > 2 * n else n
    while settled - still_open > 1:
        middle = (settled + still_open) // 2
        if open_at(middle):
            still_open = middle
        else:
            settled = middle
    return settled - n


def normal_quantile(level: float) -> float:
    """z of a central interval: 1.96 for 0.95."""
    from scipy.special import ndtri

    return float(ndtri(0.5 + level / 2.0))


def _check(successes: float, n: float, level: float) -> None:
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no proportion")
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not at {level}")
