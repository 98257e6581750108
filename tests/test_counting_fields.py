"""Fields told apart by their slide, the interval between them, and the one level of every interval."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import statistics as st
from pipeline.counting import count
from pipeline.reader_error import ReaderErrors, corrected_interval, more_cells
from pipeline.settings import CountingSettings
from tests.report_cases import BLOOD, KNOWN, a_case, both, cells_of, image

FAST = CountingSettings(bootstrap_draws=400)
LEVEL = 0.8
ERRORS = (90, 10, 180, 20)
AT_LEVEL = CountingSettings(bootstrap_draws=400, level=LEVEL, rs_reader_errors=ERRORS)


def on(slide: str, field: str, counts: dict[str, int], start: int = 0):
    """Cells of one field of a slide."""
    cells, classes = cells_of(counts, 1, start=start)
    return tuple(c.model_copy(update={"slide": slide, "field": field}) for c in cells), classes


def counted(*parts, settings=FAST, specimen="blood"):
    case = a_case(specimen=specimen, images=(image("F1"), image("F1", slide="s2")))
    return count(case, *both(*parts), settings, known_classes=KNOWN)


def row(found, label):
    return next(r for r in found.differential.rows if r.class_ == label)


def pct(limits):
    return tuple(round(100 * x, 2) for x in limits)


def test_fields_of_one_name_on_two_slides_are_two_fields():
    found = counted(on("s1", "F1", {"neutrophil": 100}), on("s2", "F1", {"lymphocyte": 100}, 500))
    assert found.differential.n_fields == 2
    codes = {n.code for n in found.not_assessed}
    assert "FEW_FIELDS" in codes
    assert "ONE_FIELD" not in codes
    neutrophils = row(found, "neutrophil")
    # Two fields drawn twice: both of one kind a quarter of the time, so either end is reached.
    assert (neutrophils.boot_low, neutrophils.boot_high) == (0.0, 100.0)
    assert found.width_ratio["neutrophil"] > 5


def test_the_interval_between_fields_has_both_its_ends_at_the_level_of_the_settings():
    per_field = [(12, 8), (3, 17), (9, 11), (15, 5), (6, 14), (10, 10), (1, 19), (18, 2)]
    parts = [
        on("s1", f"F{i}", {"neutrophil": a, "lymphocyte": b}, 100 * i) for i, (a, b) in enumerate(per_field)
    ]
    found = row(counted(*parts, settings=AT_LEVEL), "neutrophil")
    low, high = st.bootstrap_proportions(np.array(per_field), 400, AT_LEVEL.bootstrap_seed, LEVEL)
    wide = st.bootstrap_proportions(np.array(per_field), 400, AT_LEVEL.bootstrap_seed, 0.95)
    assert (found.boot_low, found.boot_high) == (round(100 * low[0], 2), round(100 * high[0], 2))
    assert wide[0][0] < low[0] < found.pct / 100 < high[0] < wide[1][0]


def test_every_interval_of_a_blood_count_has_the_level_of_the_settings():
    counts = BLOOD | {"erythroblast": 12, "smudge": 7}
    found = counted(on("s1", "F1", counts), settings=AT_LEVEL)
    assert found.method.level == LEVEL
    monocytes, rates = row(found, "monocyte"), found.per_100_wbc
    assert (monocytes.ci_low, monocytes.ci_high) == pct(st.clopper_pearson(12, 200, LEVEL))
    nrbc, smudge = (st.per_hundred_interval(n, 200, level=LEVEL) for n in (12, 7))
    assert (rates.nrbc_ci_low, rates.nrbc_ci_high) == pytest.approx(nrbc, abs=0.005)
    assert (rates.smudge_ci_low, rates.smudge_ci_high) == pytest.approx(smudge, abs=0.005)


def test_every_interval_of_a_marrow_count_has_the_level_of_the_settings():
    images = (image("F1"), image("P1", stain="Perls", slide="s2"))
    case = a_case(specimen="bone_marrow", images=images, mode="mgg_perls")
    iron = [
        cells_of({"erythroblast": n}, 1, rs_type=t, stain="Perls", start=1000 * i)
        for i, (t, n) in enumerate({"0": 88, "3": 32}.items(), 1)
    ]
    smear = cells_of({"neutrophil": 300, "erythroblast": 150}, 1)
    found = count(case, *both(smear, *iron), AT_LEVEL, known_classes=KNOWN)
    ratio, rs = found.me_ratio, found.sideroblasts
    assert (ratio.ci_low, ratio.ci_high) == pytest.approx(st.ratio_interval(300, 150, LEVEL)[1:], abs=0.0005)
    assert (rs.ci_low, rs.ci_high) == pct(st.clopper_pearson(32, 120, LEVEL))
    errors = ReaderErrors(*ERRORS)
    assert (rs.reader.ci_low, rs.reader.ci_high) == pct(corrected_interval(32, 120, errors, LEVEL))
    spanned = {s.limit: s.more_cells for s in rs.reader.standings if s.standing == "spans"}
    assert spanned == {x: more_cells(32, 120, x / 100, errors, LEVEL) for x in spanned}
    assert spanned[15.0] is not None  # at 0.95 counting alone could not settle it
