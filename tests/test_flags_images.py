"""Flags of what the images of a case were declared to be and turned out to be."""

from __future__ import annotations

import pytest

from pipeline.types import LOW_CONTRAST, SCALE_DOUBT, UNDEREXPOSED, Case, DeclaredImage, Problem
from tests.report_cases import a_case, a_result, cells_of, image
from tests.test_flags import MARROW, MARROW_MODEL, flags, with_focus

SMEAR = tuple(image(f"F{i + 1}") for i in range(5))
PERLS = tuple(image(f"P{i + 1}", stain="Perls", slide="s2") for i in range(2))


def marrow_of(*images, **change) -> Case:
    return a_case(specimen="bone_marrow", images=images, n_fields_declared=len(images), **change)


@pytest.mark.parametrize(("images", "counts"), [(PERLS, {}), ((*SMEAR, *PERLS), MARROW)])
def test_perls_images_without_an_erythroblast_block_the_report(images, counts):
    read = cells_of(counts)
    raised = flags(case=marrow_of(*images), read=read, run=MARROW_MODEL, status="final")["RS_LOW_COUNT"]
    assert (raised.severity, raised.value) == ("block", 0)
    assert "RS_LOW_COUNT" not in flags(case=marrow_of(*SMEAR), read=cells_of(MARROW), run=MARROW_MODEL)


def gone(*images) -> tuple[DeclaredImage, ...]:
    return tuple(
        DeclaredImage(slide=i.slide, field=i.field, modality=i.modality, stain=i.stain) for i in images
    )


def loss(case: Case):
    return flags(case=case, read=cells_of(MARROW), run=MARROW_MODEL).get("FIELD_LOSS")


def test_lost_mgg_images_are_not_hidden_by_perls_images_of_the_same_fields():
    iron = tuple(i.model_copy(update={"stain": "Perls", "file": "p" + i.file}) for i in SMEAR)
    case = marrow_of(*SMEAR[:3], *iron, lost=gone(*SMEAR[3:]))
    raised = loss(case.model_copy(update={"n_fields_declared": 5}))
    assert (raised.severity, raised.value) == ("review", 40.0)
    assert "2 of 5 MGG or DIC fields" in raised.message
    assert "Perls" not in raised.message


def test_lost_perls_fields_are_not_diluted_by_those_of_the_differential():
    case = marrow_of(*SMEAR, *PERLS[:1], lost=gone(PERLS[1], image("P3", stain="Perls", slide="s2")))
    raised = loss(case.model_copy(update={"n_fields_declared": 8}))
    assert (raised.severity, raised.value) == ("block", 66.7)
    assert "2 of 3 Perls fields" in raised.message


def test_a_field_that_a_later_stage_lost_to_the_differential_is_lost_though_it_has_perls():
    iron = tuple(i.model_copy(update={"stain": "Perls", "file": "p" + i.file}) for i in SMEAR)
    failed = tuple(
        Problem(code="DETECTION_ERROR", message="it failed.", slide=i.slide, field=i.field, file=i.file)
        for i in SMEAR[:2]
    )
    case = marrow_of(*SMEAR, *iron, problems=failed).model_copy(update={"n_fields_declared": 5})
    assert loss(case).value == 40.0


def test_findings_of_an_earlier_version_keep_their_lost_fields():
    case = marrow_of(*SMEAR).model_copy(update={"n_fields_declared": 10})
    assert loss(case).value == 50.0


def test_images_that_were_declared_and_lost_are_not_said_never_to_have_been_there():
    def said(case):
        return {n.code: n.why for n in a_result(case=case, read=cells_of({})).not_assessed}

    assert "could be used" in said(marrow_of(*SMEAR, lost=gone(*PERLS)))["PERLS_LOST"]
    assert "NO_PERLS" in said(marrow_of(*SMEAR))
    assert "could be used" in said(marrow_of(*PERLS, lost=gone(*SMEAR)))["PERLS_ONLY"]
    assert "Perls images only" in said(marrow_of(*PERLS))["PERLS_ONLY"]


def test_the_value_of_the_flag_of_light_is_what_is_worst_and_the_message_says_what_it_is():
    bright = with_focus(saturation_pct=1.25)["QC_ILLUMINATION"]
    assert (bright.value, "highest share 1.25 %" in bright.message) == (1.25, True)
    dark = with_focus(saturation_pct=1.25, illumination_ratio=0.7)["QC_ILLUMINATION"]
    assert (dark.value, "lowest ratio 0.7)" in dark.message) == (0.7, True)


def test_an_underexposed_field_is_said_under_illumination():
    dim = Problem(
        code=UNDEREXPOSED, message="Dim.", slide="s1", field="F1", file="F1_BF.tif", fatal_for_field=False
    )
    raised = flags(case=a_case(problems=(dim,)))["QC_ILLUMINATION"]
    assert raised.severity == "review"
    assert "half of the camera's range used: s1 F1 brightfield" in raised.message


def test_a_pixel_size_that_red_cells_contradict_is_a_domain_mismatch_that_names_image_and_sizes():
    said = "F1_BF.tif is said to have 0.3 µm a pixel, but its 135 red cells speak for 0.105 µm; correct it."
    doubt = Problem(
        code=SCALE_DOUBT, message=said, slide="s1", field="F1", file="F1_BF.tif", fatal_for_field=False
    )
    raised = flags(case=a_case(problems=(doubt, doubt)))["DOMAIN_MISMATCH"]
    assert raised.severity == "review"
    assert said.rstrip(".") in raised.message
    assert "1 more like it" in raised.message


def test_little_contrast_is_a_domain_mismatch():
    faint = Problem(
        code=LOW_CONTRAST, message="Faint.", slide="s1", field="F1", file="F1.tif", fatal_for_field=False
    )
    assert "Faint." in flags(case=a_case(problems=(faint,)))["DOMAIN_MISMATCH"].message
