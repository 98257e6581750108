"""The page as a file: self-contained, escaped, within its budget, and saying what it leaves out."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import numpy as np
import pytest

from pipeline.patches import crop_patches
from pipeline.report_html import render_html
from pipeline.report_images import (
    BEYOND,
    THUMBNAIL_LADDER,
    FieldPicture,
    around_cell,
    encode_jpeg,
    encode_within,
    reduced,
)
from pipeline.report_inputs import Quality
from pipeline.report_text import render_text
from pipeline.result import USE_LABEL, AuditEntry
from pipeline.settings import CountingSettings, ReportSettings, Settings
from pipeline.types import Problem
from tests.report_cases import (
    BLOOD,
    KNOWN,
    a_case,
    a_picture,
    a_result,
    a_run,
    both,
    cells_of,
    good_quality,
    image,
)

QUICK = Settings(counting=CountingSettings(bootstrap_draws=100))
HOSTILE = "<img src=x onerror=alert(1)>\"'</script><script>alert(2)</script>"


def pictures_of(cells, size=96):
    kinds = [a_picture(i, size) for i in range(12)]
    return {c.cell_id: kinds[i % 12] for i, c in enumerate(cells)}


def overview(field="F1", width=900):
    y, x = np.mgrid[: width * 3 // 4, :width]
    picture = np.stack(
        [200 + 20 * np.sin(x / 9), 190 + 20 * np.sin(y / 7), 205 + 10 * np.sin((x + y) / 5)], -1
    )
    return FieldPicture("s1", field, "brightfield", "MGG", picture.astype(np.uint8), 2064)


def page(counts=BLOOD, **change):
    read = change.pop("read", None) or cells_of(counts)
    result = a_result(settings=QUICK, read=read, **change)
    return render_html(result, pictures_of(read[0]), [overview()])


def test_the_page_holds_everything_and_loads_nothing():
    html = page()
    assert "default-src 'none'" in html
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", html)
    assert "url(" not in html
    assert "@import" not in html
    assert html.count("<script>") == 1
    assert USE_LABEL in html
    assert '<html lang="en">' in html


def test_the_pages_script_is_the_one_that_its_policy_allows():
    import base64
    import hashlib

    html = page()
    script = re.search(r"<script>(.*?)</script>", html, re.S).group(1)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in html


def test_text_of_the_case_is_escaped_wherever_it_stands():
    cells, classes = cells_of({"neutrophil": 3}, 1)
    cells = tuple(
        c.model_copy(update={"cell_id": HOSTILE + str(i), "slide": HOSTILE, "field": HOSTILE})
        for i, c in enumerate(cells)
    )
    classes = tuple(c.model_copy(update={"cell_id": HOSTILE + str(i)}) for i, c in enumerate(classes))
    case = a_case(
        case_id=HOSTILE,
        collected=HOSTILE,
        images=(image(HOSTILE, slide=HOSTILE, file=HOSTILE),),
        problems=(Problem(code="UNREADABLE", message=HOSTILE, slide=HOSTILE, field="F7", file=HOSTILE),),
    )
    result = a_result(settings=QUICK, case=case, read=(cells, classes))
    picture = FieldPicture(HOSTILE, HOSTILE, "brightfield", "MGG", a_picture(), 2064)
    html = render_html(result, pictures_of(cells), [picture], {(HOSTILE, HOSTILE): a_picture()})
    assert "<img src=x" not in html
    assert "<script>alert" not in html
    assert html.count("</script>") == 1
    assert "&lt;img src=x onerror=alert(1)&gt;" in html


def test_flags_stand_before_the_figures_and_the_figures_before_the_cells():
    html = page()
    places = [
        html.index(f'id="{name}"') for name in ("h-flags", "h-dx", "h-not", "h-cells", "h-fields", "h-prov")
    ]
    assert places == sorted(places)


def test_the_table_has_its_headers_and_every_picture_its_words():
    html = page()
    assert html.count('scope="col"') >= 7
    assert html.count('scope="row"') >= 8
    for tag in re.findall(r"<img[^>]*>", html.split("<dialog")[0]):
        assert re.search(r'alt="[^"]+"', tag)


def test_no_figure_is_shown_as_minus_zero():
    case = a_case()
    focus = dict(good_quality(case).focus)
    key = next(iter(focus))
    focus[key] = focus[key].model_copy(update={"normalised_variance": 0.0299, "laplacian_variance": 0.00399})
    html = page(case=case, quality=Quality(focus=focus))
    assert ">-0.0<" not in html


def test_percentages_of_too_few_cells_are_withheld():
    html = page({"neutrophil": 37, "lymphocyte": 13})
    assert "Percentages are withheld" in html
    assert "74.0" not in html
    assert 'class="pct"' not in html


def test_a_class_that_only_a_person_can_name_stands_as_a_count_and_the_page_says_whose():
    known = tuple(k for k in KNOWN if k != "blast")
    cells, classes = cells_of(BLOOD, known=known)
    said = {next(c.cell_id for c in classes if c.label == "lymphocyte"): "blast"}
    run = a_run(known_classes=known)
    result = a_result(settings=QUICK, read=(cells, classes), reviewed=said, run=run)
    html = render_html(result, {})
    assert "named by a person; the model cannot. 1 of 200 cells reviewed" in html
    assert "0.5 %" not in html
    assert "named by a person (model: lymphocyte 95 %)" in html
    assert "<span>LY 95 %</span>" in html
    assert {f.code for f in result.flags} & {"BLAST_PRESENT", "NEAR_LIMIT_BLAST"} == {"BLAST_PRESENT"}
    assert "named by a person" in render_text(result)


def test_a_cell_that_a_person_named_is_marked_in_its_field_and_carries_no_confidence_of_that_name():
    cells, classes = cells_of(BLOOD)
    said = {next(c.cell_id for c in classes if c.label == "lymphocyte" and "/F1/" in c.cell_id): "blast"}
    html = render_html(a_result(settings=QUICK, read=(cells, classes), reviewed=said), {}, [overview()])
    assert "<title>Blasts, named by a person (model: lymphocyte 95 %)" in html
    assert html.count('stroke-dasharray="5 3"') == 1
    assert "Blasts, confidence" not in html


def withdrawn(reason="wrong patient"):
    when = datetime(2026, 1, 3, 4, 5, tzinfo=UTC)
    change = {"target": "report", "old": "final", "new": "cancelled"}
    entry = AuditEntry(ts=when, actor="Dr. Y", action="cancel", reason=reason, **change)
    result = a_result(settings=QUICK, status="cancelled").model_copy(update={"audit": (entry,)})
    return render_html(result, {})


def test_a_withdrawn_report_says_so_first_with_person_time_and_reason_and_strikes_its_figures():
    html = withdrawn()
    banner = html[html.index('class="banner"') : html.index("<h1>")]
    for told in ("Withdrawn", "Dr. Y", "2026-01-03 04:05 UTC", "wrong patient"):
        assert told in banner
    assert '<body class="withdrawn"' in html
    assert 'class="banner"' not in page()
    assert HOSTILE not in withdrawn(HOSTILE)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ("preliminary", "a qualified person has not released it"),
        ("amended", "was released and has changed since"),
        ("cancelled", "was withdrawn by a person"),
    ],
)
def test_each_status_that_is_not_final_has_its_own_sentence(status, said):
    result = a_result(settings=QUICK, status=status)
    message = next(f.message for f in result.flags if f.code == "NOT_REVIEWED")
    assert said in message
    assert (status == "preliminary") == ("has not released it" in message)


def test_every_printed_page_carries_case_status_and_use_and_no_text_of_the_case_ends_the_rule():
    html = render_html(a_result(settings=QUICK, case=a_case(case_id='K";}</style><b>x')), {})
    rule = html[html.index("@bottom-left") : html.index("@bottom-right")]
    assert rule.count('"') == 2
    assert "<" not in rule
    assert "preliminary" in rule


def test_an_me_ratio_by_a_classifier_of_blood_says_so_beside_the_figure():
    counts = {"neutrophil": 400, "erythroblast": 100}
    html = page(counts, case=a_case(specimen="bone_marrow"))
    assert "not to be relied on: leukocyte-classes was not made for bone marrow" in html
    assert "<b>4.00</b>" not in html


def test_a_withheld_me_ratio_shows_its_reason_and_no_figure():
    html = page({"neutrophil": 80, "erythroblast": 20}, case=a_case(specimen="bone_marrow"))
    assert "withheld: 100 cells in the denominator are under half the target" in html
    assert "4.00" not in html.split("M:E ratio</dt>")[1].split("</dd>")[0]


def test_an_interval_between_few_fields_is_greyed():
    assert "too narrow here: 5 fields" in page()
    assert "too narrow here" not in page(case=a_case(12), read=cells_of(BLOOD, 12))


def test_the_page_names_the_interval_of_rates_as_the_settings_do():
    score = Settings(counting=CountingSettings(bootstrap_draws=0, interval="wilson"))
    html = render_html(a_result(settings=score), {})
    assert "carry the Wilson interval" in html
    assert "exact interval" not in html


def test_the_text_has_the_decimals_that_the_settings_ask_for():
    two = Settings(counting=CountingSettings(bootstrap_draws=0, pct_decimals=2))
    text = render_text(a_result({"neutrophil": 130, "lymphocyte": 73}, settings=two))
    assert "64.04" in text


def test_a_case_without_cells_still_has_a_page():
    html = page(case=a_case(0), read=((), ()))
    assert "No cell was found" in html


def test_five_hundred_cells_are_all_shown_under_five_megabytes():
    counts = {"neutrophil": 290, "lymphocyte": 150, "monocyte": 40, "eosinophil": 20}
    cells, classes = cells_of(counts, 12)
    case = a_case(12)
    result = a_result(settings=QUICK, case=case, read=(cells, classes))
    html = render_html(result, pictures_of(cells, 160), [overview(f"F{i + 1}") for i in range(12)])
    assert len(html.encode()) < 5_000_000
    assert html.count('class="card') == 500
    assert html.count('<img class="pic"') == 500
    assert html.count("<image ") == 12


def test_a_page_that_would_grow_too_large_leaves_out_the_surest_cells_and_says_so():
    sure, unsure = cells_of({"neutrophil": 300}), cells_of({"neutrophil": 20}, confidence=0.4, start=1000)
    read = both(sure, unsure, cells_of({"basophil": 3}, start=2000))
    result = a_result(settings=QUICK, read=read)
    settings = ReportSettings(max_bytes=600_000)
    html = render_html(result, pictures_of(read[0]), [overview()], settings=settings)
    assert len(html.encode()) < 600_000
    left_out = int(re.search(r"(\d+) surer cells are left out", html).group(1))
    assert 0 < left_out < 300
    assert html.count('class="card') == 323 - left_out
    for cell in (*unsure[0], *read[0][-3:]):
        assert f'data-id="{cell.cell_id}"' in html


def test_the_boxes_of_a_large_case_are_within_the_budget():
    read = cells_of({"neutrophil": 900, "lymphocyte": 900, "monocyte": 900}, 40)
    result = a_result(settings=QUICK, case=a_case(40), read=read)
    settings = ReportSettings(max_bytes=1_500_000)
    overviews = [overview(f"F{i + 1}", 400) for i in range(40)]
    html = render_html(result, pictures_of(read[0], 72), overviews, settings=settings)
    assert len(html.encode()) < 1_500_000
    assert html.count("<rect id=") + html.count("<rect x=") >= 2700


def test_a_cell_without_a_picture_is_still_shown():
    read = cells_of({"neutrophil": 4})
    html = render_html(a_result(settings=QUICK, read=read), {})
    assert html.count("no picture") == 4


def test_boxes_are_drawn_at_the_scale_of_the_picture():
    cells, classes = cells_of({"neutrophil": 1}, 1)
    html = render_html(a_result(settings=QUICK, case=a_case(1), read=(cells, classes)), {}, [overview()])
    x, y, w, h = (
        float(v)
        for v in re.search(
            r'<rect id="b0" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', html
        ).groups()
    )
    scale = 900 / 2064
    assert (x, y, w, h) == pytest.approx((60 * scale, 60 * scale, 80 * scale, 78 * scale), abs=0.06)


def test_the_ladder_gives_up_size_before_it_gives_up_pictures():
    pictures = {str(i): a_picture(i, 160) for i in range(20)}
    order = list(pictures)
    ample = encode_within(pictures, order, 10_000_000, THUMBNAIL_LADDER)
    assert (ample.size_px, ample.left_out) == (160, ())
    tight = encode_within(pictures, order, ample.bytes // 3, THUMBNAIL_LADDER)
    assert tight.size_px < 160
    assert tight.bytes <= ample.bytes // 3
    least = encode_within(pictures, order, 4_000, THUMBNAIL_LADDER)
    assert least.bytes <= 4_000
    assert set(least.uris) == set(order[: len(least.uris)])
    assert len(least.uris) + len(least.left_out) == 20


@pytest.mark.parametrize(("step", "scale"), [(0.1, 1.0), (0.2, 2.0)])
def test_a_cell_at_an_edge_is_shown_as_it_was_photographed_and_grey_beyond(step, scale):
    field = np.random.default_rng(3).integers(0, 200, (300, 400, 3), np.uint8)
    box = (360.0, 100.0, 400.0, 140.0)  # its centre is 20 px from the right edge
    patch = crop_patches(field, [(380.0, 120.0)], size_px=256, pixel_size_um=step, target_pixel_size_um=0.1)[
        0
    ]
    shown = around_cell(patch, box, (400, 300), scale)
    side = shown.shape[0]
    inside = int(side / 2 + 20 * scale)
    assert (shown[:, inside:] == BEYOND).all()
    low = (256 - side) // 2
    np.testing.assert_array_equal(shown[:, :inside], patch[low : low + side, low : low + inside])


def test_a_cell_inside_its_field_is_shown_as_it_is_in_its_patch():
    field = np.random.default_rng(3).integers(0, 256, (300, 400, 3), np.uint8)
    patch = crop_patches(field, [(200.0, 150.0)], size_px=256, pixel_size_um=0.1, target_pixel_size_um=0.1)[0]
    np.testing.assert_array_equal(
        around_cell(patch, (160.0, 110.0, 240.0, 190.0), (400, 300), 1.0), patch[74:182, 74:182]
    )


def test_the_encoder_keeps_colours_and_refuses_what_is_no_picture():
    import cv2

    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 200
    back = cv2.imdecode(np.frombuffer(encode_jpeg(red, 90), np.uint8), cv2.IMREAD_COLOR)
    assert back[16, 16, 2] > 180
    assert back[16, 16, 0] < 20
    with pytest.raises(ValueError, match="uint8"):
        encode_jpeg(red.astype(np.float32))
    assert reduced(red, 64) is red
    assert reduced(red, 16).shape == (16, 16, 3)
