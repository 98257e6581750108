"""Intake of whole slides: which can be read at all, and the fields that are cut from one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.errors import BadInput, UnreadableImage
from pipeline.intake_files import inside, sha256_slide
from pipeline.intake_manifest import Declaration, Source
from pipeline.intake_sources import (
    MIN_SIDE_PX,
    NO_FIELD_NAMED,
    Inspected,
    no_pixel_size,
    problem_of,
    scale_of,
)
from pipeline.settings import FieldPosition, IntakeSettings
from pipeline.types import FieldImage, Problem, SlideChoice, SlideRegion

if TYPE_CHECKING:
    from pipeline.slide_fields import Chosen
    from storage.slides import SlideField, SlideReader

COARSEST_UM = 1.1  # a pixel: a nucleus of 7 µm is some six of them; 10x objectives make 1 µm
DARK = 64  # of 255: the glass of a camera of 14 bits or less in 16, of which OpenSlide hands on the upper 8

KeepPicture = Callable[[np.ndarray], str]


def positions_of(source: Source, settings: IntakeSettings) -> tuple[FieldPosition, ...]:
    """The fields of a slide that a person named: in the settings, else in the case folder."""
    return tuple(p for p in _named(source, settings) if p.slide in (None, source.slide))


def _named(source: Source, settings: IntakeSettings) -> tuple[FieldPosition, ...]:
    return settings.slide_fields or source.positions


def refuse_unusable_slides(case_dir: Path | str, declared: Declaration, settings: IntakeSettings) -> None:
    """Raise BadInput for what can be seen of a case's whole slides without reading them through.

    A slide without a pixel size; positions that name no slide of the case, or lie outside theirs; and
    slides that cannot be opened or decoded, where nothing else is left to count.  Intake finds it too,
    but on a worker, after every file was hashed; a person should not wait for that.
    """
    from storage.slides import SlideReader

    slides = [s for s in declared.sources if s.kind == "slide"]
    names = {s.slide for s in slides}
    for position in settings.slide_fields:
        if not slides or position.slide not in {None, *names}:
            what = f"the slide '{position.slide}'" if position.slide and slides else "any whole slide"
            raise BadInput(
                f"{declared.case_id}: fields are named by hand, but the case does not hold {what}; check the "
                "positions."
            )
    broken: list[UnreadableImage] = []
    for source in slides:
        path = inside(Path(case_dir).absolute(), source.file)
        if not path.exists():
            continue
        try:
            with SlideReader(path) as reader:
                reader.check()
                scale = scale_of(source, reader.file_pixel_size_um)
                if scale is None:
                    raise BadInput(
                        f"{declared.case_id}: {no_pixel_size(source, reader.notes).problems[0].message}"
                    )
                _refuse_coarse(source, scale[0])
                reader.pixel_size_um = scale[0]
                if positions := positions_of(source, settings):
                    from pipeline.slide_fields import fields_by_hand

                    fields_by_hand(reader, settings, positions)
        except UnreadableImage as error:
            broken.append(error)
        except OSError:
            continue
    if broken and len(broken) == len(declared.sources):
        more = f" ({len(broken) - 1} more like it)" if len(broken) > 1 else ""
        raise BadInput(f"{declared.case_id}: no field can be used: {broken[0]}{more}")


def inspect_slide(
    path: Path, source: Source, settings: IntakeSettings, keep_picture: KeepPicture | None = None
) -> Inspected:
    """The fields of one whole slide; raises UnreadableImage, OSError or BadInput for a slide that is none.

    `keep_picture` takes the picture of the choice, (H, W, 3) uint8, and gives the key it is kept under.
    """
    from pipeline.slide_fields import choose_fields
    from storage.slides import SlideReader

    if no_use := _not_to_be_read(source, settings):
        return Inspected(problems=(no_use,))
    digest = sha256_slide(path)
    with SlideReader(path) as reader:
        scale = scale_of(source, reader.file_pixel_size_um)
        if scale is None:
            return no_pixel_size(source, reader.notes)
        size, origin, problems = scale
        _refuse_coarse(source, size)
        problems += [
            problem_of(source, "FILE_NOTE", f"{source.file}: {note}.", fatal=False) for note in reader.notes
        ]
        reader.pixel_size_um = size
        reader.check()
        overview = reader.overview()
        if unfit := _unfit(source, reader, overview, settings):
            return Inspected(problems=(*problems, unfit))
        chosen = choose_fields(
            reader,
            settings,
            positions_of(source, settings),
            by_stained_area=source.stain == "Perls",
            overview=overview,
        )
        picture = None
        if keep_picture is not None:
            from pipeline.slide_picture import draw_choice

            picture = keep_picture(draw_choice(chosen, reader.width_px, reader.height_px))
    problems += _problems_of(source, settings, chosen)
    if not chosen.fields:
        return Inspected(problems=tuple(problems), picture=picture)
    return Inspected(
        images=_field_images(source, chosen.fields, size, origin, digest),
        problems=tuple(problems),
        choice=_choice_of(source, chosen, picture),
        picture=picture,
    )


def _not_to_be_read(source: Source, settings: IntakeSettings) -> Problem | None:
    """Why a slide is not even opened, where it is not."""
    if source.modality == "dic" or source.stain == "unstained":
        message = f"{source.file}: a whole slide is read as stained brightfield only; export DIC as fields."
        return problem_of(source, "UNREADABLE", message)
    if _named(source, settings) and not positions_of(source, settings):
        message = (
            f"{source.file}: fields are named by hand, and none of them on the slide '{source.slide}': it is "
            "not read; name fields of it, too, if it is to be."
        )
        return problem_of(source, NO_FIELD_NAMED, message, fatal=False)
    return None


def _problems_of(source: Source, settings: IntakeSettings, chosen: Chosen) -> list[Problem]:
    """What is to be said of the fields that were chosen."""
    if not chosen.fields:
        message = (
            f"{source.file}: no stained material was found on the slide; check that it is the right one."
        )
        return [problem_of(source, "EMPTY_SLIDE", message)]
    problems = []
    if not chosen.monolayer:
        problems.append(_no_monolayer(source, settings, len(chosen.fields)))
    if damaged := [c.field for c in chosen.candidates if c.damaged]:
        problems.append(_damaged(source, damaged, len(chosen.candidates)))
    return problems


def _field_images(
    source: Source, fields: Sequence[SlideField], size_um: float, origin: Any, digest: str
) -> tuple[FieldImage, ...]:
    """The fields of a slide as images of the case, numbered in the order in which they were chosen."""
    prefix = f"{source.field}-" if source.field else ""
    return tuple(
        FieldImage(
            slide=source.slide,
            field=f"{prefix}R{number:04d}",
            modality=source.modality,
            stain=source.stain,
            file=source.file,
            pixel_size_um=field.pixel_size_um,
            pixel_size_source=origin,
            width_px=field.out_width_px,
            height_px=field.out_height_px,
            bits=8,
            channels=3,
            sha256=digest,
            # Where the slide itself has a stage position, it is that of its corner.
            x_um=(source.x_um or 0.0) + field.x_px * size_um,
            y_um=(source.y_um or 0.0) + field.y_px * size_um,
            region=SlideRegion(
                x_px=field.x_px, y_px=field.y_px, width_px=field.width_px, height_px=field.height_px
            ),
        )
        for number, field in enumerate(fields, start=1)
    )


def _choice_of(source: Source, chosen: Chosen, picture: str | None) -> SlideChoice:
    """How the fields of a slide were chosen, and out of what."""
    scores = {c.field: c.score for c in chosen.candidates if c.score is not None}
    taken = [round(scores[f], 3) for f in chosen.fields if f in scores]
    return SlideChoice(
        slide=source.slide,
        file=source.file,
        how=chosen.how,
        n_candidates=len(chosen.candidates),
        n_scored=len(scores),
        n_chosen=len(chosen.fields),
        lowest_score=min(taken, default=None),
        best_score=max(taken, default=None),
        picture=picture,
    )


def _refuse_coarse(source: Source, size_um: float) -> None:
    if size_um > COARSEST_UM:
        raise UnreadableImage(
            f"{source.file}: at {size_um:g} µm a pixel the slide shows no nucleus; hand in a scan of "
            f"{COARSEST_UM:g} µm or less, or correct the pixel size."
        )


def _unfit(
    source: Source, reader: SlideReader, overview: np.ndarray, settings: IntakeSettings
) -> Problem | None:
    """Why no field of a slide can be counted, as far as its overview shows."""
    from storage.images import is_grey
    from storage.slide_grid import glass_colour, tissue_of

    scale = max(1.0, settings.slide_pixel_size_um / reader.need_pixel_size())
    if min(reader.width_px, reader.height_px) / scale < MIN_SIDE_PX:
        message = (
            f"{source.file} has only {reader.width_px} x {reader.height_px} pixels; hand in the whole slide."
        )
        return problem_of(source, "TOO_SMALL", message)
    if reader.bits > 8 and glass_colour(overview).max() < DARK:
        message = (
            f"{source.file} holds 10- to 14-bit data in 16 bits, of which only the upper 8 are read, nearly "
            "black; export the slide with 8 bits."
        )
        return problem_of(source, "UNREADABLE", message)
    picture, tissue = tissue_of(reader, overview)
    tissue &= picture.any(axis=2)  # black is damaged
    if tissue.any() and is_grey(picture[tissue][None]):
        message = (
            f"{source.file} is declared as {source.stain} brightfield but carries no colour, without which "
            "cells cannot be named; export it in colour."
        )
        return problem_of(source, "GREY_BRIGHTFIELD", message)
    return None


def _damaged(source: Source, fields: list[SlideField], n: int) -> Problem:
    message = (
        f"{source.file}: {len(fields)} of {n} fields with stained material cannot be decoded, the first at "
        f"{fields[0].x_px}, {fields[0].y_px} px; they are not read. Copy the slide again."
    )
    return problem_of(source, "DAMAGED_SLIDE", message, fatal=False)


def _no_monolayer(source: Source, settings: IntakeSettings, n: int) -> Problem:
    message = (
        f"{source.file}: no field of the slide shows a single layer of red cells in focus (monolayer score "
        f"{settings.min_field_score:g} or more); the {n} best are read. Look at the picture of the slide, "
        "and name fields with --fields where there are better ones."
    )
    return problem_of(source, "NO_MONOLAYER", message, fatal=False)
