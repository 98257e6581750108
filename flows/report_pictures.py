"""The pictures of a report: cells, fields, slides, registrations and explanations, out of the store."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from flows import virtual_perls_stage
from flows.records import CaseRun
from flows.units import units_of
from pipeline.types import Case, Cell

if TYPE_CHECKING:
    from flows.findings import Findings
    from pipeline.report_inputs import FieldKey


def thumbnails(run: CaseRun, findings: Findings, result: Any) -> dict[str, np.ndarray]:
    """A square cut around each gallery cell: (H, W, 3) uint8 by cell id; on Perls the iron is marked."""
    wanted = {cell.cell_id for gallery in result.galleries for cell in gallery.cells}
    found: dict[str, np.ndarray] = {}
    # By units of one shard, so that memory does not grow with the case.
    for unit in units_of(run, findings.cells):
        if not any(c.cell_id in wanted for c in unit.cells):
            continue
        for cell, patch in zip(unit.cells, unit.patches(), strict=True):
            if cell.cell_id in wanted:
                marked = _with_iron(run, patch) if cell.stain == "Perls" else patch
                found[cell.cell_id] = _around(marked, cell, findings.case, run.settings.patches.pixel_size_um)
    return found | virtual_perls_stage.pictures(run, findings.cells, wanted)


def _with_iron(run: CaseRun, patch: np.ndarray) -> np.ndarray:
    """The patch with the nucleus and the granules that the reader saw."""
    from pipeline.sideroblasts import draw_reading, read_sideroblasts
    from storage.registry import load

    reader = load("sideroblast-reader", run.settings.classification.sideroblast_reader)
    return draw_reading(patch, read_sideroblasts(patch[None], run.settings.patches.pixel_size_um, reader)[0])


def _around(patch: np.ndarray, cell: Cell, case: Case, patch_pixel_size_um: float) -> np.ndarray:
    """The cell with a rim; grey where its field ends."""
    from pipeline.report_images import around_cell

    image = case.image(cell.slide, cell.field, cell.modality, cell.stain)
    if image is None:
        return around_cell(patch, cell.bbox_px, None, 1.0)
    scale = image.pixel_size_um / patch_pixel_size_um
    return around_cell(patch, cell.bbox_px, (image.width_px, image.height_px), scale)


def _picture(run: CaseRun, key: str) -> np.ndarray:
    """A picture that a worker left in the store, (H, W, 3) uint8 RGB."""
    import cv2

    data = np.frombuffer(run.store.read_bytes(key), np.uint8)
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR_RGB))


def field_pictures(run: CaseRun, findings: Findings) -> Iterator[Any]:
    """The reduced field images; the page draws the boxes."""
    from pipeline.report_images import FieldPicture

    for item in findings.images:
        if item.picture is None or item.modality is None:
            continue
        image = findings.case.image(item.slide, item.field, item.modality, item.stain)
        if image is None or not run.store.exists(item.picture):
            continue
        yield FieldPicture(
            slide=item.slide,
            field=item.field,
            modality=item.modality,
            stain=image.stain,
            picture=partial(_picture, run, item.picture),
            width_px=image.width_px,
        )


def slide_pictures(run: CaseRun, findings: Findings) -> list[Any]:
    """Whole slides with the fields that were read."""
    from pipeline.report_slides import SlidePicture

    return [
        SlidePicture(choice, _picture(run, choice.picture))
        for choice in findings.case.slide_choices
        if choice.picture is not None and run.store.exists(choice.picture)
    ]


def explained_pictures(run: CaseRun, findings: Findings) -> list[Any]:
    """Pictures of what speaks for the names of cells in doubt."""
    from pipeline.report_explanations import ExplainedPicture

    return [
        ExplainedPicture(cell, _picture(run, cell.picture))
        for cell in findings.explained
        if run.store.exists(cell.picture)
    ]


def registration_pictures(run: CaseRun, findings: Findings) -> dict[FieldKey, np.ndarray]:
    """Pictures of registrations in doubt, by (slide, field)."""
    return {
        (f.slide, f.field): _picture(run, f.picture)
        for f in findings.registrations
        if f.picture is not None and run.store.exists(f.picture)
    }
