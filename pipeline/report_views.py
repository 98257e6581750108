"""What the report page shows of a result: cards of cells, fields with their boxes, bars of intervals."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from classifiers import taxonomy
from pipeline.report_images import Encoded, FieldPicture
from pipeline.result import Gallery, GalleryCell, Result
from pipeline.result_counts import PatientCell, Row

# Okabe and Ito's palette (2008), darkened where white paper needs it: distinct to colour-blind readers.
CLASS_COLOURS = (
    *("#0072b2", "#b34700", "#007a5a", "#a0457f", "#7a5c00", "#3b3b98", "#8a1c1c", "#2f8f9d"),
    *("#5b7a12", "#d0357a", "#4a4a4a", "#8052c7"),
)


@dataclass(frozen=True)
class Card:
    """One cell of a gallery as the page shows it."""

    index: int
    cell: GalleryCell
    class_: str
    display: str
    uri: str | None
    doubtful: bool
    field_anchor: str | None

    @property
    def model_said(self) -> str:
        """What the model called the cell, in few letters."""
        found = self.cell.label_ai
        return f"{taxonomy.cell_type(found).short} {100 * self.cell.confidence:.0f} %" if found else "–"

    @property
    def named_by(self) -> str:
        return _named_by(self.cell)


@dataclass(frozen=True)
class Shelf:
    """One gallery as the page shows it."""

    gallery: Gallery
    cards: tuple[Card, ...]
    n_left_out: int


@dataclass(frozen=True)
class Bar:
    """Positions 0-100 of an interval on its axis."""

    low: float
    high: float
    at: float | None
    boot_low: float | None
    boot_high: float | None


def shelves_of(
    result: Result,
    chosen: Mapping[str, tuple[GalleryCell, ...]],
    pictures: Mapping[str, str],
    fields: Sequence[FieldPicture],
) -> list[Shelf]:
    """The galleries with their chosen cells, numbered through; `pictures` maps cell ids to data URIs."""
    anchors = {(p.slide, p.field, _shown(p.modality), p.stain): f"f{i}" for i, p in enumerate(fields)}
    shelves: list[Shelf] = []
    n = 0
    for gallery in result.galleries:
        cells = chosen.get(gallery.class_, ())
        cards = tuple(
            Card(
                index=number,
                cell=cell,
                class_=gallery.class_,
                display=gallery.display,
                uri=pictures.get(cell.cell_id),
                doubtful=_doubtful(cell, result),
                field_anchor=anchors.get((cell.slide_id, cell.field, cell.modality, cell.stain)),
            )
            for number, cell in enumerate(cells, start=n)
        )
        n += len(cards)
        shelves.append(Shelf(gallery, cards, gallery.n_total - len(cards)))
    return shelves


def _doubtful(cell: GalleryCell, result: Result) -> bool:
    """Whether a cell is unlike what the classifier knows, or less sure than its kind has to be."""
    least, of_virtual = result.method.min_confidence, result.method.virtual_min_confidence
    if cell.virtual and of_virtual is not None:
        least = of_virtual
    return (least is not None and cell.confidence < least) or cell.is_ood


def images_said(result: Result) -> str:
    """Which kinds of images were read, in words."""
    kinds = {"DIC" if i.modality == "DIC" else i.stain for i in result.inputs}
    said = [k for k in ("DIC", "MGG", "Perls") if k in kinds]
    if not said:
        return "no image"
    named = f"{said[0]} only" if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"
    if "MGG" in kinds or "DIC" not in kinds:
        return named
    return f"{named}, {'' if len(said) == 1 else 'DIC '}virtually stained"


def colours_of(result: Result) -> dict[str, str]:
    """The colour of each class that has a gallery."""
    return {g.class_: CLASS_COLOURS[i % len(CLASS_COLOURS)] for i, g in enumerate(result.galleries)}


def attended(result: Result, shelves: Sequence[Shelf]) -> list[tuple[PatientCell, Card]]:
    """The cells of highest attention that the page shows a picture of."""
    cards = {card.cell.cell_id: card for shelf in shelves for card in shelf.cards if card.uri}
    top = result.patient.top_cells if result.patient else ()
    return [(c, cards[c.cell_id]) for c in top if c.cell_id in cards]


def tops(result: Result) -> dict[str, str]:
    """The three best classes of each cell as JSON, for the enlarged view."""
    return {
        c.cell_id: json.dumps([[_class_name(p.class_), p.p] for p in c.top3])
        for g in result.galleries
        for c in g.cells
    }


def _class_name(class_: str) -> str:
    return taxonomy.display_name(class_) if class_ in taxonomy.CELL_TYPES else class_


def _named_by(cell: GalleryCell) -> str:
    """Whose a cell's name is: the model's confidence says nothing of a person's name."""
    if cell.label_reviewed is None:
        return f"confidence {100 * cell.confidence:.0f} %"
    model = "none"
    if cell.label_ai is not None:
        model = f"{cell.label_ai.replace('_', ' ')} {100 * cell.confidence:.0f} %"
    return f"named by a person (model: {model})"


def _shown(modality: str) -> str:
    return "DIC" if modality == "dic" else modality


def field_views(
    result: Result,
    fields: Sequence[FieldPicture],
    images: Encoded,
    index: Mapping[str, int],
    colours: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Field pictures with the boxes of their cells, in pixels of the picture as drawn."""
    reports = {(f.slide_id, f.field): f for f in result.fields}
    shown = []
    for i, picture in enumerate(fields):
        height, width = picture.size
        scale = width / picture.width_px
        key = (picture.slide, picture.field, _shown(picture.modality), picture.stain)
        boxes = [
            {
                "x": round(c.bbox_px[0] * scale, 1),
                "y": round(c.bbox_px[1] * scale, 1),
                "w": round((c.bbox_px[2] - c.bbox_px[0]) * scale, 1),
                "h": round((c.bbox_px[3] - c.bbox_px[1]) * scale, 1),
                "card": index.get(c.cell_id),
                "title": f"{g.display}, {_named_by(c)}: {c.cell_id}",
                "person": c.label_reviewed is not None,
                "colour": colours[g.class_],
            }
            for g in result.galleries
            for c in g.cells
            if (c.slide_id, c.field, c.modality, c.stain) == key and c.virtual_stain is None
        ]
        report = reports.get((picture.slide, picture.field))
        shown.append(
            {
                "anchor": f"f{i}",
                "picture": picture,
                "modality": _shown(picture.modality),
                "uri": images.uris.get(f"f{i}"),
                "width": width,
                "height": height,
                "boxes": boxes,
                "report": report,
                "focus": next(
                    (
                        q
                        for q in (report.focus if report else ())
                        if (q.modality, q.stain) == (_shown(picture.modality), picture.stain)
                    ),
                    None,
                ),
            }
        )
    return shown


def bars(result: Result) -> dict[str, Any]:
    """Interval bars on one axis: to the next ten above the widest interval."""
    rows = (*result.differential.rows, *result.differential.groups)
    widest = max((max(r.ci_high, r.boot_high or 0) for r in rows), default=100.0)
    top = 100.0 if result.differential.n_denominator == 0 else min(100.0, 10.0 * (int(widest / 10) + 1))
    return {"top": top, "of": {id(r): _bar(r, top) for r in rows}}


def _bar(row: Row, top: float) -> Bar:
    def at(value: float | None) -> float | None:
        return None if value is None else round(100 * min(value, top) / top, 2)

    return Bar(
        at(row.ci_low) or 0.0, at(row.ci_high) or 0.0, at(row.pct), at(row.boot_low), at(row.boot_high)
    )


def rs_bar(result: Result) -> dict[str, Any] | None:
    """The interval of ring sideroblasts on an axis that holds the limits of diagnosis, too."""
    rs = result.sideroblasts
    if rs is None:
        return None
    highest = max(rs.ci_high, rs.reader.ci_high if rs.reader else 0.0)
    top = max(30.0, 10.0 * (int(highest / 10) + 1), 1.3 * max(rs.limits, default=0.0))
    top = min(100.0, top)
    reader = rs.reader and {
        "low": round(100 * rs.reader.ci_low / top, 2),
        "width": round(100 * max(min(rs.reader.ci_high, top) - rs.reader.ci_low, 0.4) / top, 2),
    }
    return {
        "reader": reader,
        "top": top,
        "low": round(100 * rs.ci_low / top, 2),
        "high": round(100 * min(rs.ci_high, top) / top, 2),
        "at": None if rs.rs_pct is None or rs.pct_blocked else round(100 * rs.rs_pct / top, 2),
        "limits": [{"pct": x, "at": round(100 * x / top, 2)} for x in rs.limits if x <= top],
    }
