"""A marrow case with MGG only: its report says virtual wherever it speaks of iron, and claims no more."""

from __future__ import annotations

import numpy as np
import pytest

from classifiers.base import Classified
from classifiers.sideroblasts import SideroblastReading
from flows import virtual_perls_stage as stage
from flows.records import CaseRun
from flows.runs import open_run
from pipeline.counting_iron import count_sideroblasts
from pipeline.errors import BadModelPackage
from pipeline.report_html import render_html
from pipeline.report_inputs import ModelUse
from pipeline.report_text import render_text
from pipeline.report_virtual import virtual_id
from pipeline.settings import CountingSettings, Settings
from pipeline.virtual_perls import erythroblasts_of
from pipeline.virtual_perls_evidence import measured_evidence
from stainers.base import Stained
from tests.report_cases import a_case, a_result, a_run, both, cells_of, image
from tests.test_report_html import pictures_of
from tests.test_virtual_perls import card, some_cases

QUICK = Settings(counting=CountingSettings(bootstrap_draws=100))


def read_virtually(n: int, rs_type: str, start: int):
    cells, classes = cells_of({"erythroblast": n}, rs_type=rs_type, start=start)
    update = {"rs_virtual": True, "stain_confidence": 0.8}
    return cells, tuple(c.model_copy(update=update) for c in classes)


def marrow_result(positive: int, sensitivity: float, made_up: float):
    """A marrow of 100 erythroblasts on which the generator drew `positive` rings."""
    found = measured_evidence(some_cases(20, 60, sensitivity, made_up), "phantom cases")
    stainer = ModelUse(
        name="mgg-to-perls",
        version="1",
        sha256="0",
        card=card(virtual_perls=found),
        reads=(),
        seen_pixel_size_um=0.2,
        found_sha256="0",
    )
    read = both(
        cells_of({"neutrophil": 60, "lymphocyte": 20}),
        read_virtually(positive, "3", 200),
        read_virtually(100 - positive, "0", 400),
    )
    result = a_result(
        settings=QUICK, case=a_case(specimen="bone_marrow"), read=read, run=a_run(models=(stainer,))
    )
    return result, read


def page_of(result, read) -> str:
    pictures = pictures_of(read[0])
    iron = [c for c in read[1] if c.rs_virtual]
    pictures |= {virtual_id(c.cell_id): np.full((64, 64, 3), 90, np.uint8) for c in iron}
    return render_html(result, pictures)


def codes(result) -> set[str]:
    return {f.code for f in result.flags}


def test_a_case_that_a_blind_model_read_gets_no_figure_and_keeps_both_permanent_flags():
    result, read = marrow_result(30, 0.3, 0.3)
    iron = result.sideroblasts
    assert (iron.evidence, iron.rs_pct, iron.support.supported) == ("virtual_perls", None, False)
    assert {"VIRTUAL_STAIN", "VIRTUAL_RS_POSITIVE", "NOT_REVIEWED"} <= codes(result)
    assert result.status == "preliminary"
    page = page_of(result, read)
    assert "Not supported by the image" in page
    section = page[page.index('id="h-rs"') : page.index('id="h-dx"')]
    assert "from virtual Perls, not from a stain" in section
    assert "30.0 %" not in section
    assert "interval" not in section
    text = render_text(result)
    assert "NOT SUPPORTED BY THE IMAGE" in text
    assert "VIRTUAL Perls" in text
    assert "30.0 %" not in text


def test_a_supported_figure_is_corrected_and_still_says_virtual():
    result, read = marrow_result(60, 0.9, 0.05)
    iron = result.sideroblasts
    assert iron.support.supported
    assert iron.ci_low < iron.rs_pct < iron.ci_high
    assert iron.rs_pct == pytest.approx(100 * (0.6 - 0.05) / 0.85, abs=4)
    assert iron.code == "smearflow:rs-pct-virtual-perls"
    assert {"VIRTUAL_STAIN", "VIRTUAL_RS_POSITIVE"} <= codes(result)
    page = page_of(result, read)
    section = page[page.index('id="h-rs"') : page.index('id="h-dx"')]
    assert "no iron was stained" in section
    assert "phantom cases" in section
    assert f"{iron.rs_pct:.1f} %" in section
    text = render_text(result)
    assert f"{iron.rs_pct:.1f} %, from 60 / 100" in text  # corrected: not the quotient of the counts


def test_the_ratio_says_so_where_another_model_chose_the_erythroblasts():
    cells, classes = both(cells_of({"neutrophil": 60, "lymphocyte": 20}), read_virtually(10, "0", 200))
    named = {"rs_finder": "marrow-erythroblasts or leukocyte-classes", "rs_reader": "rule"}
    classes = tuple(
        c.model_copy(update=named | ({"label": "lymphocyte"} if i % 2 else {})) if c.rs_virtual else c
        for i, c in enumerate(classes)
    )
    result = a_result(settings=QUICK, case=a_case(specimen="bone_marrow"), read=(cells, classes))
    assert result.me_ratio.erythroid == 5
    assert "took 10 cells for erythroblasts" in page_of(result, (cells, classes))


def test_ring_sideroblasts_come_before_the_differential():
    page = page_of(*marrow_result(60, 0.9, 0.05))
    assert page.index('id="h-rs"') < page.index('id="h-dx"')


def test_a_model_without_measurement_supports_nothing():
    read = both(cells_of({"neutrophil": 60}), read_virtually(40, "3", 200))
    result = a_result(settings=QUICK, case=a_case(specimen="bone_marrow"), read=read)
    assert result.sideroblasts.rs_pct is None
    assert "no measurement" in result.sideroblasts.support.why


def test_virtual_pictures_stand_in_galleries_of_their_own_beside_the_real_ones():
    result, _ = marrow_result(30, 0.9, 0.05)
    by_name = {g.class_: g for g in result.galleries}
    rings = by_name["virtual_perls_3"]
    assert rings.n_total == 30
    assert all(c.virtual and c.virtual_stain == "Perls" and "virtual" in c.cell_id for c in rings.cells)
    assert by_name["erythroblast"].n_total == 100
    assert not any(c.virtual for c in by_name["erythroblast"].cells)
    assert all(g.display.startswith("Virtual Perls") for n, g in by_name.items() if n.startswith("virtual"))


# The stage


class Painter:
    """Stains nothing: hands the view back, sure of everything."""

    name, targets, min_confidence = "painter", ("Perls",), 0.5

    def stain(self, patches, target=None):
        n = len(patches)
        return Stained(patches, np.zeros(patches.shape[:3], np.float32), np.ones(n, np.float32))


class BrightIsRing:
    name = "bright"

    def read(self, patches, pixel_size_um):
        return [SideroblastReading("3" if p.mean() > 128 else "0") for p in patches]


class EvenIsErythroblast:
    """Takes patches of an even brightness for erythroblasts, and for young ones those of 200."""

    name, classes = "even", ("proerythroblast", "erythroblast", "other")

    def classify(self, patches, pixel_size_um):
        values = patches[:, 0, 0, 0]
        rows = [
            (0.6, 0.2, 0.2) if v == 200 else (0.3, 0.3, 0.4) if v % 2 == 0 else (0.2, 0.2, 0.6)
            for v in values
        ]
        return Classified(np.array(rows, np.float32), np.zeros(len(rows), np.float32))


class Here:
    """Workers that work in this process."""

    def map(self, function, calls, *, gpu=False):
        for key, args in calls.items():
            yield key, function(*args), None


@pytest.fixture
def marrow_run(tmp_path, monkeypatch) -> CaseRun:
    (tmp_path / "K-001").mkdir()
    (tmp_path / "K-001" / "manifest.csv").write_text("x")
    models = {"stainer": Painter(), "sideroblast-reader": BrightIsRing(), "classifier": EvenIsErythroblast()}
    monkeypatch.setattr("storage.registry.load", lambda task, name: models[task])
    monkeypatch.setattr(stage, "model_view", lambda model: (32, 0.2))
    monkeypatch.setattr(stage, "model_sha", lambda task, name: name)
    staining = {"perls_stainer": "painter", "erythroblast_classifier": None}
    settings = {"staining": staining, "patches": {"shard": 4, "chunk": 2}}
    return open_run(tmp_path / "K-001", str(tmp_path / "store"), settings, Here())


def fill_patches(run: CaseRun, cells, brightness) -> None:
    from storage.case_store import CaseStore, plan_units, shard_rows

    store, name = CaseStore(run.store, run.case_id), "patches/256/brightfield"
    ids = [c.cell_id for c in cells]
    store.ensure_array(name, (len(cells), 256, 256, 3), run.settings.patches, "m", ids)
    for unit in plan_units("patches", len(cells), shard_rows(run.settings.patches)):
        block = np.stack([np.full((256, 256, 3), v, np.uint8) for v in brightness[unit.start : unit.stop]])
        store.write_unit(name, unit.index, unit.start, block, len(cells), "m", run.settings.patches)


def test_the_stage_reads_erythroblasts_alone_and_keeps_their_virtual_images(marrow_run):
    found, classes = both(cells_of({"erythroblast": 5}), cells_of({"neutrophil": 3}, start=50))
    fill_patches(marrow_run, found, [200, 10, 200, 10, 200, 200, 200, 200])
    case = a_case(specimen="bone_marrow")
    read = stage.virtual_perls(marrow_run, case, found, classes, "patches-1")
    assert [c.rs_type for c in read] == ["3", "0", "3", "0", "3", None, None, None]
    assert [c.rs_virtual for c in read] == [True] * 5 + [False] * 3
    again = stage.virtual_perls(marrow_run, case, found, classes, "patches-1")
    assert again == read
    assert marrow_run.reused[stage.STAGE] == marrow_run.computed[stage.STAGE] == 2
    shown = stage.pictures(marrow_run, found, {virtual_id(found[0].cell_id)})
    picture = shown[virtual_id(found[0].cell_id)]
    assert picture.shape == (128, 128, 3)
    assert tuple(picture[0, 0]) == stage.BAND
    assert (picture[-10:] == np.array(stage.BAND)).all(axis=-1).mean() > 0.4


def test_the_array_of_virtual_images_states_the_pixel_size_that_they_are_drawn_at(marrow_run):
    from storage.case_store import CaseStore

    found, classes = both(cells_of({"erythroblast": 5}))
    fill_patches(marrow_run, found, [200] * 5)
    stage.virtual_perls(marrow_run, a_case(specimen="bone_marrow"), found, classes, "patches-1")
    kept = CaseStore(marrow_run.store, marrow_run.case_id)
    assert kept.attributes("patches/256/brightfield")["pixel_size_um"] == 0.1
    assert kept.attributes(stage.array_name(marrow_run.settings))["pixel_size_um"] == 0.2


def test_cells_called_erythroblasts_and_those_a_classifier_of_marrow_takes_for_one_are_read(marrow_run):
    found, classes = both(cells_of({"lymphocyte": 3}), cells_of({"erythroblast": 4}, start=50))
    fill_patches(marrow_run, found, [200, 11, 10, 11, 13, 15, 17])
    staining = marrow_run.settings.staining.model_copy(update={"erythroblast_classifier": "even"})
    marrow_run.settings = marrow_run.settings.model_copy(update={"staining": staining})
    read = stage.virtual_perls(marrow_run, a_case(specimen="bone_marrow"), found, classes, "patches-1")
    # Two that the classifier of marrow takes for erythroblasts, and the four that are called so.
    assert [c.rs_type for c in read] == ["3", None, "0", "0", "0", "0", "0"]
    assert [c.label for c in read] == [c.label for c in classes]
    assert {c.rs_finder for c in read} == {"even or leukocyte-classes", None}
    assert {c.rs_reader for c in read} == {"rule", None}
    counted, _ = count_sideroblasts(
        a_case(specimen="bone_marrow"), found, {c.cell_id: c for c in read}, CountingSettings()
    )
    assert (counted.n_erythroblasts, counted.chosen_by) == (6, "even or leukocyte-classes")


def test_a_classifier_without_erythroblasts_cannot_choose_them():
    blind = EvenIsErythroblast()
    blind.classes = ("neutrophil", "lymphocyte", "other")
    with pytest.raises(BadModelPackage, match="no class of erythroblasts"):
        erythroblasts_of(np.zeros((1, 8, 8, 3), np.uint8), 0.1, blind)


@pytest.mark.parametrize(
    "case",
    [
        a_case(specimen="blood"),
        a_case(specimen="bone_marrow", images=(image("F1"), image("P1", stain="Perls", slide="s2"))),
    ],
)
def test_blood_and_marrow_with_a_perls_slide_are_never_stained_virtually(marrow_run, case):
    found, classes = cells_of({"erythroblast": 5})
    assert stage.virtual_perls(marrow_run, case, found, classes, "patches-1") == classes


def test_the_setting_turns_it_off(marrow_run):
    found, classes = cells_of({"erythroblast": 5})
    off = marrow_run.settings.staining.model_copy(update={"perls_stainer": None})
    marrow_run.settings = marrow_run.settings.model_copy(update={"staining": off})
    case = a_case(specimen="bone_marrow")
    assert stage.virtual_perls(marrow_run, case, found, classes, "patches-1") == classes
