"""The figures of quality: a field among those of its own slide, and of a slide the worst of its fields."""

from __future__ import annotations

from pipeline.report_inputs import Quality
from pipeline.report_text import render_text
from pipeline.settings import CountingSettings, Settings
from tests.report_cases import BLOOD, GOOD_FOCUS, a_case, a_result, aligned, both, cells_of, image

QUICK = Settings(counting=CountingSettings(bootstrap_draws=0))
SOFT = GOOD_FOCUS.model_copy(update={"normalised_variance": 1e-4, "laplacian_variance": 1e-6})


def key(i):
    return (i.slide, i.field, i.modality, i.stain)


def test_a_field_is_as_sharp_as_its_own_slide_and_not_as_another():
    images = tuple(image(f"F{i}") for i in range(8)) + tuple(image(f"F{i}", slide="s2") for i in range(5))
    focus = {key(i): SOFT if i.slide == "s2" else GOOD_FOCUS for i in images}
    result = a_result(settings=QUICK, case=a_case(images=images), quality=Quality(focus=focus))
    assert "QC_FOCUS" not in {f.code for f in result.flags}
    assert [s.qc.focus_z for s in result.slides] == [0.0, 0.0]


def test_the_figures_of_a_slide_are_those_of_its_worst_field():
    kinds = (("brightfield", "MGG"), ("dic", "unstained"))
    images = tuple(image(f"F{i}", m, s) for i in range(5) for m, s in kinds)
    by_field = [(0.9, 0.2), (0.7, 0.1), (0.95, 1.4), (0.85, 0.3), (0.8, 0.0)]
    focus = {}
    for i in images:
        light, saturated = by_field[int(i.field[1:])]
        change = {"illumination_ratio": light, "saturation_pct": saturated}
        if i.field == "F3":
            change |= {"normalised_variance": 0.01, "laplacian_variance": 0.001}
        focus[key(i)] = GOOD_FOCUS.model_copy(update=change)
    p95 = (0.2, 0.6, 0.9, 0.4, 0.1)
    registrations = {("s1", f"F{i}"): aligned(residual_p95_um=v) for i, v in enumerate(p95)}
    case = a_case(images=images, mode="paired")
    result = a_result(
        settings=QUICK, case=case, read=cells_of(BLOOD, 5), quality=Quality(focus, registrations)
    )
    worst = min(q.focus_z for f in result.fields for q in f.focus)
    assert worst < -3.5
    assert [(s.modality, s.qc.focus_z) for s in result.slides] == [("brightfield", worst), ("DIC", worst)]
    for slide in result.slides:
        assert (slide.qc.illumination_ratio, slide.qc.saturation_pct) == (0.7, 1.4)
    assert [s.qc.registration_p95_um for s in result.slides] == [None, 0.9]


def test_of_a_field_s_cells_those_in_the_denominator_are_told_apart():
    read = both(cells_of({"neutrophil": 6}, 2), cells_of({"platelet": 3, "smudge": 1}, 2, start=50))
    fields = a_result(settings=QUICK, case=a_case(2), read=read).fields
    assert [(f.n_cells, f.n_denominator) for f in fields] == [(5, 3), (5, 3)]


def test_a_report_speaks_of_no_fewer_fields_than_it_lists():
    found = a_result(settings=QUICK, case=a_case(5, n_fields_declared=3)).case
    assert (found.n_fields_declared, found.n_fields_used) == (5, 5)


def test_one_field_without_a_stage_position_is_enough_to_say_that_overlaps_are_not_known():
    placed = tuple(image(f"F{i}", x_um=100.0 * i, y_um=0.0) for i in range(3))

    def codes(images):
        return {n.code for n in a_result(settings=QUICK, case=a_case(images=images)).not_assessed}

    assert "NO_STAGE_POSITION" not in codes(placed)
    assert "NO_STAGE_POSITION" in codes((*placed, image("F9")))
    assert "NO_STAGE_POSITION" in codes((*placed, image("F9", x_um=300.0)))


def test_the_terminal_s_table_counts_what_the_reviewer_says():
    cells, classes = cells_of(BLOOD)
    said = {c.cell_id: "monocyte" for c in [c for c in classes if c.label == "neutrophil"][:20]}
    lines = render_text(a_result(settings=QUICK, read=(cells, classes), reviewed=said)).splitlines()
    row = {line.split()[0]: line.split()[1:3] for line in lines if line.startswith(("Neutro", "Mono"))}
    assert row == {"Neutrophils": ["100", "50.0"], "Monocytes": ["32", "16.0"]}
