"""Which fields of a whole slide are read: the ones that a person would count, or those a person names.

Every field of a grid that is not background is a candidate.  A piece in the middle of each is looked at
and scored (`pipeline.smear_quality`): one layer of red cells, apart, in focus.  On a large slide a part
of the candidates is looked at first, spread over the slide and over every thickness, and the rest where it
found the best.  A piece that is damaged costs its field, not the slide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from pipeline.errors import BadInput, UnreadableImage
from pipeline.settings import FieldPosition, IntakeSettings
from pipeline.smear_quality import PROBE_UM, SmearQuality, monolayer_score, smear_quality
from pipeline.types import FieldChoice
from storage.slide_grid import FieldGrid, candidate_fields, darkness, field_grid, glass_colour
from storage.slides import SlideField, SlideReader

Array = np.ndarray[Any, np.dtype[Any]]

PROBE_WIDTH_UM, PROBE_HEIGHT_UM = 256.0, 192.0  # some four hundred red cells
MAX_PROBES = 600  # about half a minute
THICKNESSES = 10  # classes that are looked at, however little of the slide one takes
NEIGHBOURS = 6  # scored candidates that foretell another's score


@dataclass(frozen=True)
class Candidate:
    """A field that could be read; `score` is None where it was not looked at or is damaged, `density` its
    mean optical density on the overview (the smear's thickness)."""

    field: SlideField
    density: float
    quality: SmearQuality | None = None
    score: float | None = None
    damaged: bool = False  # it was looked at, and could not be decoded


@dataclass(frozen=True)
class Chosen:
    """The fields of a slide that are read, in reading order, and how they came to be chosen."""

    fields: tuple[SlideField, ...]
    candidates: tuple[Candidate, ...]
    overview: Array
    how: FieldChoice
    monolayer: bool  # whether any field reached the least score; True where it was not asked


def choose_fields(
    reader: SlideReader,
    settings: IntakeSettings,
    positions: Sequence[FieldPosition] = (),
    *,
    by_stained_area: bool = False,
    overview: Array | None = None,
) -> Chosen:
    """The fields of an opened slide of known pixel size.

    `positions` name them by hand; else `settings.slide_field_choice` says how they are ranked.  With
    `by_stained_area` (a Perls slide, whose red cells hardly show) the stained area ranks them.  `overview`
    is the slide's where it was read already.  None is chosen of a slide that shows only glass.
    Raises BadInput for a position outside the slide, UnreadableImage where no candidate can be decoded.
    """
    overview = reader.overview() if overview is None else overview
    if positions:
        return Chosen(fields_by_hand(reader, settings, positions), (), overview, "by hand", True)
    grid = _grid(reader, settings)
    glass = glass_colour(overview)
    density = darkness(overview, glass)
    candidates = [
        Candidate(f, _mean_density(density, reader, f))
        for f in candidate_fields(reader, grid, overview, settings.min_tissue_fraction)
    ]
    if by_stained_area or settings.slide_field_choice == "stained area":
        best = sorted(candidates, key=lambda c: (-c.field.tissue_fraction, -c.density, *_corner(c)))
        best = _decoded(reader, best, glass, settings.max_slide_fields)
        taken = [c.field for c in best if not c.damaged][: settings.max_slide_fields]
        return Chosen(_in_order(taken), tuple(best), overview, "stained area", True)
    scored = score_candidates(reader, candidates, glass, max(MAX_PROBES, 4 * settings.max_slide_fields))
    ranked = sorted(
        (c for c in scored if c.quality is not None and c.quality.coverage > 0),
        key=lambda c: (-(c.score or 0.0), -c.field.tissue_fraction, *_corner(c)),
    )
    fit = [c for c in ranked if (c.score or 0.0) >= settings.min_field_score]
    taken = [c.field for c in (fit or ranked)[: settings.max_slide_fields]]
    return Chosen(_in_order(taken), tuple(scored), overview, "monolayer", bool(fit) or not ranked)


def _corner(candidate: Candidate) -> tuple[int, int]:
    return candidate.field.y_px, candidate.field.x_px


def _grid(reader: SlideReader, settings: IntakeSettings) -> FieldGrid:
    return field_grid(
        reader,
        field_width_px=settings.field_width_px,
        field_height_px=settings.field_height_px,
        target_pixel_size_um=settings.slide_pixel_size_um,
        overlap_um=settings.field_overlap_um,
    )


def fields_by_hand(
    reader: SlideReader, settings: IntakeSettings, positions: Sequence[FieldPosition]
) -> tuple[SlideField, ...]:
    """The fields at the positions that a person named; raises BadInput for one outside the slide."""
    grid = _grid(reader, settings)
    return _in_order([_by_hand(reader, grid, p) for p in positions])


def _in_order(fields: Sequence[SlideField]) -> tuple[SlideField, ...]:
    return tuple(sorted(dict.fromkeys(fields), key=lambda f: (f.y_px, f.x_px)))


def _by_hand(reader: SlideReader, grid: FieldGrid, position: FieldPosition) -> SlideField:
    x, y = position.corner_px(reader.pixel_size_um or 1.0)
    if not (0 <= x < reader.width_px and 0 <= y < reader.height_px):
        raise BadInput(
            f"{reader.path.name}: the field at {position.shown()} lies outside the slide of "
            f"{reader.width_px} x {reader.height_px} px; give the upper left corner of a field on it."
        )
    # At the slide's rim it is moved inwards, as the grid's last fields are: a sliver shows no cell whole.
    width, height = round(grid.width_px * grid.scale), round(grid.height_px * grid.scale)
    x, y = max(0, min(x, reader.width_px - width)), max(0, min(y, reader.height_px - height))
    return grid.field(reader, x, y, 1.0)


def _mean_density(density: Array, reader: SlideReader, field: SlideField) -> float:
    h, w = density.shape
    x0, x1 = (v * w // reader.width_px for v in (field.x_px, field.x_px + field.width_px))
    y0, y1 = (v * h // reader.height_px for v in (field.y_px, field.y_px + field.height_px))
    x0, y0 = min(x0, w - 1), min(y0, h - 1)
    return float(density[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)].mean())


def probe(reader: SlideReader, field: SlideField, glass: Array) -> SmearQuality:
    """Quality of the middle of a field, read at the scale at which it is measured."""
    mpp = reader.pixel_size_um or 1.0
    um = max(PROBE_UM, mpp)
    width, height = (
        min(side, round(length / mpp))
        for side, length in ((field.width_px, PROBE_WIDTH_UM), (field.height_px, PROBE_HEIGHT_UM))
    )
    x, y = field.x_px + (field.width_px - width) // 2, field.y_px + (field.height_px - height) // 2
    out = (max(1, round(width * mpp / um)), max(1, round(height * mpp / um)))
    return smear_quality(reader.read_region_px(x, y, width, height, *out), um, glass)


def score_candidates(
    reader: SlideReader, candidates: Sequence[Candidate], glass: Array, max_probes: int
) -> list[Candidate]:
    """The candidates with quality and score, at most `max_probes` of them looked at.

    Raises UnreadableImage where not one of them can be decoded.
    """
    seen: dict[int, SmearQuality | UnreadableImage] = {}

    def look(indices: Sequence[int]) -> None:
        for i in indices:
            try:
                seen[i] = probe(reader, candidates[i].field, glass)
            except UnreadableImage as error:
                seen[i] = error

    if len(candidates) <= max_probes:
        look(range(len(candidates)))
    else:
        first = {*_spread(candidates, max_probes // 3), *_of_every_thickness(candidates, max_probes // 6)}
        look(sorted(first))
        # In three rounds, so that what the first finds guides the next.
        for share in (3, 2, 1):
            room = (max_probes - len(seen)) // share
            promise = _promise(candidates, seen)
            look(sorted(promise, key=lambda i: (-promise[i], i))[:room])
    found = {i: q for i, q in seen.items() if isinstance(q, SmearQuality)}
    for error in seen.values():
        if not found and isinstance(error, UnreadableImage):
            raise error
    # What the slide reaches, not what one lucky field does; by fields that show single cells where any do.
    sharp = [q.sharpness for q in found.values() if q.layer > 0.1] or [q.sharpness for q in found.values()]
    sharpest = float(np.percentile(sharp, 90)) if sharp else 0.0
    return [
        replace(c, quality=found[i], score=monolayer_score(found[i], sharpest))
        if i in found
        else replace(c, damaged=i in seen)
        for i, c in enumerate(candidates)
    ]


def _decoded(reader: SlideReader, ranked: Sequence[Candidate], glass: Array, count: int) -> list[Candidate]:
    """The candidates, those marked that cannot be decoded, until `count` can; UnreadableImage if none can."""
    checked: list[Candidate] = []
    bad: UnreadableImage | None = None
    for c in ranked:
        if count == 0:
            break
        try:
            probe(reader, c.field, glass)
            checked.append(c)
            count -= 1
        except UnreadableImage as error:
            checked.append(replace(c, damaged=True))
            bad = error
    if bad is not None and all(c.damaged for c in checked):
        raise bad
    return [*checked, *ranked[len(checked) :]]


def _spread(candidates: Sequence[Candidate], count: int) -> list[int]:
    """Indices of candidates on an even coarser grid: every k-th column of every k-th row, shifted by rows."""
    columns = {x: i for i, x in enumerate(sorted({c.field.x_px for c in candidates}))}
    rows = {y: i for i, y in enumerate(sorted({c.field.y_px for c in candidates}))}
    step = 2
    while True:
        picked = [
            i
            for i, c in enumerate(candidates)
            if rows[c.field.y_px] % step == 0
            and (columns[c.field.x_px] + rows[c.field.y_px] // step * (step // 2)) % step == 0
        ]
        if len(picked) <= count:
            return picked or [0]
        step += 1


def _of_every_thickness(candidates: Sequence[Candidate], count: int) -> list[int]:
    """Indices of candidates of every thickness, an even choice of each: a class that covers little of the
    slide may be the one that is read."""
    density = np.array([c.density for c in candidates])
    edges = np.linspace(density.min(), density.max(), THICKNESSES + 1)[1:-1]
    classes = np.digitize(density, edges)
    picked: list[int] = []
    for k in range(THICKNESSES):
        members = np.flatnonzero(classes == k)
        at = np.linspace(0, len(members) - 1, min(len(members), count // THICKNESSES)).round().astype(int)
        picked += members[at].tolist()
    return picked


def _promise(
    candidates: Sequence[Candidate], seen: dict[int, SmearQuality | UnreadableImage]
) -> dict[int, float]:
    """Expected score of each candidate not looked at: of its neighbours on the slide of like thickness."""
    place = np.array([(c.field.x_px, c.field.y_px) for c in candidates], float)
    place /= max(1.0, float(np.median([c.field.width_px for c in candidates])))
    thickness = np.array([[c.density] for c in candidates])
    spread = float(thickness.std()) or 1.0
    at = np.concatenate([place, 3.0 * thickness / spread], axis=1)  # a field's width weighs a third of it
    known = {i: q.layer for i, q in sorted(seen.items()) if isinstance(q, SmearQuality)}
    index, values = np.array([*known], int), np.array([*known.values()])
    promise: dict[int, float] = {}
    for i in range(len(candidates)):
        if i in seen:
            continue
        if not known:
            promise[i] = 0.0
            continue
        distance = ((at[index] - at[i]) ** 2).sum(axis=1)
        near = np.argsort(distance, kind="stable")[:NEIGHBOURS]
        weight = 1.0 / (distance[near] + 0.5)
        promise[i] = float((values[near] * weight).sum() / weight.sum())
    return promise
