"""The entries of `slides` in a result: what was imaged, what was computed of it, and what was declared."""

from __future__ import annotations

import pytest

from pipeline.report_html import render_html
from pipeline.types import DeclaredImage, Problem
from tests.report_cases import BLOOD, a_case, a_result, both, cells_of, image
from tests.test_report import QUICK
from tests.test_virtual_perls_report import marrow_result


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        (["MGG"], "MGG only"),
        (["DIC"], "DIC only, virtually stained"),
        (["DIC", "MGG"], "DIC and MGG"),
        (["MGG", "Perls"], "MGG and Perls"),
        (["DIC", "MGG", "Perls"], "DIC, MGG and Perls"),
        (["DIC", "Perls"], "DIC and Perls, DIC virtually stained"),
    ],
)
def test_the_head_of_the_page_names_every_kind_of_image_that_was_read(kinds, said):
    images = tuple(image("F1", "dic", "unstained") if k == "DIC" else image("F1", stain=k) for k in kinds)
    page = render_html(a_result(settings=QUICK, case=a_case(images=images), read=cells_of({})), {})
    assert f"<li>{said}</li>" in page


def test_virtual_perls_has_an_entry_that_names_its_source():
    result, _ = marrow_result(60, 0.9, 0.05)
    found = [(s.stain, s.modality, s.virtual, s.source_stain) for s in result.slides]
    assert found == [("MGG", "brightfield", False, None), ("Perls", "brightfield", True, "MGG")]


def test_a_virtual_entry_holds_only_fields_whose_cells_were_stained_virtually():
    dic = [image(f"F{i + 1}", "dic", "unstained") for i in range(5)]
    case = a_case(images=(*dic, *(image(f"F{i + 1}") for i in range(3))), mode="paired")
    real = cells_of(BLOOD, 3)
    painted = cells_of({"neutrophil": 4}, 5, stain="unstained", modality="dic", virtual=True, start=900)
    kept = [i for i, c in enumerate(painted[0]) if c.field == "F4"]  # of F5 no cell was found
    read = both(real, (tuple(painted[0][i] for i in kept), tuple(painted[1][i] for i in kept)))
    virtual = next(s for s in a_result(settings=QUICK, case=case, read=read).slides if s.virtual)
    alone = a_result(settings=QUICK, case=a_case(images=(dic[3],), mode="dic"), read=cells_of({}))
    assert (virtual.n_fields, virtual.n_fields_used) == (1, 1)
    assert virtual.sha256 == alone.slides[0].sha256


def test_a_slide_counts_the_fields_whose_image_was_lost():
    gone = tuple(
        DeclaredImage(slide=s, field=f, modality="brightfield", stain=stain)
        for s, f, stain in (("s1", "F6", "MGG"), ("s1", "F7", "MGG"), ("s2", "P1", "Perls"))
    )
    result = a_result(settings=QUICK, case=a_case(lost=gone))
    found = [(s.slide_id, s.stain, s.n_fields, s.n_fields_used) for s in result.slides]
    assert found == [("s1", "MGG", 7, 5), ("s2", "Perls", 1, 0)]
    assert result.slides[1].pixel_size_um is None


def test_an_image_that_a_later_stage_lost_is_not_used_though_its_field_is_read_for_iron():
    case = a_case(images=(image(), image(stain="Perls")))
    lost = Problem(code="DETECTION_ERROR", message="it.", slide="s1", field="F1", file=case.images[0].file)
    result = a_result(settings=QUICK, case=case.model_copy(update={"problems": (lost,)}), read=cells_of({}))
    assert [(s.stain, s.n_fields, s.n_fields_used) for s in result.slides] == [("MGG", 1, 0), ("Perls", 1, 1)]
