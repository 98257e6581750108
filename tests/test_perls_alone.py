"""A case of Perls images alone: result, page and text say the same, and none speaks of a differential."""

from __future__ import annotations

import pytest

from pipeline.report_html import render_html
from pipeline.report_text import render_text
from tests.report_cases import a_case, a_result, a_run, cells_of, image
from tests.test_flags import QUICK

IMAGES = (image("P1", stain="Perls", slide="s2"),)


def perls_result(n: int, specimen: str | None = "bone_marrow"):
    read = cells_of({"erythroblast": n}, 1, rs_type="0", stain="Perls")
    case = a_case(1, specimen=specimen, images=IMAGES)
    return a_result(settings=QUICK, case=case, read=read, run=a_run(known_classes=("neutrophil", "smudge")))


@pytest.mark.parametrize("specimen", ["bone_marrow", "blood", None])
@pytest.mark.parametrize("n", [0, 40])
def test_perls_images_alone_give_no_rows_no_rates_and_no_ratio(n, specimen):
    result = perls_result(n, specimen)
    d = result.differential
    assert (d.rows, d.groups, d.excluded, d.n_denominator) == ((), (), (), 0)
    assert (result.me_ratio, result.per_100_wbc) == (None, None)
    codes = {note.code for note in result.not_assessed}
    assert "PERLS_ONLY" in codes
    assert not codes & {"ME_RATIO_WITHHELD", "CLASS_UNKNOWN_TO_MODEL", "ONE_FIELD"}


@pytest.mark.parametrize("n", [0, 40])
def test_page_and_text_of_perls_images_alone_speak_of_erythroblasts_and_of_no_differential(n):
    result = perls_result(n)
    page, text = render_html(result, {}), render_text(result)
    assert f'<b class="num">{n}</b> erythroblasts assessed' in page
    assert "Not counted: the case has Perls images only" in page
    assert "The differential: the case has Perls images only" in text
    for said in (page, text):
        for word in ("M:E", "aimed at</li>", "in the denominator", "ercentages are withheld", "eutrophil"):
            assert word not in said.split('id="h-method"')[0], word
