"""The cells of a case, each once, out of the boxes of its fields.

Which image speaks for a field: its brightfield (MGG) where boxes were sought there, mapped to DIC by
the registration; else its DIC.  Perls images are a count of their own (a restained field shows the
same cells a second time, for another question).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pipeline.settings import DetectionSettings, detection_threshold
from pipeline.types import Box, Cell, Detections, FieldImage, Registration

# A box that comes this near to the image's edge may go on beyond it; detectors stop a pixel short.
BORDER_PX = 1.5
# A cell cut by one field's edge shows its rest in the next: the part lies in the whole.
SAME_CELL_PART = 0.6
# Stages repeat to about a micrometre, which is much of a sliver: a part may stick out by this.
STAGE_ERROR_UM = 1.5
_BIN_UM = 64.0  # larger than any leukocyte's box


@dataclass(frozen=True)
class _View:
    """A box in one image, and where it lies on the slide (None where no stage position is known)."""

    image: FieldImage
    box: Box
    score: float
    edge_px: float  # from the box to the nearest edge of the image
    box_um: Box | None

    @property
    def at_border(self) -> bool:
        return self.edge_px <= BORDER_PX

    @property
    def seen(self) -> float:
        """Share of the cell's breadth that is inside the image.

        A cell is about as broad as long, so it is the box's side across the edge over that along it (at half
        and below exactly so for a disc); at a corner the flatter cut is judged alone.
        """
        x0, y0, x1, y1 = self.box
        across_x = min(x0, self.image.width_px - x1) <= BORDER_PX
        across_y = min(y0, self.image.height_px - y1) <= BORDER_PX
        ratio = (x1 - x0) / (y1 - y0)
        shares = [1.0, *([ratio] if across_x else []), *([1 / ratio] if across_y else [])]
        return round(min(shares), 3)

    @property
    def rank(self) -> tuple[float, ...]:
        """Better views sort first: whole, really stained, far from the edge, sure; then by place."""
        return (
            self.at_border,
            self.image.modality != "brightfield",
            -self.edge_px * self.image.pixel_size_um,
            -self.score,
            *self.box,
        )


@dataclass
class _Sighting:
    """One cell: its best view and the fields that show it."""

    best: _View
    fields: set[str] = field(default_factory=set)


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def overlap(a: Box, b: Box) -> tuple[float, float]:
    """Intersection over union, and intersection over the smaller box."""
    shared = max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    if shared <= 0:
        return 0.0, 0.0
    areas = _area(a), _area(b)
    return shared / (areas[0] + areas[1] - shared), shared / min(areas)


def _views(image: FieldImage, found: Detections, threshold: float) -> list[_View]:
    width, height = image.width_px, image.height_px
    views: list[_View] = []
    for raw, score in zip(found.boxes, found.scores, strict=True):
        if score < threshold or not all(math.isfinite(v) for v in raw):
            continue
        box = (max(0.0, raw[0]), max(0.0, raw[1]), min(float(width), raw[2]), min(float(height), raw[3]))
        if box[2] <= box[0] or box[3] <= box[1]:
            continue
        box_um: Box | None = None
        if image.x_um is not None and image.y_um is not None:
            x, y, s = image.x_um, image.y_um, image.pixel_size_um
            box_um = (x + box[0] * s, y + box[1] * s, x + box[2] * s, y + box[3] * s)
        edge = min(box[0], box[1], width - box[2], height - box[3])
        views.append(_View(image, box, score, edge, box_um))
    return views


def _speaking(
    images: Iterable[FieldImage], detections: Iterable[Detections]
) -> list[tuple[FieldImage, Detections]]:
    """The images whose boxes count, in a fixed order."""
    by_key = {(i.slide, i.field, i.modality, i.stain): i for i in images}
    found = [d for d in detections if (d.slide, d.field, d.modality, d.stain) in by_key]
    stained = {(d.slide, d.field) for d in found if d.modality == "brightfield" and d.stain != "Perls"}
    chosen = [d for d in found if d.modality == "brightfield" or (d.slide, d.field) not in stained]
    chosen.sort(key=lambda d: (d.slide, d.field, d.modality, d.stain))
    return [(by_key[d.slide, d.field, d.modality, d.stain], d) for d in chosen]


def _same_cell(a: _View, b: _View, same_cell_iou: float) -> float:
    """How surely two views of different fields show one cell; 0 = they do not."""
    if a.box_um is None or b.box_um is None:
        return 0.0
    iou, part = overlap(a.box_um, b.box_um)
    if iou >= same_cell_iou:
        return 1.0 + iou
    small, large = sorted((a, b), key=lambda v: _area(v.box_um or (0, 0, 0, 0)))
    if not small.at_border or small.box_um is None or large.box_um is None:
        return 0.0
    x0, y0, x1, y1 = large.box_um
    e = STAGE_ERROR_UM
    _, near = overlap(small.box_um, (x0 - e, y0 - e, x1 + e, y1 + e))
    return (part + near) / 2 if near >= SAME_CELL_PART else 0.0


def _bins(box: Box, rim_um: float = 0.0) -> list[tuple[int, int]]:
    """The squares of a coarse grid that a box touches: only cells that share one can overlap."""
    xs = range(math.floor((box[0] - rim_um) / _BIN_UM), math.floor((box[2] + rim_um) / _BIN_UM) + 1)
    ys = range(math.floor((box[1] - rim_um) / _BIN_UM), math.floor((box[3] + rim_um) / _BIN_UM) + 1)
    return [(x, y) for y in ys for x in xs]


def _sightings(views: list[_View], same_cell_iou: float) -> list[_Sighting]:
    """Views of one slide and stain as cells.

    Best views first, each joins the cell it matches best, but never a cell that its own field shows
    already: two touching cells of one field stay two.
    """
    cells: list[_Sighting] = []
    at: dict[tuple[int, int], list[int]] = {}
    for view in sorted(views, key=lambda v: (*v.rank, v.image.field)):
        joined: int | None = None
        if view.box_um is not None:
            near = sorted({i for b in _bins(view.box_um) for i in at.get(b, ())})
            scored = [
                (_same_cell(view, cells[i].best, same_cell_iou), -i)
                for i in near
                if view.image.field not in cells[i].fields
            ]
            best = max(scored, default=(0.0, 0))
            joined = -best[1] if best[0] > 0 else None
        if joined is not None:
            cells[joined].fields.add(view.image.field)
            continue
        cells.append(_Sighting(view, {view.image.field}))
        if view.box_um is not None:
            for b in _bins(view.box_um, STAGE_ERROR_UM):
                at.setdefault(b, []).append(len(cells) - 1)
    return cells


def _dic_box(view: _View, dic: FieldImage | None, registration: Registration | None) -> Box | None:
    """The view's box in the DIC partner; None where there is none, no alignment, or it lies outside."""
    if dic is None or registration is None or registration.status != "ok" or registration.matrix is None:
        return None
    from pipeline.registration import transform_box

    box = transform_box(view.box, registration)
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return _rounded(box) if 0 <= x < dic.width_px and 0 <= y < dic.height_px else None


def _rounded(box: Box) -> Box:
    """To a hundredth of a pixel: what a report can carry, the same on every machine."""
    x0, y0, x1, y1 = (round(float(v), 2) for v in box)
    return (x0, y0, x1, y1)


def merge_cells(
    images: Iterable[FieldImage],
    detections: Iterable[Detections],
    registrations: Mapping[tuple[str, str], Registration],
    settings: DetectionSettings,
) -> tuple[Cell, ...]:
    """The cells of a case, in order of slide, field and position; the same for any order of the input.

    Boxes under the threshold of their modality are no cells.  Where stage positions are known, boxes of
    different fields of a slide that overlap on the slide (`settings.same_cell_iou`, or a part cut by
    the edge lying in the whole) are one cell, shown by the view that is whole and farthest from its
    image's edge.  With border_policy `drop`, a cell that no field shows whole is left out.
    """
    images = list(images)
    groups: dict[tuple[str, bool], list[_View]] = {}
    for image, found in _speaking(images, detections):
        group = groups.setdefault((image.slide, image.stain == "Perls"), [])
        group.extend(_views(image, found, detection_threshold(settings, found.modality)))
    partners = {(i.slide, i.field): i for i in images if i.modality == "dic"}
    seen = [s for _, views in sorted(groups.items()) for s in _sightings(views, settings.same_cell_iou)]
    if settings.border_policy == "drop":
        seen = [s for s in seen if not s.best.at_border]
    seen.sort(key=_place)
    numbers: dict[tuple[str, str], int] = {}
    cells: list[Cell] = []
    for sighting in seen:
        view, image = sighting.best, sighting.best.image
        key = (image.slide, image.field)
        numbers[key] = numbers.get(key, 0) + 1
        position = view.box_um
        paired = image.modality == "brightfield" and image.stain != "Perls"
        cells.append(
            Cell(
                cell_id=f"{image.slide}/{image.field}/{numbers[key]:04d}",
                slide=image.slide,
                field=image.field,
                modality=image.modality,
                stain=image.stain,
                bbox_px=_rounded(view.box),
                score=round(view.score, 4),
                x_um=None if position is None else round((position[0] + position[2]) / 2, 3),
                y_um=None if position is None else round((position[1] + position[3]) / 2, 3),
                at_border=view.at_border,
                seen=view.seen,
                n_fields_seen=len(sighting.fields),
                dic_bbox_px=_dic_box(view, partners.get(key), registrations.get(key)) if paired else None,
            )
        )
    return tuple(cells)


def _place(sighting: _Sighting) -> tuple[str | float, ...]:
    image, box = sighting.best.image, sighting.best.box
    return (image.slide, image.field, image.stain, image.modality, box[1], box[0], box[3], box[2])
