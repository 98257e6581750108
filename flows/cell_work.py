"""What a worker does for cells: one write unit, from paths and rows to arrays of the store and small results.

Like `flows.work` for images: plain values in, pixels read here, JSON-able dicts out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from flows.units import CellUnit
from flows.work import limit_threads, model, read
from pipeline.settings import Settings
from pipeline.types import Cell, FieldImage
from storage.images import as_rgb


def patch_modalities(cells: Iterable[Cell]) -> list[str]:
    """The patch arrays that a case needs."""
    cells = list(cells)
    found = {c.modality for c in cells}
    if any(c.dic_bbox_px is not None for c in cells):
        found.add("dic")
    return sorted(found)


def box_in(cell: Cell, modality: str) -> tuple[float, float, float, float] | None:
    """The cell's box in an image of a modality, or None where it is not known there."""
    if cell.modality == modality:
        return cell.bbox_px
    return cell.dic_bbox_px if modality == "dic" else None


def _rows_of(cells: list[Cell], modality: str) -> dict[tuple[str, str, str], list[int]]:
    """Indices of the cells that have a box in a modality, by the field that shows them."""
    rows: dict[tuple[str, str, str], list[int]] = {}
    for index, cell in enumerate(cells):
        if box_in(cell, modality) is not None:
            stain = cell.stain if cell.modality == modality else "unstained"
            rows.setdefault((cell.slide, cell.field, stain), []).append(index)
    return rows


def cut_unit(case_dir: str, unit: CellUnit, mark: str, images: list[FieldImage]) -> dict[str, Any]:
    """Cut the patches of one write unit from their fields, every size and modality."""
    from pipeline.patches import crop_patches, patch_centres

    limit_threads()
    store, cells, settings = unit.store(), unit.cells, unit.settings
    by_field = {(i.slide, i.field, str(i.modality), str(i.stain)): i for i in images}
    written = 0
    for modality in ("brightfield", "dic"):
        rows = _rows_of(cells, modality)
        channels = 3 if modality == "brightfield" else 1
        # A unit without a cell in a modality that the case has is written too, empty: what has no marker
        # counts as not done, and would be cut again every night.
        blocks = {
            size: np.zeros((len(cells), size, size, channels), np.uint8)
            for size in settings.patches.sizes_px
            if rows or store.mark_of(f"patches/{size}/{modality}") == mark
        }
        for (slide, field, stain), indices in sorted(rows.items()):
            image = by_field[(slide, field, modality, stain)]
            pixels = read(case_dir, image, settings)
            pixels = as_rgb(pixels) if channels == 3 else _grey(pixels)
            boxes = (box_in(cells[i], modality) for i in indices)
            centres = patch_centres([box for box in boxes if box is not None])
            for size, block in blocks.items():
                cut = crop_patches(
                    pixels,
                    centres,
                    size_px=size,
                    pixel_size_um=image.pixel_size_um,
                    target_pixel_size_um=settings.patches.pixel_size_um,
                    fill=settings.patches.border_fill,
                )
                block[indices] = cut.reshape(len(indices), size, size, channels)
        for size, block in blocks.items():
            unit.write(f"patches/{size}/{modality}", block, mark)
            written += len(cells)
    return {"patches": written}


def _grey(image: np.ndarray) -> np.ndarray:
    """(H, W, 1); a DIC image stored as RGB carries the same value three times."""
    return image[..., None] if image.ndim == 2 else image[..., 1:2]


def shear_by_field(
    case_dir: str, stainer: Any, cells: list[Cell], images: list[FieldImage], settings: Settings
) -> dict[tuple[str, str], float]:
    """The shear direction of each DIC field, for a stainer that wants it: a patch can only guess it."""
    if not getattr(stainer, "uses_shear", False):
        return {}
    wanted = {(c.slide, c.field) for c in cells if c.modality == "dic"}
    return {
        (image.slide, image.field): float(stainer.find_shear_deg(read(case_dir, image, settings)))
        for image in images
        if image.modality == "dic" and (image.slide, image.field) in wanted
    }


def stain_unit(case_dir: str, unit: CellUnit, mark: str, images: list[FieldImage]) -> dict[str, Any]:
    """Stain the DIC-only cells of one write unit virtually; the rows of other cells stay empty.

    Returns the confidence of each row, and the threshold that the model states.
    """
    from pipeline.staining import min_stain_confidence, stain_patches
    from storage.registry import virtual_array

    cells, settings = unit.cells, unit.settings
    size, name = settings.staining.size_px, settings.staining.dic_stainer
    stainer = model("stainer", name)
    dic = unit.store().read_rows(f"patches/{size}/dic", unit.first_row, unit.end_row)
    rows = np.flatnonzero([c.modality == "dic" for c in cells])
    shear = shear_by_field(case_dir, stainer, cells, images, settings)
    angles = [shear.get((cells[r].slide, cells[r].field)) for r in rows]
    stained = stain_patches(dic[rows], stainer, settings.staining, shear_angle_deg=angles if shear else None)
    image = np.zeros((len(cells), size, size, 3), np.uint8)
    uncertainty = np.zeros((len(cells), size, size, 1), np.uint8)
    image[rows] = stained.image
    # Kept as 8 bit: a picture of where to doubt, 255 = 1.0 of the model's own scale and beyond.
    uncertainty[rows, ..., 0] = np.clip(np.rint(stained.uncertainty * 255.0), 0, 255).astype(np.uint8)
    for kind, block in (("image", image), ("uncertainty", uncertainty)):
        unit.write(virtual_array(name, kind), block, mark)
    confidence: list[float | None] = [None] * len(cells)
    for row, value in zip(rows, stained.confidence, strict=True):
        confidence[row] = round(float(value), 6)
    return {"confidence": confidence, "stated": min_stain_confidence(stainer)}


def classify_unit(unit: CellUnit) -> dict[str, Any]:
    """Name, measure and, on Perls, read the sideroblast type of the cells of one unit."""
    from pipeline.classification import classify_patches
    from pipeline.segmentation import measure_cells, rounded_measures
    from pipeline.sideroblasts import confidence_of, read_sideroblasts

    limit_threads()
    cells, settings, patches = unit.cells, unit.settings, unit.patches()
    size_um = settings.patches.pixel_size_um
    perls = [i for i, c in enumerate(cells) if c.stain == "Perls"]
    named = [i for i, c in enumerate(cells) if c.stain != "Perls"]
    documents: list[dict[str, Any]] = [{} for _ in cells]
    if named:
        segmenter = model("segmenter", settings.classification.segmenter)
        measures = measure_cells(segmenter.segment(patches[named], size_um), patches[named], size_um)
        for i, measure in zip(named, measures, strict=True):
            documents[i] = rounded_measures(measure)
    for virtual in (False, True):
        mine = [i for i in named if (cells[i].modality == "dic") is virtual]
        if not mine:
            continue
        classifier = model("classifier", settings.classification.namer(virtual=virtual))
        found = classify_patches(patches[mine], size_um, classifier, settings.classification)
        for i, result in zip(mine, found.cells([cells[i].cell_id for i in mine]), strict=True):
            documents[i] |= {
                "label": result.label,
                "probabilities": {k: round(v, 6) for k, v in result.probabilities.items()},
                "confidence": round(result.confidence, 6),
                "ood": round(result.ood, 6),
                "virtual": virtual,
            }
    if perls:
        # On Perls the question is the iron of an erythroblast, not the class: the finder looks for
        # erythroblasts only, and the reader says "indeterminate" where it finds none.
        chosen = settings.classification
        readings = read_sideroblasts(
            patches[perls], size_um, model("sideroblast-reader", chosen.sideroblast_reader)
        )
        second: list[Any] = [None] * len(perls)
        if chosen.sideroblast_second_reader is not None:
            other = model("sideroblast-reader", chosen.sideroblast_second_reader)
            second = read_sideroblasts(patches[perls], size_um, other)
        for i, reading, opinion in zip(perls, readings, second, strict=True):
            documents[i] = {
                "label": "erythroblast",
                "probabilities": {"erythroblast": 1.0},
                "confidence": round(confidence_of(cells[i].score, reading, opinion), 6),
                "ood": 0.0,
                "rs_type": reading.type,
                "rs_type_second": None if opinion is None else opinion.type,
                "rs_finder": settings.detection.perls_detector,
                "rs_reader": chosen.sideroblast_reader,
            }
    return {"classes": [{"cell_id": c.cell_id, **d} for c, d in zip(cells, documents, strict=True)]}
