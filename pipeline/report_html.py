"""The report page: one HTML file that holds everything it shows.

Nothing is loaded from anywhere: pictures are data URIs, and a content security policy forbids the
rest.  The only script is the page's own, allowed by its hash, so text of the case can never run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from classifiers import taxonomy
from pipeline.pages import asset, environment, source_hash
from pipeline.report_explanations import ExplainedPicture, explanation_views
from pipeline.report_images import (
    FIELD_LADDER,
    THUMBNAIL_LADDER,
    Encoded,
    FieldPicture,
    Overviews,
    encode_within,
)
from pipeline.report_slides import SlidePicture, slide_views
from pipeline.report_text import shown_decimals
from pipeline.result import Gallery, GalleryCell, Result
from pipeline.result_counts import PatientCell, Row
from pipeline.settings import ReportSettings

# A card of the gallery takes about this much text, and the smallest picture about that much.
CARD_BYTES = 1100
SMALLEST_PICTURE_BYTES = 1400

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


def render_html(
    result: Result,
    thumbnails: Mapping[str, np.ndarray],
    fields: Sequence[FieldPicture] = (),
    registrations: Mapping[tuple[str, str], np.ndarray] | None = None,
    settings: ReportSettings | None = None,
    slides: Sequence[SlidePicture] = (),
    explanations: Sequence[ExplainedPicture] = (),
) -> str:
    """The page of a result.

    `thumbnails` maps cell ids to pictures (H, W, 3) uint8 of any size, best twice as large as they
    are shown; `registrations` maps (slide, field) to quality pictures; `slides` show which fields of a
    whole slide were read; `explanations` show what speaks for the names of cells in doubt.  Pictures are
    encoded smaller
    until the page is under `settings.max_bytes`; where that is not enough, the surest cells are left
    out and the page says so.  Cells under the calibrated confidence of the result are marked.
    """
    settings = settings or ReportSettings()
    chosen = _choose(result, settings)
    # The text with every box but no picture; the boxes of a large case weigh as much as some pictures.
    blank = Encoded({f"f{i}": "-" for i in range(len(fields))})
    bare = len(_render(result, chosen, {}, blank, Encoded(), (), fields, settings).encode())
    room = max(0, settings.max_bytes - bare - 20_000)
    overviews = Overviews(fields)
    field_images = encode_within(overviews, list(overviews), int(0.40 * room), FIELD_LADDER)
    checked = sorted(registrations or {})
    checks = {f"r{i}": (registrations or {})[key] for i, key in enumerate(checked)}
    check_images = encode_within(checks, list(checks), int(0.10 * room), FIELD_LADDER)
    slide_shown, slide_bytes = slide_views(slides, int(0.15 * room))
    explained, explained_bytes = explanation_views(explanations, int(0.08 * room))
    room -= field_images.bytes + check_images.bytes + slide_bytes + explained_bytes
    wanted = {
        c.cell_id: thumbnails[c.cell_id]
        for cells in chosen.values()
        for c in cells
        if c.cell_id in thumbnails
    }
    order = _by_doubt(chosen)
    cell_images = encode_within(wanted, [i for i in order if i in wanted], room, THUMBNAIL_LADDER)
    pictures = cell_images.uris
    if cell_images.left_out:
        gone = set(cell_images.left_out)
        chosen = {k: tuple(c for c in cells if c.cell_id not in gone) for k, cells in chosen.items()}
    return _render(
        result,
        chosen,
        pictures,
        field_images,
        check_images,
        checked,
        fields,
        settings,
        slide_shown,
        explained,
    )


def _choose(result: Result, settings: ReportSettings) -> dict[str, tuple[GalleryCell, ...]]:
    """The cells that fit into the page at the least quality: of each class the least sure, in turn."""
    capacity = max(0, int((0.85 * settings.max_bytes - 250_000) / (CARD_BYTES + SMALLEST_PICTURE_BYTES)))
    galleries = {g.class_: g.cells[: settings.gallery_cells_per_class] for g in result.galleries}
    takes = dict.fromkeys(galleries, 0)
    while capacity > 0:
        open_ = [k for k, cells in galleries.items() if takes[k] < len(cells)]
        if not open_:
            break
        share = max(1, capacity // len(open_))
        for k in open_:
            step = min(share, len(galleries[k]) - takes[k], capacity)
            takes[k] += step
            capacity -= step
    return {k: cells[: takes[k]] for k, cells in galleries.items()}


def _by_doubt(chosen: Mapping[str, tuple[GalleryCell, ...]]) -> list[str]:
    """Cells in the order in which they are kept: the least sure of every class first."""
    ranked = [(rank, k, c.cell_id) for k, cells in chosen.items() for rank, c in enumerate(cells)]
    return [cell_id for _, _, cell_id in sorted(ranked)]


def _render(
    result: Result,
    chosen: Mapping[str, tuple[GalleryCell, ...]],
    pictures: Mapping[str, str],
    field_images: Encoded,
    check_images: Encoded,
    checked: Sequence[tuple[str, str]],
    fields: Sequence[FieldPicture],
    settings: ReportSettings,
    slides: Sequence[Mapping[str, Any]] = (),
    explained: Mapping[str, Any] | None = None,
) -> str:
    min_confidence, virtual_least = result.method.min_confidence, result.method.virtual_min_confidence
    colours = {g.class_: CLASS_COLOURS[i % len(CLASS_COLOURS)] for i, g in enumerate(result.galleries)}
    anchors = {(p.slide, p.field, _shown(p.modality), p.stain): f"f{i}" for i, p in enumerate(fields)}
    shelves: list[Shelf] = []
    index: dict[str, int] = {}
    for gallery in result.galleries:
        cards = []
        for cell in chosen.get(gallery.class_, ()):
            index[cell.cell_id] = len(index)
            least = virtual_least if cell.virtual and virtual_least is not None else min_confidence
            low = least is not None and cell.confidence < least
            cards.append(
                Card(
                    index=index[cell.cell_id],
                    cell=cell,
                    class_=gallery.class_,
                    display=gallery.display,
                    uri=pictures.get(cell.cell_id),
                    doubtful=low or cell.is_ood,
                    field_anchor=anchors.get((cell.slide_id, cell.field, cell.modality, cell.stain)),
                )
            )
        shelves.append(Shelf(gallery, tuple(cards), gallery.n_total - len(cards)))
    from markupsafe import Markup

    script, style = asset("report.js"), asset("report.css")
    page = environment().get_template("report.html.j2")
    return page.render(
        r=result,
        shelves=shelves,
        n_cards=len(index),
        explained=explained or {"cells": [], "left_out": 0, "methods": []},
        card_of=index,
        colours=colours,
        views=_views(result, fields, field_images, index, colours),
        checks=[
            {"slide": slide, "field": name, "uri": check_images.uris[f"r{i}"]}
            for i, (slide, name) in enumerate(checked)
            if f"r{i}" in check_images.uris
        ],
        checks_left_out=len(check_images.left_out),
        slides=slides,
        bars=_bars(result),
        few_fields=any(n.code == "FEW_FIELDS" for n in result.not_assessed),
        rs_bar=_rs_bar(result),
        attended=_attended(result, shelves),
        tops=_tops(result),
        decimals=shown_decimals(result.differential.rows),
        thumbnail_px=settings.thumbnail_px,
        min_confidence=min_confidence,
        style=style,
        running=Markup(_running(result)),
        script=script,
        script_hash=source_hash(script),
    )


def _attended(result: Result, shelves: Sequence[Shelf]) -> list[tuple[PatientCell, Card]]:
    """The cells of highest attention that the page shows a picture of."""
    cards = {card.cell.cell_id: card for shelf in shelves for card in shelf.cards if card.uri}
    top = result.patient.top_cells if result.patient else ()
    return [(c, cards[c.cell_id]) for c in top if c.cell_id in cards]


def _tops(result: Result) -> dict[str, str]:
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


def _running(result: Result) -> str:
    """The rule that puts case, status and use label at the foot of every printed page.

    Every character that is no letter or figure of ASCII is a CSS escape: no text of the case ends the string.
    """
    told = f"{result.case.pseudo_id} · {result.status} · {result.use_label}"
    safe = "".join(c if c.isascii() and c.isalnum() else f"\\{ord(c):06x}" for c in told)
    left, right = f'content: "{safe}"', 'content: counter(page) "/" counter(pages)'
    boxes = f"@bottom-left {{ {left}; }} @bottom-right {{ {right}; }}"
    return f"@media print {{ @page {{ font: 8pt sans-serif; {boxes} }} }}"


def _shown(modality: str) -> str:
    return "DIC" if modality == "dic" else modality


def _views(
    result: Result,
    fields: Sequence[FieldPicture],
    images: Encoded,
    index: Mapping[str, int],
    colours: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Field pictures with the boxes of their cells, in pixels of the picture as drawn."""
    reports = {(f.slide_id, f.field): f for f in result.fields}
    views = []
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
        views.append(
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
    return views


def _bars(result: Result) -> dict[str, Any]:
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


def _rs_bar(result: Result) -> dict[str, Any] | None:
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
