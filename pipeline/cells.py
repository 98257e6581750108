"""From detections per image to the cells of the case, each once.

Where stage positions are known, boxes of all fields of a slide are compared in slide micrometres and
those that overlap are one cell, kept as it is seen best: whole before cut, then farthest from its
field's edge.  Where positions are not known, fields are taken as separate (the report says so).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pipeline.registration import transform_box
from pipeline.settings import DetectionSettings
from pipeline.types import Box, Cell, Detections, FieldImage, Registration

EDGE_PX = 2.0  # a box this close to the edge is cut by it: detectors stop at the last pixel


@dataclass(frozen=True)
class _View:
    """One cell as one field shows it."""

    image: FieldImage
    box: Box
    score: float
    box_um: Box | None  # in slide micrometres

    @property
    def at_border(self) -> bool:
        x0, y0, x1, y1 = self.box
        return (
            x0 <= EDGE_PX
            or y0 <= EDGE_PX
            or x1 >= self.image.width_px - EDGE_PX
            or y1 >= self.image.height_px - EDGE_PX
        )

    @property
    def room_um(self) -> float:
        """Distance of the box's centre to its field's nearest edge."""
        x, y = (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2
        return min(x, y, self.image.width_px - x, self.image.height_px - y) * self.image.pixel_size_um


def merge_cells(
    images: tuple[FieldImage, ...],
    detections: list[Detections],
    registrations: Mapping[tuple[str, str], Registration],
    settings: DetectionSettings,
) -> tuple[Cell, ...]:
    """The cells of a case, sorted by slide, field and place; ids are `<slide>/<field>/<number>`.

    Boxes under the threshold are no cells.  A cell cut by the edge of its field is kept and marked, or
    dropped by the border policy `drop`, unless another field shows it whole.  A cell of a brightfield
    field whose DIC partner is registered also gets its box there.
    """
    by_key: dict[tuple[str, str, str, str], FieldImage] = {
        (i.slide, i.field, i.modality, i.stain): i for i in images
    }
    groups: dict[tuple[str, str], list[_View]] = {}
    for found in detections:
        image = by_key[found.slide, found.field, found.modality, found.stain]
        # Views are compared within a slide and a stain: MGG and Perls are different smears even if one
        # manifest calls them by one name, and DIC-only fields may overlap stained ones.
        kind = "Perls" if image.stain == "Perls" else "smear"
        for box, score in zip(found.boxes, found.scores, strict=True):
            if score >= settings.threshold:
                groups.setdefault((found.slide, kind), []).append(
                    _View(image, box, score, _slide_box(image, box))
                )
    kept = [
        (best, n)
        for key in sorted(groups)
        for best, n in _unique(groups[key], settings.same_cell_iou)
        if settings.border_policy == "keep" or not best.at_border
    ]
    kept.sort(key=lambda v: (v[0].image.slide, v[0].image.field, v[0].image.stain, v[0].box[1], v[0].box[0]))
    cells: list[Cell] = []
    numbers: dict[tuple[str, str], int] = {}
    for view, n_seen in kept:
        image = view.image
        place = (image.slide, image.field)
        numbers[place] = numbers.get(place, 0) + 1
        cells.append(_cell(view, n_seen, numbers[place], by_key, registrations.get(place)))
    return tuple(cells)


def _slide_box(image: FieldImage, box: Box) -> Box | None:
    if image.x_um is None or image.y_um is None:
        return None
    size = image.pixel_size_um
    x0, y0, x1, y1 = box
    return (image.x_um + x0 * size, image.y_um + y0 * size, image.x_um + x1 * size, image.y_um + y1 * size)


def _unique(views: list[_View], same_iou: float) -> list[tuple[_View, int]]:
    """The best view of each cell and in how many fields it was seen.

    Greedy from the best view on: each takes the views of other fields that overlap it.  Two boxes of
    one field are two cells; the detector has already merged what was one.
    """
    order = sorted(
        range(len(views)),
        key=lambda i: (
            views[i].at_border,
            -round(views[i].room_um, 3),
            -views[i].score,
            views[i].image.field,
            views[i].box,
        ),
    )
    placed = [i for i in order if views[i].box_um is not None]
    boxes = np.array([views[i].box_um for i in placed], np.float64).reshape(-1, 4)
    taken: set[int] = set()
    found: list[tuple[_View, int]] = [(views[i], 1) for i in order if views[i].box_um is None]
    for rank, index in enumerate(placed):
        if index in taken:
            continue
        taken.add(index)
        overlap = _overlap(boxes[rank], boxes)
        fields = {_field_of(views[index])}
        for other in np.argsort(-overlap, kind="stable"):
            candidate = placed[other]
            if overlap[other] < same_iou:
                break
            if candidate not in taken and _field_of(views[candidate]) not in fields:
                taken.add(candidate)
                fields.add(_field_of(views[candidate]))
        found.append((views[index], len(fields)))
    return found


def _field_of(view: _View) -> tuple[str, str, str]:
    return (view.image.slide, view.image.field, view.image.modality)


def _overlap(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Intersection over the smaller area: a cell cut by an edge lies whole inside its whole view.

    For two whole views of one cell this is at least their intersection over union.
    """
    low = np.maximum(boxes[:, :2], box[:2])
    high = np.minimum(boxes[:, 2:], box[2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    smaller = np.minimum(area, np.prod(box[2:] - box[:2]))
    result: np.ndarray = shared / np.maximum(smaller, 1e-9)
    return result


def _cell(
    view: _View,
    n_seen: int,
    number: int,
    by_key: Mapping[tuple[str, str, str, str], FieldImage],
    registration: Registration | None,
) -> Cell:
    image = view.image
    dic_box: Box | None = None
    partner = by_key.get((image.slide, image.field, "dic", "unstained"))
    if (
        image.modality == "brightfield"
        and image.stain != "Perls"
        and partner is not None
        and registration is not None
        and registration.status == "ok"
    ):
        dic_box = _within(transform_box(view.box, registration), partner)
    centre = None
    if view.box_um is not None:
        centre = ((view.box_um[0] + view.box_um[2]) / 2, (view.box_um[1] + view.box_um[3]) / 2)
    return Cell(
        cell_id=f"{image.slide}/{image.field}/{number:04d}",
        slide=image.slide,
        field=image.field,
        modality=image.modality,
        stain=image.stain,
        bbox_px=_rounded(view.box),
        score=round(view.score, 4),
        x_um=None if centre is None else round(centre[0], 3),
        y_um=None if centre is None else round(centre[1], 3),
        at_border=view.at_border,
        n_fields_seen=n_seen,
        dic_bbox_px=None if dic_box is None else _rounded(dic_box),
    )


def _rounded(box: Box) -> Box:
    x0, y0, x1, y1 = (round(float(v), 2) for v in box)
    return (x0, y0, x1, y1)


def _within(box: Box, image: FieldImage) -> Box | None:
    """The box, if its centre lies in the image; None where the partner does not show the cell."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return box if 0 <= x < image.width_px and 0 <= y < image.height_px else None
