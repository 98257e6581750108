"""The interval of ring sideroblasts with the reader's error in it: what it becomes, and that it holds."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.reader_error import ReaderErrors, corrected_estimate, corrected_interval, more_cells
from pipeline.statistics import cells_to_settle, clopper_pearson

PERFECT = ReaderErrors(10**9, 0, 10**9, 0)
MEASURED = ReaderErrors(285, 15, 665, 35, ring_lost=5, other_lost=40, false_cells=30, false_rings=2)


@pytest.mark.parametrize(("k", "n"), [(0, 50), (1, 20), (15, 100), (60, 100), (100, 100)])
def test_a_reader_without_error_gives_clopper_and_pearsons_interval(k: int, n: int) -> None:
    assert corrected_interval(k, n, PERFECT) == pytest.approx(clopper_pearson(k, n), abs=2e-3)
    assert corrected_estimate(k, n, PERFECT) == pytest.approx(k / n, abs=1e-6)


def test_the_estimate_undoes_known_errors_exactly() -> None:
    p, e = 0.3, MEASURED
    ring_kept, other_kept = 300 / 305, 700 / 740
    rings, others = p * ring_kept, (1 - p) * other_kept
    read = rings * e.sensitivity + others * (1 - e.specificity)
    false = (rings + others) * (1 - e.precision) / e.precision
    share = (read + false * 2 / 30) / (rings + others + false)
    n = 10_000_000
    assert corrected_estimate(round(share * n), n, e) == pytest.approx(p, abs=1e-6)


def test_doubt_of_false_cells_reaches_to_both_ends_where_more_of_them_than_of_all_cells_are_rings() -> None:
    # Taken towards none for the low limit and towards many for the high one, they gave 0.0086 and 0.0265.
    mixed = ReaderErrors(95, 5, 190, 10, false_cells=10, false_rings=5)
    assert corrected_interval(15, 100, mixed)[0] < 0.0075
    mostly_rings = ReaderErrors(95, 5, 190, 10, false_cells=18, false_rings=17)
    assert corrected_interval(5, 100, mostly_rings)[1] > 0.028


def test_reader_error_widens_the_interval_and_a_larger_measurement_narrows_it() -> None:
    widths = []
    for scale in (0.2, 1, 20):
        e = ReaderErrors(
            *(round(v * scale) for v in (285, 15, 665, 35)),
            false_cells=round(30 * scale),
            false_rings=round(2 * scale),
        )
        low, high = corrected_interval(30, 100, e)
        widths.append(high - low)
    low, high = clopper_pearson(30, 100)
    assert widths[0] > widths[1] > widths[2] > high - low


def test_cases_that_differ_more_than_chance_widen_it() -> None:
    calm = corrected_interval(30, 300, MEASURED)
    spread = ReaderErrors(**{**MEASURED.__dict__, "overdispersion": 4.0})
    low, high = corrected_interval(30, 300, spread)
    assert high - low > calm[1] - calm[0]


def test_the_interval_holds_the_truth_in_95_of_100_draws_with_errors_measured_anew_each_time() -> None:
    # Both are random: the measurement of the reader, and the case that it reads.
    rng = np.random.default_rng(20261121)
    sensitivity, specificity, held, plain, n = 0.93, 0.96, 0, 0, 160
    for i in range(n):
        p = (0.02, 0.1, 0.3, 0.6)[i % 4]
        rings, others = int(rng.binomial(150, sensitivity)), int(rng.binomial(300, specificity))
        errors = ReaderErrors(rings, 150 - rings, others, 300 - others)
        cells = (100, 400)[i // 4 % 2]
        x = int(rng.binomial(cells, p * sensitivity + (1 - p) * (1 - specificity)))
        low, high = corrected_interval(x, cells, errors)
        held += low <= p <= high
        low, high = clopper_pearson(x, cells)
        plain += low <= p <= high
    assert held >= 0.95 * n
    assert plain < 0.9 * n  # which the interval of sampling alone does not do


def test_how_many_more_cells_settle_a_limit_and_when_none_do() -> None:
    assert more_cells(60, 100, 0.15, PERFECT) == 0
    assert more_cells(20, 100, 0.15, PERFECT) == pytest.approx(cells_to_settle(20, 100, 0.15), abs=4)
    assert more_cells(0, 0, 0.15, MEASURED) is None
    # 16 % read with a doubtful reader: the doubt that is left is its own.
    assert more_cells(16, 100, 0.15, ReaderErrors(27, 3, 54, 6)) is None
    more = more_cells(25, 100, 0.15, MEASURED)
    assert more is not None
    assert more > 0
    low, _ = corrected_interval(0.25 * (100 + more), 100 + more, MEASURED)
    assert low >= 0.15


def test_nothing_counted_says_nothing_and_impossible_counts_are_refused() -> None:
    assert corrected_interval(0, 0, MEASURED) == (0.0, 1.0)
    assert corrected_estimate(0, 0, MEASURED) is None
    with pytest.raises(ValueError, match="no proportion"):
        corrected_interval(3, 2, MEASURED)
