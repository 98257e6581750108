"""Intervals against published tables, and the properties that any interval must have."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as hs

from pipeline import statistics as st

# Rümke's table of 95 % limits for differential counts (C. L. Rümke 1978, "The statistically expected
# variability in differential leukocyte counting", in Koepke (ed.), Differential Leukocyte Counting; used by
# CLSI H20): whole percent, rounded outward; {cells counted: {percentage found: (low, high)}}.
RUEMKE = {
    100: {
        0: (0, 4),
        1: (0, 6),
        2: (0, 8),
        3: (0, 9),
        4: (1, 10),
        5: (1, 12),
        6: (2, 13),
        7: (2, 14),
        8: (3, 16),
        9: (4, 17),
        10: (4, 18),
        15: (8, 24),
        20: (12, 30),
        25: (16, 35),
        30: (21, 40),
        40: (30, 51),
        50: (39, 61),
    },
    200: {
        0: (0, 2),
        1: (0, 4),
        2: (0, 6),
        3: (1, 7),
        4: (1, 8),
        5: (2, 10),
        10: (6, 16),
        15: (10, 21),
        20: (14, 27),
        50: (42, 58),
    },
    500: {0: (0, 1), 1: (0, 3), 2: (0, 4), 5: (3, 8), 10: (7, 13), 20: (16, 24), 50: (45, 55)},
    1000: {0: (0, 1), 1: (0, 2), 2: (1, 4), 5: (3, 7), 10: (8, 13), 20: (17, 23), 50: (46, 54)},
}


@pytest.mark.parametrize(("n", "table"), RUEMKE.items())
def test_clopper_pearson_rounded_outward_is_the_table_of_ruemke(n, table):
    for percent, expected in table.items():
        low, high = st.clopper_pearson(percent * n // 100, n)
        assert (math.floor(100 * low), math.ceil(100 * high)) == expected, (n, percent)


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (1, 100, 0.0, 5.4),
        (5, 100, 1.6, 11.3),
        (10, 100, 4.9, 17.6),
        (15, 100, 8.6, 23.5),
        (20, 100, 12.7, 29.2),
        (50, 100, 39.8, 60.2),
        (10, 200, 2.4, 9.0),
        (25, 500, 3.3, 7.3),
        (500, 1000, 46.9, 53.1),
        (0, 100, 0.0, 3.6),
    ],
)
def test_clopper_pearson_to_one_decimal(successes, n, low, high):
    found = st.clopper_pearson(successes, n)
    assert 100 * found[0] == pytest.approx(low, abs=0.0501)
    assert 100 * found[1] == pytest.approx(high, abs=0.0501)


# Brown, Cai, DasGupta 2001 and Newcombe 1998 (Stat. Med. 17:857, table I, methods 3 and 5).
@pytest.mark.parametrize(
    ("successes", "n", "score", "exact"),
    [
        (81, 263, (0.2553, 0.3662), (0.2527, 0.3676)),
        (15, 148, (0.0624, 0.1605), (0.0578, 0.1617)),
        (0, 20, (0.0, 0.1611), (0.0, 0.1684)),
        (1, 29, (0.0061, 0.1718), (0.0009, 0.1776)),
    ],
)
def test_both_intervals_are_those_of_newcombes_table(successes, n, score, exact):
    assert st.wilson(successes, n) == pytest.approx(score, abs=5e-5)
    assert st.clopper_pearson(successes, n) == pytest.approx(exact, abs=5e-5)


def test_a_hundred_erythroblasts_cannot_settle_fifteen_percent():
    low, high = st.wilson(15, 100)
    assert (round(100 * low, 1), round(100 * high, 1)) == (9.3, 23.3)
    assert st.spans(low, high, 0.15)


def test_a_zero_count_has_an_upper_limit_and_no_cells_say_nothing():
    for interval in ("clopper-pearson", "wilson"):
        low, high = st.proportion_interval(0, 200, interval)
        assert low == 0
        assert 0.01 < high < 0.02
        assert st.proportion_interval(0, 0, interval) == (0.0, 1.0)
        assert st.proportion_interval(7, 7, interval)[1] == 1.0


def test_a_wald_interval_is_not_to_be_had():
    with pytest.raises(ValueError, match="wald"):
        st.proportion_interval(1, 10, "wald")


@pytest.mark.parametrize(("successes", "n", "level"), [(-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0), (1, 5, 0.0)])
def test_what_is_no_proportion_is_refused(successes, n, level):
    with pytest.raises(ValueError):
        st.clopper_pearson(successes, n, level)


@settings(max_examples=50, deadline=None)
@given(hs.data(), hs.integers(1, 600), hs.sampled_from(["clopper-pearson", "wilson"]))
def test_an_interval_holds_its_proportion_mirrors_and_widens_with_the_level(data, n, interval):
    k = data.draw(hs.integers(0, n))
    low, high = st.proportion_interval(k, n, interval)
    assert 0 <= low <= k / n <= high <= 1
    mirrored = st.proportion_interval(n - k, n, interval)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-9)
    wider = st.proportion_interval(k, n, interval, 0.99)
    assert wider[0] <= low + 1e-12
    assert wider[1] >= high - 1e-12


def test_clopper_pearson_covers_at_least_its_level_at_every_proportion():
    from scipy.stats import binom

    n = 60
    limits = [st.clopper_pearson(k, n) for k in range(n + 1)]
    for p in np.linspace(0.005, 0.995, 41):
        covered = sum(binom.pmf(k, n, p) for k, (low, high) in enumerate(limits) if low <= p <= high)
        assert covered >= 0.95 - 1e-12


def test_the_me_interval_is_that_of_the_log_ratio():
    value, low, high = st.ratio_interval(300, 100)
    half = 1.959964 * math.sqrt(1 / 300 + 1 / 100)
    assert value == 3.0
    assert (low, high) == pytest.approx((3 * math.exp(-half), 3 * math.exp(half)), rel=1e-6)
    assert st.ratio_interval(300, 0) == (None, None, None)
    zero = st.ratio_interval(0, 50)
    assert zero[:2] == (0.0, 0.0)
    assert 0.05 < zero[2] < 0.1


def test_a_rate_per_hundred_carries_the_interval_of_its_share():
    low, high = st.per_hundred_interval(10, 200)
    share_low, share_high = st.clopper_pearson(10, 210)
    assert low == pytest.approx(100 * share_low / (1 - share_low))
    assert high == pytest.approx(100 * share_high / (1 - share_high))
    assert low < 5 < high
    assert st.per_hundred_interval(3, 0)[1] is None


@settings(max_examples=60, deadline=None)
@given(hs.lists(hs.integers(0, 5000), min_size=1, max_size=25), hs.integers(0, 4))
def test_percentages_add_to_a_hundred_at_any_decimals(counts, decimals):
    shares = st.largest_remainder(counts, decimals)
    units = [round(s * 10**decimals) for s in shares]
    assert sum(units) == (100 * 10**decimals if sum(counts) else 0)
    for count, share in zip(counts, shares, strict=True):
        if count == 0:
            assert share == 0
        else:
            assert abs(share - 100 * count / sum(counts)) < 10**-decimals


def test_thirds_round_by_the_largest_remainder():
    assert st.largest_remainder([1, 1, 1]) == [33.4, 33.3, 33.3]
    assert st.largest_remainder([2, 1], 0) == [67.0, 33.0]
    assert st.largest_remainder([0, 0]) == [0.0, 0.0]


def test_the_bootstrap_is_as_wide_as_chance_for_mixed_fields_and_wider_for_clusters():
    rng = np.random.default_rng(1)
    mixed = rng.binomial(20, 0.3, 40)
    mixed_table = np.stack([mixed, 20 - mixed], axis=1)
    clustered = np.where(np.arange(40) % 10 < 3, 20, 0)
    clustered_table = np.stack([clustered, 20 - clustered], axis=1)
    exact = st.clopper_pearson(240, 800)
    low, high = st.bootstrap_proportions(mixed_table, 2000, 7)
    assert 0.6 < (high[0] - low[0]) / (exact[1] - exact[0]) < 1.4
    low, high = st.bootstrap_proportions(clustered_table, 2000, 7)
    assert (high[0] - low[0]) / (exact[1] - exact[0]) > 3


def test_the_bootstrap_is_the_same_for_the_same_seed_and_none_for_one_field():
    table = np.random.default_rng(0).integers(0, 30, (23, 3))
    one, again = (st.bootstrap_proportions(table, 500, 3) for _ in range(2))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, st.bootstrap_proportions(table, 500, 4))
    assert st.bootstrap_proportions(table[:1], 500, 3) is None
    assert st.bootstrap_proportions(np.array([[3, 7], [0, 0]]), 500, 3) is None


@pytest.mark.parametrize("interval", ["clopper-pearson", "wilson"])
@pytest.mark.parametrize(
    ("successes", "n", "limit"), [(12, 100, 0.15), (18, 100, 0.15), (0, 20, 0.05), (4, 50, 0.05)]
)
def test_the_cells_that_settle_a_limit_are_just_enough(successes, n, limit, interval):
    more = st.cells_to_settle(successes, n, limit, interval)
    assert more > 0

    def spans(total):
        return st.spans(*st.proportion_interval(successes * total / n, total, interval), limit)

    assert not spans(n + more)
    assert spans(n + more - 1)


def test_cells_to_settle_is_zero_when_settled_and_none_when_counting_cannot():
    assert st.cells_to_settle(1, 200, 0.15) == 0
    assert st.cells_to_settle(15, 100, 0.15) is None
    assert st.cells_to_settle(0, 0, 0.05) is None


def test_the_ratio_of_none_to_some_has_the_upper_limit_of_its_share():
    share = 1 - 0.025 ** (1 / 50)  # none of 50, exactly
    assert st.ratio_interval(0, 50)[2] == pytest.approx(share / (1 - share))


def test_of_equal_remainders_the_larger_count_is_rounded_up_then_the_earlier():
    assert st.largest_remainder([1, 5, 2], 0) == [12.0, 63.0, 25.0]  # 12.5 and 62.5
    assert st.largest_remainder([5, 1, 2], 0) == [63.0, 12.0, 25.0]
    assert st.largest_remainder([2, 3, 3], 0) == [25.0, 38.0, 37.0]


@pytest.mark.parametrize(("level", "z"), [(0.8, 1.2816), (0.95, 1.96)])
def test_the_bootstrap_of_many_fields_is_as_wide_as_their_spread_at_its_level(level, z):
    of_class = np.random.default_rng(5).binomial(20, 0.3, 100)
    low, high = st.bootstrap_proportions(np.stack([of_class, 20 - of_class], axis=1), 4000, 1, level)
    assert high[0] - low[0] == pytest.approx(2 * z * (of_class / 20).std() / 10, rel=0.06)
