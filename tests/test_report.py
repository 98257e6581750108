"""The result and its table: the published schema, the same bytes every time, nothing kept back."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from pipeline.errors import BadInput
from pipeline.report_cells import cells_table, csv_text, parquet_bytes
from pipeline.report_inputs import ModelUse, Quality
from pipeline.report_text import render_text
from pipeline.result import USE_LABEL
from pipeline.result_schema import json_schema, read_result, schema_text, validate_document
from pipeline.review import ReviewState, review_part
from pipeline.settings import (
    ClassificationSettings,
    CountingSettings,
    ReportSettings,
    Settings,
    StainingSettings,
)
from pipeline.types import Problem, Registration
from storage.tables import neutralised
from tests.report_cases import (
    BLOOD,
    CREATED,
    KNOWN,
    a_card,
    a_case,
    a_model,
    a_result,
    a_run,
    aligned,
    both,
    cells_of,
    good_quality,
    image,
)

DOCS = Path(__file__).resolve().parent.parent / "docs"
QUICK = Settings(counting=CountingSettings(bootstrap_draws=200))


def paired(n=4):
    images = tuple(
        image(f"F{i + 1}", m, s) for i in range(n) for m, s in (("brightfield", "MGG"), ("dic", "unstained"))
    )
    return a_case(images=images, mode="paired", n_fields_declared=n)


def document(**change):
    return json.loads(a_result(settings=QUICK, **change).to_json())


def codes(result):
    return {n.code for n in result.not_assessed}


def test_the_published_schema_is_the_one_that_the_code_writes():
    assert (DOCS / "result.schema.json").read_text(encoding="utf-8") == schema_text()


def test_the_schema_is_valid_json_schema_2020_12():
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(json_schema())
    assert json_schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"


def test_results_of_every_kind_follow_the_schema():
    perls = (*paired().images, image("P1", stain="Perls", slide="s2"))
    marrow = a_case(specimen="bone_marrow", images=perls, mode="mgg_perls")
    read = both(
        cells_of(BLOOD | {"erythroblast": 60}, 4),
        cells_of({"erythroblast": 40}, 1, stain="Perls", rs_type="3", start=900),
    )
    dic = a_case(
        images=tuple(image(f"F{i}", "dic", "unstained") for i in range(3)), mode="dic", specimen=None
    )
    results = [
        a_result(settings=QUICK),
        a_result(settings=QUICK, case=marrow, read=read),
        a_result(
            settings=QUICK, case=dic, read=cells_of(BLOOD, 3, modality="dic", stain="unstained", virtual=True)
        ),
        a_result(settings=QUICK, case=a_case(0), read=((), ()), run=a_run(models=(), min_confidence=None)),
    ]
    for result in results:
        parsed = json.loads(result.to_json())
        validate_document(parsed)
        assert parsed["use_label"] == USE_LABEL
        assert read_result(result.to_json()) == result


def test_a_document_that_breaks_the_schema_is_refused_with_the_place():
    broken = document()
    broken["differential"]["n_denominator"] = "many"
    with pytest.raises(BadInput, match="differential/n_denominator"):
        validate_document(broken)
    with pytest.raises(BadInput, match="not JSON"):
        read_result("{")
    with pytest.raises(BadInput, match="surplus"):
        validate_document({**document(), "surplus": 1})


def test_two_runs_write_the_same_bytes_but_for_the_time_of_creation():
    cells, classes = cells_of(BLOOD | {"smudge": 4})
    one = a_result(settings=QUICK, read=(cells, classes))
    later = a_run(created=CREATED.replace(year=2027))
    other = a_result(settings=QUICK, read=(cells[::-1], classes[::-1]), run=later)
    a, b = json.loads(one.to_json()), json.loads(other.to_json())
    assert a.pop("created") == "2026-01-02T03:04:05Z"
    assert b.pop("created") == "2027-01-02T03:04:05Z"
    assert json.dumps(a) == json.dumps(b)


def test_the_report_id_follows_the_fingerprint():
    ids = {a_result(settings=QUICK, run=a_run(fingerprint=f)).report_uuid for f in ("a", "a", "b")}
    assert len(ids) == 2


def test_every_detected_cell_is_in_a_gallery_and_the_least_sure_stand_first():
    parts = [cells_of({"neutrophil": 10}, confidence=c, start=100 * i) for i, c in enumerate((0.9, 0.4, 0.7))]
    result = a_result(settings=QUICK, read=both(*parts, cells_of({"smudge": 3}, start=900)))
    assert sum(len(g.cells) for g in result.galleries) == 33 == result.differential.n_detected
    shown = [c.confidence for c in result.galleries[0].cells]
    assert shown == sorted(shown)
    assert result.galleries[0].cells[0].top3[0].class_ == "neutrophil"
    assert len(result.galleries[0].cells[0].top3) == 3


def test_a_gallery_longer_than_the_settings_says_how_many_there_are():
    settings = QUICK.model_copy(update={"report": ReportSettings(gallery_cells_per_class=5)})
    gallery = a_result({"neutrophil": 40}, settings=settings).galleries[0]
    assert (gallery.n_total, len(gallery.cells)) == (40, 5)


def test_a_dic_only_case_says_that_its_classes_come_from_a_virtual_stain():
    case = a_case(images=tuple(image(f"F{i + 1}", "dic", "unstained") for i in range(4)), mode="dic")
    result = a_result(
        settings=QUICK, case=case, read=cells_of(BLOOD, 4, modality="dic", stain="unstained", virtual=True)
    )
    assert "DIC_ONLY" in codes(result)
    assert [(s.modality, s.virtual, s.source_stain) for s in result.slides] == [
        ("DIC", False, None),
        ("brightfield", True, "unstained"),
    ]
    assert all(c.virtual for g in result.galleries for c in g.cells)


@pytest.mark.parametrize(
    ("target", "namer", "said"),
    [
        (None, None, "set staining.target"),
        (None, "virtual-leukocytes", "a virtual stain, the first that the stainer paints"),
        ("bccd", None, "a virtual stain, 'bccd'"),
    ],
)
def test_a_dic_only_case_says_which_stain_was_painted_and_whether_names_hang_on_it(target, namer, said):
    settings = QUICK.model_copy(
        update={
            "staining": StainingSettings(target=target),
            "classification": ClassificationSettings(virtual_classifier=namer),
        }
    )
    case = a_case(images=tuple(image(f"F{i + 1}", "dic", "unstained") for i in range(4)), mode="dic")
    read = cells_of(BLOOD, 4, modality="dic", stain="unstained", virtual=True)
    result = a_result(settings=settings, case=case, read=read)
    why = next(n.why for n in result.not_assessed if n.code == "DIC_ONLY")
    assert said in why
    assert ("names hang on it" in why) is (target is None and namer is None)


def test_a_dic_only_case_says_which_target_was_found_for_it_and_by_how_much():
    from pipeline.types import PaintedTarget

    case = a_case(images=tuple(image(f"F{i + 1}", "dic", "unstained") for i in range(4)), mode="dic")
    read = cells_of(BLOOD, 4, modality="dic", stain="unstained", virtual=True)
    found = PaintedTarget(target="bccd", confidence={"barcelona": 0.77, "bccd": 0.8}, n_cells=60)
    alike = {"n": 40, "alike": {"barcelona": 30, "bccd": 20}, "measured_on": "40 cells of computed DIC"}
    model = a_model(card=a_card(metrics={"named_like_real_stain": alike}))
    result = a_result(settings=QUICK, case=case, read=read, run=a_run(models=(model,), painted=found))
    why = next(n.why for n in result.not_assessed if n.code == "DIC_ONLY")
    assert "a virtual stain, 'bccd', the one by which 60 of the cells are named most surely" in why
    assert "(mean confidence 0.80; barcelona 0.77)" in why
    assert "50 % of such names" in why  # of that target, not of the first
    model = a_model(card=a_card(metrics={"named_like_real_stain": {**alike, "own": 34}}))
    result = a_result(settings=QUICK, case=case, read=read, run=a_run(models=(model,), painted=found))
    why = next(n.why for n in result.not_assessed if n.code == "DIC_ONLY")
    assert "85 % (each painted in the stain of its source; 50 % with all in 'bccd') of such names" in why


def test_a_dic_only_case_says_how_often_such_names_were_right_where_that_was_measured():
    case = a_case(images=tuple(image(f"F{i + 1}", "dic", "unstained") for i in range(4)), mode="dic")
    read = cells_of(BLOOD, 4, modality="dic", stain="unstained", virtual=True)
    alike = {"n": 40, "alike": {"barcelona": 30, "bccd": 20}, "measured_on": "40 cells of computed DIC"}
    measured = a_model(card=a_card(metrics={"named_like_real_stain": alike}))

    def why(target, model):
        settings = QUICK.model_copy(update={"staining": StainingSettings(target=target)})
        result = a_result(settings=settings, case=case, read=read, run=a_run(models=(model,)))
        return next(n.why for n in result.not_assessed if n.code == "DIC_ONLY")

    assert why(None, measured).endswith(
        "; 75 % of such names were those of the real stain on 40 cells of computed DIC"
    )
    assert "; 50 % of such names" in why("bccd", measured)
    assert "such names" not in why("own-lab", measured)
    assert "such names" not in why(None, a_model())
    own = a_model(card=a_card(metrics={"named_like_real_stain": {**alike, "own": 34}}))
    assert "; 75 % of such names" in why(None, own)  # nobody chose the target that is painted
    assert "; 85 % (each painted in the stain of its source; 50 % with all in 'bccd')" in why("bccd", own)


def test_a_brightfield_only_case_says_that_nothing_could_be_aligned():
    assert "NO_DIC" in codes(a_result(settings=QUICK))
    assert "NO_DIC" not in codes(a_result(settings=QUICK, case=paired(), read=cells_of(BLOOD, 4)))


def test_a_missing_stage_position_is_said_and_a_given_one_is_not():
    assert "NO_STAGE_POSITION" in codes(a_result(settings=QUICK))
    placed = a_case(images=tuple(image(f"F{i + 1}", x_um=200.0 * i, y_um=0.0) for i in range(5)))
    assert "NO_STAGE_POSITION" not in codes(a_result(settings=QUICK, case=placed))


def test_cells_that_an_edge_cuts_are_counted_and_said_to_be():
    cells, classes = cells_of(BLOOD)
    assert "CUT_CELLS" not in codes(a_result(settings=QUICK, read=(cells, classes)))
    cut = (*(c.model_copy(update={"at_border": True}) for c in cells[:7]), *cells[7:])
    result = a_result(settings=QUICK, read=(cut, classes))
    said = next(n for n in result.not_assessed if n.code == "CUT_CELLS")
    assert said.what == f"Whole views of 7 of the {len(cells)} cells"
    assert "unidentified" not in said.why
    assert result.differential.n_denominator == len(cells)
    slivers = (*(c.model_copy(update={"seen": 0.25}) for c in cut[:2]), *cut[2:])
    said = next(
        n for n in a_result(settings=QUICK, read=(slivers, classes)).not_assessed if n.code == "CUT_CELLS"
    )
    assert "but for 2 of which less than 40 % is seen: unidentified" in said.why


def test_a_field_that_was_lost_is_reported_with_its_reason():
    gone = Problem(
        code="UNREADABLE", message="F9_BF.tif is truncated.", slide="s1", field="F9", file="F9_BF.tif"
    )
    case = a_case(n_fields_declared=6, problems=(gone,))
    result = a_result(settings=QUICK, case=case)
    field = next(f for f in result.fields if f.field == "F9")
    assert (field.status, field.reason) == ("rejected", "F9_BF.tif is truncated.")
    assert (result.case.n_fields_used, result.case.n_fields_declared) == (5, 6)
    assert result.problems[0].file == "F9_BF.tif"


def test_a_field_lost_by_a_later_stage_is_rejected_and_one_that_lost_its_dic_is_not():
    case = paired()
    images = {(i.field, i.modality): i.file for i in case.images}
    lost = Problem(
        code="DETECTION_ERROR", message="it failed.", slide="s1", field="F1", file=images["F1", "brightfield"]
    )
    dic = Problem(
        code="DETECTION_ERROR", message="it failed.", slide="s1", field="F2", file=images["F2", "dic"]
    )
    case = case.model_copy(update={"problems": (lost, dic)})
    result = a_result(settings=QUICK, case=case, read=cells_of(BLOOD, 4))
    assert [f.status for f in result.fields] == ["rejected", "used", "used", "used"]


def test_registrations_are_reported_in_pixels_and_micrometres_and_a_failed_one_with_its_reason():
    found = {
        ("s1", "F1"): aligned(),
        ("s1", "F2"): Registration(status="failed", reason="no peak stands out"),
    }
    result = a_result(
        settings=QUICK, case=paired(), read=cells_of(BLOOD, 4), quality=Quality(registrations=found)
    )
    first, second = (f.registration for f in result.fields[:2])
    assert (first.status, first.residual_px, first.residual_um, first.doubtful) == ("ok", 0.3, 0.03, False)
    assert (second.status, second.reason, second.matrix, second.doubtful) == (
        "failed",
        "no peak stands out",
        None,
        True,
    )
    dic = next(s for s in result.slides if s.modality == "DIC")
    assert dic.qc.registration_p95_um == 0.08


def test_a_weight_free_method_is_a_model_without_a_hash():
    use = ModelUse(name="classical", version="0.1.0", reads=(("brightfield", "MGG"),))
    model = a_result(settings=QUICK, run=a_run(models=(use,))).software.models[0]
    assert (model.name, model.sha256, model.card) == ("classical", None, None)


def test_a_models_card_is_summarised_in_the_result(tmp_path):
    from storage.packages import ModelPackage

    use = ModelUse.of(ModelPackage(tmp_path, a_card()), (("brightfield", "MGG"),))
    card = a_result(settings=QUICK, run=a_run(models=(use,))).software.models[0].card
    assert card.limits == ("blasts were never seen",)
    assert use.seen_pixel_size_um == 0.1


def test_the_text_states_use_flags_intervals_and_what_is_not_known():
    text = render_text(a_result(settings=QUICK))
    for part in (
        USE_LABEL,
        "NOT_REVIEWED",
        "Neutrophils",
        "60.0",
        "52.9-66.8",
        "Could not be known",
        "K-001",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= 110


def test_the_text_withholds_percentages_of_too_few_cells():
    text = render_text(a_result({"neutrophil": 37, "lymphocyte": 13}, settings=QUICK))
    assert "withheld" in text
    assert "74.0" not in text.split("class")[1]


def test_a_hostile_case_id_cannot_drive_the_terminal():
    text = render_text(a_result(settings=QUICK, case=a_case(case_id="K\x1b[2J\x07")))
    assert "\x1b" not in text
    assert "\x07" not in text


def test_the_table_has_a_row_a_cell_and_stated_types_even_when_empty():
    import pandas as pd

    cells, classes = cells_of(BLOOD, virtual=False)
    table = cells_table(cells, classes[:-1], KNOWN)
    assert list(table["cell_id"]) == sorted(c.cell_id for c in cells)
    assert table["label"].isna().sum() == 1
    assert abs(table.filter(like="p_").dropna().sum(axis=1) - 1).max() < 1e-9
    again = pd.read_parquet(io.BytesIO(parquet_bytes(table)))
    assert len(again) == 200
    empty = cells_table((), (), KNOWN)
    assert list(empty.columns) == list(table.columns)
    assert (empty.dtypes == table.dtypes).all()
    assert parquet_bytes(table) == parquet_bytes(cells_table(cells[::-1], classes[:-1], KNOWN))


@pytest.mark.parametrize("text", ["=1+1", "+49", "-2", "@SUM(A1)", "\t=1", "  =cmd|' /C calc'!A0", "\r=x"])
def test_a_csv_cell_that_a_spreadsheet_would_run_is_neutralised(text):
    assert neutralised(text) == "'" + text


def test_csv_leaves_numbers_and_plain_text_alone():
    assert [neutralised(v) for v in (-1.5, "s1/F1/0001", None, "")] == [-1.5, "s1/F1/0001", None, ""]
    cells, classes = cells_of({"neutrophil": 2}, 1)
    evil = tuple(c.model_copy(update={"slide": "=HYPERLINK(1)", "x_um": -3.5, "y_um": 1.0}) for c in cells)
    text = csv_text(cells_table(evil, classes))
    assert ",'=HYPERLINK(1)," in text
    assert ",-3.5," in text
    assert ",=HYPERLINK" not in text


def test_a_reviewed_case_keeps_both_values():
    cells, classes = cells_of(BLOOD)
    said = {cells[0].cell_id: "blast"}
    account = review_part(ReviewState(labels=said, boxes={}), said, classes, len(cells))
    result = a_result(settings=QUICK, read=(cells, classes), reviewed=said, review=account, status="final")
    assert (result.review.pct_reviewed, result.review.n_reclassified) == (0.5, 1)
    blast = next(g for g in result.galleries if g.class_ == "blast")
    assert blast.cells[0].label_reviewed == "blast"
    assert blast.cells[0].top3[0].class_ == "neutrophil"


def test_good_fields_have_no_focus_outlier():
    case = a_case()
    result = a_result(settings=QUICK, case=case, quality=good_quality(case))
    assert [s.qc.focus_z for s in result.slides] == [0.0]
