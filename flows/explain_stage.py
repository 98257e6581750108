"""The stage that shows why cells in doubt were named as they were."""

from __future__ import annotations

from typing import Any

import numpy as np

from flows import work
from flows.naming import calibrated_confidence, namers, naming_settings, virtual_confidence
from flows.records import CaseRun, Item, safe_key
from flows.stages import VERSIONS, model_sha
from flows.unit_stages import need_all
from flows.units import CellUnit, units_of
from pipeline.types import Cell, CellClass, ExplainedCell
from storage.fingerprint import fingerprint

STAGE, METHOD = "explanation", "grad-cam"  # the fastest of those that pass (docs/classification.md)
PICTURE_PX = 160


def in_doubt(
    found: tuple[Cell, ...],
    classes: tuple[CellClass, ...],
    least: tuple[float | None, float | None],
    limit: int,
) -> list[str]:
    """Ids of the cells to be explained, least sure first, `limit` at most; on Perls nothing is named.

    `least`: the confidence below which a stained and a virtual cell is in doubt.
    """
    from pipeline.flags_counts import OOD_PERCENTILE

    named = {c.cell_id for c in found if c.stain != "Perls"}
    doubtful = [
        c
        for c in classes
        if c.cell_id in named and (c.ood > OOD_PERCENTILE or c.confidence < (least[c.virtual] or 0.0))
    ]
    doubtful.sort(key=lambda c: (c.confidence, c.cell_id))
    return [c.cell_id for c in doubtful[:limit]]


def explanation(
    run: CaseRun,
    found: tuple[Cell, ...],
    classes: tuple[CellClass, ...],
    patches_mark: str,
    staining_mark: str,
) -> tuple[ExplainedCell, ...]:
    """A picture of what speaks for the name of each cell in doubt; a write unit's cells are one item."""
    settings = run.settings
    least = calibrated_confidence(settings, found), virtual_confidence(settings, found)
    chosen = set(in_doubt(found, classes, least, settings.report.explained_cells))
    if not chosen:
        run.retire(STAGE, set())
        return ()
    labels = {c.cell_id: c.label for c in classes if c.cell_id in chosen}
    mark = fingerprint(
        STAGE,
        VERSIONS[STAGE],
        patches_mark,
        staining_mark,
        naming_settings(settings),
        *(model_sha("classifier", name) for name in namers(settings, found)),
    )
    items = []
    for unit in units_of(run, found):
        mine = {c.cell_id: labels[c.cell_id] for c in unit.cells if c.cell_id in chosen}
        if mine:
            keys = {i: run.picture_key(STAGE, safe_key(i)) for i in mine}
            items.append(
                Item(
                    key=unit.key,
                    fingerprint=fingerprint(mark, sorted(mine.items())),
                    function=explain_unit,
                    args=(unit, mine, keys),
                    gpu=True,
                )
            )
    outcomes = run.run_items(STAGE, items)
    cells: list[ExplainedCell] = []
    need_all(run, STAGE, outcomes)
    for outcome in outcomes.values():
        cells += [ExplainedCell.model_validate(c) for c in (outcome.output or {})["cells"]]
    order = {c.cell_id: (c.confidence, c.cell_id) for c in classes}
    return tuple(sorted(cells, key=lambda c: order[c.cell_id]))


def explain_unit(unit: CellUnit, labels: dict[str, str], keys: dict[str, str]) -> dict[str, Any]:
    """On a worker: explain the cells of one unit that `labels` names; nothing for a closed classifier."""
    from classifiers.base import Explainable
    from classifiers.explaining import explain
    from classifiers.taxonomy import is_a

    settings = unit.settings
    size_um = settings.patches.pixel_size_um
    done = []
    for cell, patch in zip(unit.cells, unit.patches(), strict=True):
        if cell.cell_id not in labels:
            continue
        classifier = work.model("classifier", settings.classification.namer(virtual=cell.modality == "dic"))
        if not isinstance(classifier, Explainable):
            continue
        # A label that the stage gave and the classifier does not know (unidentified) has no heat of its own.
        label: str | None = labels[cell.cell_id]
        if not any(is_a(name, str(label)) for name in classifier.classes):
            label = None
        found = explain(classifier, patch, size_um, label, METHOD)
        work.put_jpeg(unit.store_url, keys[cell.cell_id], pair_picture(patch, found))
        done.append(
            ExplainedCell(
                cell_id=cell.cell_id,
                label=found.label,
                probability=round(found.probability, 4),
                method=found.method,
                picture=keys[cell.cell_id],
                virtual=cell.modality == "dic",
            ).model_dump(mode="json")
        )
    return {"cells": done}


def pair_picture(patch: np.ndarray, found: Any) -> np.ndarray:
    """The view that was read, and beside it its heat: (160, 324, 3) uint8."""
    import cv2

    from classifiers.explaining import draw

    x0, y0, x1, y1 = (round(v) for v in found.view_px)
    height, width = patch.shape[:2]
    rows = slice(max(0, y0), max(1, min(height, y1)))
    columns = slice(max(0, x0), max(1, min(width, x1)))
    out = np.full((PICTURE_PX, 2 * PICTURE_PX + 4, 3), 255, np.uint8)
    for left, image in ((0, patch), (PICTURE_PX + 4, draw(patch, found))):
        part = np.ascontiguousarray(image[rows, columns])
        scale = PICTURE_PX / max(part.shape[:2])
        size = (max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale)))
        part = cv2.resize(part, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        top, side = (PICTURE_PX - part.shape[0]) // 2, (PICTURE_PX - part.shape[1]) // 2
        out[top : top + part.shape[0], left + side : left + side + part.shape[1]] = part
    return out
