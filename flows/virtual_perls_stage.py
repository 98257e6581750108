"""The stage that stains marrow erythroblasts virtually for iron, where a case has no Perls slide."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from flows import work
from flows.records import CaseRun, Item
from flows.stages import VERSIONS, model_sha
from flows.unit_stages import need_all
from flows.units import CellUnit, units_of
from pipeline.settings import Settings
from pipeline.types import Case, Cell, CellClass
from storage.fingerprint import fingerprint

STAGE = "virtual_perls"
SHOWN = 4  # a virtual picture is shown this many times as large as the model draws it
BAND = (150, 0, 110)  # of the frame and the word on every virtual picture: neither Perls nor MGG has it


def candidates(
    case: Case, found: tuple[Cell, ...], classes: tuple[CellClass, ...], settings: Settings
) -> list[str]:
    """Ids of the cells on MGG, of marrow without Perls, whose iron may be read virtually.

    All nucleated cells where a classifier of marrow is still to say which are erythroblasts too; without
    one, those that the case's classifier named so.
    """
    from pipeline.virtual_perls import is_erythroblast

    if case.specimen != "bone_marrow" or any(i.stain == "Perls" for i in case.images):
        return []
    stained = {c.cell_id for c in found if c.modality == "brightfield" and c.stain == "MGG"}
    asked = settings.staining.erythroblast_classifier is not None
    return [c.cell_id for c in classes if c.cell_id in stained and (asked or is_erythroblast(c.label))]


def array_name(settings: Settings) -> str:
    from storage.registry import virtual_array

    return virtual_array(str(settings.staining.perls_stainer), "image")


def virtual_perls(
    run: CaseRun, case: Case, found: tuple[Cell, ...], classes: tuple[CellClass, ...], patches_mark: str
) -> tuple[CellClass, ...]:
    """The classes with the iron that was read on virtual Perls; unchanged where there is nothing to read.

    A write unit is one item; its erythroblasts are told from other cells, stained, read, and their virtual
    images kept.
    """
    from pipeline.virtual_perls import is_erythroblast
    from storage.case_store import CaseStore

    settings = run.settings
    model = settings.staining.perls_stainer
    namer = settings.staining.erythroblast_classifier
    chosen = set(candidates(case, found, classes, settings)) if model is not None else set()
    if model is None or not chosen:
        run.retire(STAGE, set())
        return classes
    called = {c.cell_id for c in classes if is_erythroblast(c.label)}
    mark = fingerprint(
        STAGE,
        VERSIONS[STAGE],
        patches_mark,
        settings.staining.model_dump(mode="json", exclude={"dic_stainer", "target", "size_px"}),
        settings.classification.patch_px,
        settings.classification.classifier,  # what is called an erythroblast, and by whom: the result says so
        model_sha("stainer", model),
        model_sha("sideroblast-reader", settings.staining.perls_reader),
        None if namer is None else model_sha("classifier", namer),
        sorted(chosen),
        sorted(chosen & called),
    )
    store, name = CaseStore(run.store, run.case_id), array_name(settings)
    if run.allow_work:
        side, size_um = model_view(model)
        ids = [c.cell_id for c in found]
        shape = (len(found), side, side, 3)
        store.ensure_array(name, shape, settings.patches, mark, ids, pixel_size_um=size_um)
    items, index_of = [], {}
    for unit in units_of(run, found):
        mine = [c.cell_id for c in unit.cells if c.cell_id in chosen]
        if mine:
            index_of[unit.key] = unit.index
            items.append(
                Item(
                    key=unit.key,
                    fingerprint=fingerprint(mark, unit.index),
                    function=read_unit,
                    args=(unit, mark, mine, sorted(called.intersection(mine))),
                    gpu=True,
                )
            )
    outcomes = run.run_items(STAGE, items, intact=lambda key: store.unit_is_intact(name, index_of[key], mark))
    readings: dict[str, dict[str, Any]] = {}
    need_all(run, STAGE, outcomes)
    for outcome in outcomes.values():
        readings |= (outcome.output or {})["readings"]
    return tuple(
        c.model_copy(update={**readings[c.cell_id], "rs_virtual": True}) if c.cell_id in readings else c
        for c in classes
    )


def model_view(model: str) -> tuple[int, float]:
    """The side in pixels and the pixel size (µm) of the view that a stainer of virtual Perls is given."""
    from pipeline.errors import BadModelPackage
    from storage.packages import ModelPackage
    from storage.registry import describe

    described = describe("stainer", model)
    card = described.card if isinstance(described, ModelPackage) else None
    if card is None or card.input_px is None or card.pixel_size_um is None:
        raise BadModelPackage(
            f"stainer '{model}' does not say what view it takes (input_px, pixel_size_um); it cannot be the "
            "stainer of virtual Perls."
        )
    return card.input_px[0], card.pixel_size_um


def read_unit(unit: CellUnit, mark: str, chosen: list[str], called: list[str]) -> dict[str, Any]:
    """On a worker: stain and read the erythroblasts of one unit; the rows of other cells stay empty.

    Of the `chosen` cells erythroblasts are those that are `called` so, and those that the classifier of
    marrow takes for one: the first knows photographs of blood, the second drawn marrow.
    """
    from pipeline.virtual_perls import erythroblasts_of, read_virtual

    cells, settings = unit.cells, unit.settings
    model = str(settings.staining.perls_stainer)
    side, size_um = model_view(model)
    wanted = set(chosen)
    rows = [i for i, c in enumerate(cells) if c.cell_id in wanted]
    patches = unit.patches()[rows]
    namer, finder = settings.staining.erythroblast_classifier, settings.classification.classifier
    if namer is not None:
        kept = erythroblasts_of(patches, settings.patches.pixel_size_um, work.model("classifier", namer))
        kept |= np.array([cells[row].cell_id in called for row in rows])
        rows, patches = [row for row, yes in zip(rows, kept, strict=True) if yes], patches[kept]
        finder = f"{namer} or {finder}"
    found = read_virtual(
        patches,
        settings.patches.pixel_size_um,
        work.model("stainer", model),
        work.model("sideroblast-reader", settings.staining.perls_reader),
        model_px=side,
        model_um=size_um,
        min_confidence=settings.staining.min_confidence,
    )
    images = np.zeros((len(cells), side, side, 3), np.uint8)
    images[rows] = found.images
    unit.write(array_name(settings), images, mark)
    return {
        "readings": {
            cells[row].cell_id: {
                "rs_type": found.types[i],
                "rs_finder": finder,
                "rs_reader": settings.staining.perls_reader,
                "stain_confidence": round(float(found.confidence[i]), 6),
            }
            for i, row in enumerate(rows)
        }
    }


# The report


def pictures(run: CaseRun, cells: tuple[Cell, ...], wanted: set[str]) -> dict[str, np.ndarray]:
    """Virtual pictures (S, S, 3) uint8 by gallery id, iron and nucleus marked, framed and named virtual."""
    from pipeline.report_virtual import virtual_id
    from storage.case_store import CaseStore
    from storage.registry import load

    rows = {virtual_id(c.cell_id): i for i, c in enumerate(cells)}
    rows = {name: row for name, row in rows.items() if name in wanted}
    if not rows:
        return {}
    store, name = CaseStore(run.store, run.case_id), array_name(run.settings)
    _, size_um = model_view(str(run.settings.staining.perls_stainer))
    reader = load("sideroblast-reader", run.settings.staining.perls_reader)
    return {key: virtual_picture(store.read_row(name, row), size_um, reader) for key, row in rows.items()}


def virtual_picture(image: np.ndarray, pixel_size_um: float, reader: Any) -> np.ndarray:
    """A virtual image (S, S, 3) uint8 enlarged, with what the reader saw, that says what it is."""
    import cv2

    from pipeline.sideroblasts import draw_reading, read_sideroblasts

    reading = read_sideroblasts(image[None], pixel_size_um, reader)[0]
    side = image.shape[0] * SHOWN
    large = cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)
    shift = (SHOWN - 1) / 2
    contour = reading.nucleus_contour
    granules = np.asarray(reading.granules_px, float) * SHOWN + np.array([shift, shift, 0.0])
    large = draw_reading(
        large,
        replace(
            reading,
            granules_px=granules,
            nucleus_contour=None if contour is None else contour * SHOWN + shift,
        ),
    )
    thick = max(2, side // 32)
    cv2.rectangle(large, (0, 0), (side - 1, side - 1), BAND, thick)
    height = side // 7
    large[side - height :] = BAND
    cv2.putText(
        large,
        "VIRTUAL",
        (thick * 2, side - height // 4),
        cv2.FONT_HERSHEY_SIMPLEX,
        height / 38,
        (255, 255, 255),
        max(1, side // 128),
        cv2.LINE_AA,
    )
    return large
