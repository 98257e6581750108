"""Where a flag's rule begins: at the boundary, on both sides of a scale, over all fields and models."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pipeline.flags_counts import rs_low_count, virtual_rs_positive
from pipeline.result_counts import Sideroblasts, VirtualSupport
from tests.report_cases import (
    BLOOD,
    GOOD_FOCUS,
    a_case,
    a_model,
    a_run,
    both,
    cells_of,
    good_quality,
    image,
)
from tests.test_flags import flags, iron, run_of


def on_iron(rule, **change):
    """A rule's finding on virtual iron of 90 erythroblasts that their image supports."""
    values = {
        "evidence": "virtual_perls",
        "n_erythroblasts": 90,
        "target": 100,
        "type0": 86,
        "type1": 0,
        "type2": 0,
        "type3": 4,
        "indeterminate": 0,
        "rs_pct": 4.0,
        "ci_low": 1.0,
        "ci_high": 9.0,
        "limits": (5.0, 15.0),
        "standings": (),
        "code": "x",
        "support": VirtualSupport(supported=True, why="it is", positive=4, assessed=90),
    }
    found = Sideroblasts(**{**values, **change})
    return rule(SimpleNamespace(counted=SimpleNamespace(sideroblasts=found)))


def test_virtual_iron_that_its_image_supports_is_flagged_where_it_rests_on_few_cells():
    assert "90 erythroblasts" in on_iron(rs_low_count).message
    none = VirtualSupport(supported=False, why="it is not", positive=4, assessed=90)
    assert on_iron(rs_low_count, support=none) is None  # that gives no figure at all


@pytest.mark.parametrize(("high", "fires"), [(5.0, True), (4.99, False)])
def test_a_virtual_upper_limit_at_five_percent_asks_for_a_real_perls(high, fires):
    assert (on_iron(virtual_rs_positive, ci_high=high) is not None) is fires


def test_indeterminate_cells_that_reach_a_limit_just_so_decide_it():
    assert "5 %" in iron(t0=95, t3=4, tindeterminate=1)["RS_INDETERMINATE"].message
    assert "RS_INDETERMINATE" not in iron(t0=96, t3=3, tindeterminate=1)


def test_five_percent_of_indeterminate_cells_are_flagged_though_no_limit_hangs_on_them():
    found = iron(t0=20, t3=75, tindeterminate=5)["RS_INDETERMINATE"]
    assert found.value == 5.0
    assert "alone decide" not in found.message
    assert "RS_INDETERMINATE" not in iron(t0=21, t3=75, tindeterminate=4)


@pytest.mark.parametrize(
    ("seen", "fires"), [(0.111, True), (0.11, False), (0.09, False), (0.089, True), (None, True)]
)
def test_a_scale_that_is_over_ten_percent_too_fine_blocks_as_one_that_is_too_coarse(seen, fires):
    assert ("NO_PIXEL_SIZE" in run_of(seen_pixel_size_um=seen)) is fires


def test_one_coarse_image_among_fine_ones_is_a_domain_mismatch():
    images = tuple(image(f"F{i + 1}", pixel_size_um=0.2 if i == 2 else 0.1) for i in range(5))
    assert "images of 0.2 µm" in flags(case=a_case(images=images))["DOMAIN_MISMATCH"].message


def test_weights_of_which_nothing_is_found_are_not_those_of_their_manifest():
    assert run_of(found_sha256=None)["MODEL_HASH"].value == a_model().name
    assert "MODEL_HASH" not in run_of(sha256=None, found_sha256=None)  # a method without weights


def test_the_value_of_uneven_light_is_that_of_the_darkest_field_in_any_order():
    case = a_case()
    for worst in ("F1", "F3", "F5"):
        dark = {
            key: GOOD_FOCUS.model_copy(update={"illumination_ratio": 0.6 if key[1] == worst else 0.75})
            for key in good_quality(case).focus
        }
        assert flags(case=case, quality=SimpleNamespace(focus=dark, registrations={}))[
            "QC_ILLUMINATION"
        ].value == pytest.approx(0.6)


def test_a_field_that_was_declared_and_never_heard_of_again_is_lost():
    found = flags(case=a_case(5, n_fields_declared=8))["FIELD_LOSS"]
    assert (found.severity, found.value) == ("review", 37.5)
    assert flags(case=a_case(5, n_fields_declared=11))["FIELD_LOSS"].severity == "block"


def test_what_is_out_of_the_denominator_does_not_dilute_the_unidentified():
    assert "UNIDENTIFIED_HIGH" in flags(counts=BLOOD | {"unidentified": 11, "platelet": 300, "smudge": 9})


def test_fields_differ_by_what_the_reviewer_says_of_their_cells():
    cells, classes = both(cells_of({"lymphocyte": 100}, 1), cells_of({"lymphocyte": 100}, 1, start=200))
    cells = tuple(
        c.model_copy(update={"field": f"F{i % 3 + 1 + 3 * (i // 100)}"}) for i, c in enumerate(cells)
    )
    said = {c.cell_id: "basophil" for c in classes[:20]}  # the model called none so
    found = flags(case=a_case(6), read=(cells, classes), reviewed=said, run=a_run())
    assert "FIELD_HETEROGENEITY" not in flags(case=a_case(6), read=(cells, classes))
    assert "basophils" in found["FIELD_HETEROGENEITY"].message
