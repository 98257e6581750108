"""Which fields of a whole slide are read: the ones that a person would count, or those a person names.

Every field of a grid that is not background is a candidate.  A piece in the middle of each is looked at
and scored (`pipeline.smear_quality`): one layer of red cells, apart, in focus.  On a large slide a part
of the candidates is looked at first, evenly spread, and the rest where it found the best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.errors import BadInput
from pipeline.settings import FieldPosition, IntakeSettings
from pipeline.smear_quality import PROBE_UM, SmearQuality, monolayer_score, smear_quality
from pipeline.types import FieldChoice
from storage.slide_grid import FieldGrid, candidate_fields, field_grid, glass_colour, optical_density
from storage.slides import SlideField, SlideReader

Array = np.ndarray[Any, np.dtype[Any]]

PROBE_WIDTH_UM, PROBE_HEIGHT_UM = 256.0, 192.0  # some four hundred red cells
MAX_PROBES = 600  # about half a minute
NEIGHBOURS = 6  # scored candidates that foretell another's score


@dataclass(frozen=True)
class Candidate:
    """A field that could be read; `score` is None where it was not looked at, `density` its mean optical
    density on the thumbnail (the smear's thickness)."""

    field: SlideField
    density: float
    quality: SmearQuality | None = None
    score: float | None = None


@dataclass(frozen=True)
class Chosen:
    """The fields of a slide that are read, in reading order, and how they came to be chosen."""

    fields: tuple[SlideField, ...]
    candidates: tuple[Candidate, ...]
    thumbnail: Array
    how: FieldChoice
    monolayer: bool  # whether any field reached the least score; True where it was not asked


def choose_fields(
    reader: SlideReader,
    settings: IntakeSettings,
    positions: Sequence[FieldPosition] = (),
    *,
    by_stained_area: bool = False,
) -> Chosen:
    """The fields of an opened slide of known pixel size.

    `positions` name them by hand; else `settings.slide_field_choice` says how they are ranked.  With
    `by_stained_area` (a Perls slide, whose red cells hardly show) the stained area ranks them.
    Raises BadInput for a position outside the slide, UnreadableImage for a damaged one.
    """
    thumbnail = reader.thumbnail()
    if positions:
        return Chosen(fields_by_hand(reader, settings, positions), (), thumbnail, "by hand", True)
    grid = _grid(reader, settings)
    glass = glass_colour(thumbnail)
    density = optical_density(thumbnail, glass).mean(axis=2)
    candidates = [
        Candidate(f, _mean_density(density, reader, f))
        for f in candidate_fields(reader, grid, thumbnail, settings.min_tissue_fraction)
    ]
    if by_stained_area or settings.slide_field_choice == "stained area":
        best = sorted(candidates, key=lambda c: (-c.field.tissue_fraction, c.field.y_px, c.field.x_px))
        taken = [c.field for c in best[: settings.max_slide_fields]]
        return Chosen(_in_order(taken), tuple(candidates), thumbnail, "stained area", True)
    scored = score_candidates(reader, candidates, glass, max(MAX_PROBES, 4 * settings.max_slide_fields))
    ranked = sorted(
        (c for c in scored if c.score is not None),
        key=lambda c: (-(c.score or 0.0), -c.field.tissue_fraction, c.field.y_px, c.field.x_px),
    )
    fit = [c for c in ranked if (c.score or 0.0) >= settings.min_field_score]
    taken = [c.field for c in (fit or ranked)[: settings.max_slide_fields]]
    return Chosen(_in_order(taken), tuple(scored), thumbnail, "monolayer", bool(fit) or not ranked)


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
    """The candidates with quality and score, at most `max_probes` of them looked at."""
    seen: dict[int, SmearQuality] = {}

    def look(indices: Sequence[int]) -> None:
        for i in indices:
            seen[i] = probe(reader, candidates[i].field, glass)

    if len(candidates) <= max_probes:
        look(range(len(candidates)))
    else:
        look(_spread(candidates, max_probes // 2))
        # In three rounds, so that what the first finds guides the next.
        for share in (3, 2, 1):
            room = (max_probes - len(seen)) // share
            promise = _promise(candidates, {i: q.layer for i, q in seen.items()})
            look(sorted(promise, key=lambda i: (-promise[i], i))[:room])
    # What the slide reaches, not what one lucky field does; by fields that show single cells where any do.
    sharp = [q.sharpness for q in seen.values() if q.layer > 0.1] or [q.sharpness for q in seen.values()]
    sharpest = float(np.percentile(sharp, 90)) if sharp else 0.0
    return [
        Candidate(c.field, c.density, seen[i], monolayer_score(seen[i], sharpest)) if i in seen else c
        for i, c in enumerate(candidates)
    ]


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


def _promise(candidates: Sequence[Candidate], known: dict[int, float]) -> dict[int, float]:
    """Expected score of each candidate not looked at: of its neighbours on the slide of like thickness."""
    place = np.array([(c.field.x_px, c.field.y_px) for c in candidates], float)
    place /= max(1.0, float(np.median([c.field.width_px for c in candidates])))
    thickness = np.array([[c.density] for c in candidates])
    spread = float(thickness.std()) or 1.0
    at = np.concatenate([place, 3.0 * thickness / spread], axis=1)  # a field's width weighs a third of it
    index = np.array(sorted(known))
    values = np.array([known[i] for i in index])
    promise: dict[int, float] = {}
    for i in range(len(candidates)):
        if i in known:
            continue
        distance = ((at[index] - at[i]) ** 2).sum(axis=1)
        near = np.argsort(distance, kind="stable")[:NEIGHBOURS]
        weight = 1.0 / (distance[near] + 0.5)
        promise[i] = float((values[near] * weight).sum() / weight.sum())
    return promise
