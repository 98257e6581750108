"""The report page: one HTML file that holds everything it shows.

Nothing is loaded from anywhere: pictures are data URIs, and a content security policy forbids the
rest.  The only script is the page's own, allowed by its hash, so text of the case can never run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

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
from pipeline.report_views import (
    attended,
    bars,
    colours_of,
    field_views,
    images_said,
    rs_bar,
    shelves_of,
    tops,
)
from pipeline.result import GalleryCell, Result
from pipeline.settings import ReportSettings

# A card of the gallery takes about this much text, and the smallest picture about that much.
CARD_BYTES = 1100
SMALLEST_PICTURE_BYTES = 1400


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
    from markupsafe import Markup

    colours = colours_of(result)
    shelves = shelves_of(result, chosen, pictures, fields)
    index = {card.cell.cell_id: card.index for shelf in shelves for card in shelf.cards}
    script, style = asset("report.js"), asset("report.css")
    page = environment().get_template("report.html.j2")
    return page.render(
        r=result,
        shelves=shelves,
        n_cards=len(index),
        explained=explained or {"cells": [], "left_out": 0, "methods": []},
        card_of=index,
        colours=colours,
        views=field_views(result, fields, field_images, index, colours),
        checks=[
            {"slide": slide, "field": name, "uri": check_images.uris[f"r{i}"]}
            for i, (slide, name) in enumerate(checked)
            if f"r{i}" in check_images.uris
        ],
        checks_left_out=len(check_images.left_out),
        slides=slides,
        images_said=images_said(result),
        bars=bars(result),
        few_fields=any(n.code == "FEW_FIELDS" for n in result.not_assessed),
        rs_bar=rs_bar(result),
        attended=attended(result, shelves),
        tops=tops(result),
        decimals=shown_decimals(result.differential.rows),
        thumbnail_px=settings.thumbnail_px,
        min_confidence=result.method.min_confidence,
        style=style,
        running=Markup(_running(result)),
        script=script,
        script_hash=source_hash(script),
    )


def _running(result: Result) -> str:
    """The rule that puts case, status and use label at the foot of every printed page.

    Every character that is no letter or figure of ASCII is a CSS escape: no text of the case ends the string.
    """
    told = f"{result.case.pseudo_id} · {result.status} · {result.use_label}"
    safe = "".join(c if c.isascii() and c.isalnum() else f"\\{ord(c):06x}" for c in told)
    left, right = f'content: "{safe}"', 'content: counter(page) "/" counter(pages)'
    boxes = f"@bottom-left {{ {left}; }} @bottom-right {{ {right}; }}"
    return f"@media print {{ @page {{ font: 8pt sans-serif; {boxes} }} }}"
