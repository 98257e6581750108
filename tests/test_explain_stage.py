"""What speaks for the names of cells in doubt: chosen, computed once, shown, and bounded."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from flows import explain_stage
from flows.explain_stage import explanation, in_doubt, pair_picture
from flows.naming import calibrated_confidence
from flows.patient_stage import patient
from flows.records import CaseRun
from flows.virtual_perls_stage import virtual_perls
from pipeline.report_explanations import ExplainedPicture
from pipeline.report_html import render_html
from pipeline.settings import (
    ClassificationSettings,
    CountingSettings,
    PatientSettings,
    ReportSettings,
    Settings,
    StainingSettings,
)
from pipeline.types import ExplainedCell
from storage.case_store import CaseStore
from storage.ledger import Ledger
from storage.registry import describe
from storage.store import Store
from tests.report_cases import a_case, a_picture, a_result, both, cells_of
from tests.test_classifiers import cells as drawn

QUICK = Settings(counting=CountingSettings(bootstrap_draws=100))


class Here:
    """Workers in this process."""

    def map(self, function, calls, *, gpu=False):
        for key, args in calls.items():
            yield key, function(*args), None


@pytest.fixture
def run(tmp_path):
    """A case of four cells, two of them in doubt, whose patches are in the store."""
    sure = cells_of({"neutrophil": 2})
    doubtful = cells_of({"monocyte": 2}, confidence=0.4, start=2)
    found, classes = both(sure, doubtful)
    settings = Settings(report=ReportSettings(explained_cells=5))
    store = Store(str(tmp_path))
    case_store = CaseStore(store, "K-001")
    block = drawn(len(found), 256, 256)
    name = "patches/256/brightfield"
    case_store.ensure_array(name, block.shape, settings.patches, "m", [c.cell_id for c in found])
    case_store.write_unit(name, 0, 0, block, len(found), "m", settings.patches)
    case_run = CaseRun(tmp_path, "K-001", store, settings, Here(), Ledger(store, "K-001"))
    return case_run, found, classes


def test_cells_in_doubt_are_explained_once_and_taken_again_from_the_store(run):
    case_run, found, classes = run
    case_run.ledger.begin()
    first = explanation(case_run, found, classes, "patches", "")
    assert sorted(c.cell_id for c in first) == sorted(c.cell_id for c in classes if c.confidence < 0.5)
    assert all(c.label == "monocyte" and c.method == "grad-cam" and not c.virtual for c in first)
    assert all(case_run.store.exists(c.picture) for c in first)
    assert case_run.computed == {"explanation": 1}
    assert explanation(case_run, found, classes, "patches", "") == first
    assert case_run.reused == {"explanation": 1}


def test_a_lost_picture_or_another_name_is_computed_again(run):
    case_run, found, classes = run
    case_run.ledger.begin()
    first = explanation(case_run, found, classes, "patches", "")
    case_run.store.delete(first[0].picture)
    explanation(case_run, found, classes, "patches", "")
    assert case_run.computed == {"explanation": 2}
    renamed = tuple(
        c.model_copy(update={"label": "lymphocyte"}) if c.cell_id == first[0].cell_id else c for c in classes
    )
    again = explanation(case_run, found, renamed, "patches", "")
    assert {c.label for c in again} == {"lymphocyte", "monocyte"}


def test_the_least_sure_are_explained_and_no_more_than_the_settings_allow():
    found, classes = both(
        cells_of({"neutrophil": 3}, confidence=0.45),
        cells_of({"monocyte": 2}, confidence=0.3, start=3),
        cells_of({"lymphocyte": 1}, ood=0.999, start=5),
        cells_of({"erythroblast": 2}, confidence=0.2, stain="Perls", start=6),
    )
    ids = in_doubt(found, classes, (0.5, 0.5), 4)
    labels = {c.cell_id: c.label for c in classes}
    assert [labels[i] for i in ids] == ["monocyte", "monocyte", "neutrophil", "neutrophil"]
    assert "lymphocyte" in [labels[i] for i in in_doubt(found, classes, (0.5, 0.5), 9)]
    assert [labels[i] for i in in_doubt(found, classes, (None, None), 9)] == ["lymphocyte"]
    assert in_doubt(found, classes, (0.5, 0.5), 0) == []
    virtual = tuple(c.model_copy(update={"virtual": c.label == "monocyte"}) for c in classes)
    assert "monocyte" not in [labels[i] for i in in_doubt(found, virtual, (0.5, 0.0), 9)]


def test_the_confidence_is_the_cards_unless_the_settings_say_otherwise():
    card = describe("classifier", Settings().classification.classifier).card
    assert calibrated_confidence(Settings(), ()) == card.parameters["min_confidence"]
    own = Settings(classification=ClassificationSettings(min_confidence=0.33))
    assert calibrated_confidence(own, ()) == 0.33


def explained(cell_id: str, *, virtual: bool = False) -> ExplainedPicture:
    cell = ExplainedCell(
        cell_id=cell_id,
        label="monocyte",
        probability=0.41,
        method="grad-cam",
        picture="x.jpg",
        virtual=virtual,
    )
    return ExplainedPicture(cell, a_picture(3, 160))


def test_the_page_shows_them_names_the_method_and_says_which_are_virtual():
    read = cells_of({"monocyte": 4}, confidence=0.4)
    result = a_result(settings=QUICK, read=read)
    ids = [c.cell_id for c in read[0]]
    html = render_html(
        result, {}, explanations=[explained(ids[0]), explained(ids[1], virtual=True)], settings=QUICK.report
    )
    part = re.search(r'id="h-why".*?</ul>', html, re.S).group(0)
    assert "Grad-CAM" in part
    assert part.count("<img") == 2
    assert part.count("virtual stain<br>") == 1
    assert re.search(rf'<a href="#c\d+">{re.escape(ids[0])}</a>', part)


def test_a_page_without_doubt_has_no_such_part():
    assert 'id="h-why"' not in render_html(a_result(settings=QUICK), {})


def test_the_page_stays_within_its_bytes_and_says_what_it_leaves_out():
    read = cells_of({"monocyte": 40}, confidence=0.4)
    result = a_result(settings=QUICK, read=read)
    settings = ReportSettings(max_bytes=400_000)
    html = render_html(result, {}, explanations=[explained(c.cell_id) for c in read[0]], settings=settings)
    assert len(html.encode()) <= settings.max_bytes
    assert "pictures are left out" in re.search(r'id="h-why".*?</ul>', html, re.S).group(0)


@pytest.mark.parametrize(
    "view", [(-40.0, -40.0, 60.0, 60.0), (10.0, 10.0, 90.0, 90.0), (0.0, 0.0, 96.0, 96.0)]
)
def test_a_view_that_reaches_beyond_the_patch_is_drawn_where_it_lies_inside(view):
    patch = drawn(1)[0]
    heat = np.zeros(patch.shape[:2], np.float32)
    picture = pair_picture(patch, SimpleNamespace(view_px=view, heat=heat))
    assert picture.shape == (160, 324, 3)
    assert picture[80, 80].mean() < 250


def test_a_case_whose_classifier_cannot_be_explained_is_not_computed_again(run, monkeypatch):
    case_run, found, classes = run
    case_run.ledger.begin()
    monkeypatch.setattr(explain_stage, "explain_unit", lambda *args: {"cells": []})
    assert explanation(case_run, found, classes, "patches", "") == ()
    assert explanation(case_run, found, classes, "patches", "") == ()
    assert (case_run.computed, case_run.reused) == ({"explanation": 1}, {"explanation": 1})


@pytest.mark.parametrize("stage", ["explanation", "patient", "virtual_perls"])
def test_a_stage_that_is_switched_off_leaves_no_failure_and_no_record_behind(run, stage):
    """Else `retry --failed` would run such a case every time."""
    case_run, found, classes = run
    case_run.ledger.begin()
    case_run.ledger.start(stage, "case", "mark")
    case_run.ledger.fail(stage, "case", ValueError("a bug"))
    case_run.store.write_json(case_run.record_key(stage, "case"), {"fingerprint": "mark", "output": {}})
    off = {
        "report": ReportSettings(explained_cells=0),
        "patients": PatientSettings(model=None),
        "staining": StainingSettings(perls_stainer=None),
    }
    case_run = replace(case_run, settings=case_run.settings.model_copy(update=off))
    assert explanation(case_run, found, classes, "patches", "") == ()
    assert patient(case_run, a_case(), found, "patches") is None
    assert virtual_perls(case_run, a_case(), found, classes, "patches") == classes
    assert case_run.ledger.items(stage)["case"]["status"] == "retired"
    assert not case_run.store.exists(case_run.record_key(stage, "case"))
