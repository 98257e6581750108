"""Intake: a case folder becomes a Case, every image validated, hashed and of known pixel size.

`declare` reads the manifest; `inspect_source` opens one file and can run anywhere; `assemble_case`
joins what was found.  `read_case` does all three.  What makes the whole case unusable is raised as
BadInput; what costs one image is a Problem of the Case, and the rest goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import BadInput, InputChanged, UnreadableImage, is_of_machine
from pipeline.intake_camera import of_one_camera
from pipeline.intake_fields import lost_images, settled
from pipeline.intake_files import check_case_id, inside, read_regular_file
from pipeline.intake_manifest import Declaration, Source, declare
from pipeline.intake_slides import inspect_slide, refuse_unusable_slides
from pipeline.intake_sources import (
    MIN_SIDE_PX,
    MISSING_PIXEL_SIZE,
    NO_FIELD_NAMED,
    Inspected,
    no_pixel_size,
    problem_of,
    scale_of,
)
from pipeline.settings import IntakeSettings
from pipeline.slide_marks import mark_of, read_slide_field, slide_marks, while_same
from pipeline.types import Case, CaseMode, DeclaredImage, FieldImage, Problem, SlideMark

__all__ = [
    "Declaration",
    "Inspected",
    "Source",
    "assemble_case",
    "check_case_id",
    "declare",
    "inspect_source",
    "read_case",
    "read_field",
    "refuse_missing_pixel_size",
    "refuse_unusable_slides",
    "slide_marks",
]


def inspect_source(
    case_dir: Path | str,
    source: Source,
    settings: IntakeSettings,
    keep_picture: Callable[[np.ndarray], str] | None = None,
) -> Inspected:
    """Open, hash and decode one source; never raises for what is wrong with the file itself.

    A field image is read once: the bytes that are hashed are the bytes that are decoded.  Of a whole
    slide `keep_picture` takes the picture of the chosen fields, (H, W, 3) uint8, and gives its key; raises
    InputChanged where the slide did not stay the same meanwhile.
    """
    case_dir = Path(case_dir).absolute()
    try:
        path = inside(case_dir, source.file)
        if not path.exists():
            message = (
                f"{source.file} is named in the manifest but is not in the folder; add it or remove its line."
            )
            return Inspected(problems=(problem_of(source, "MISSING_FILE", message),))
        if source.kind == "slide":
            return while_same(
                path,
                source.file,
                mark_of(path),
                lambda: inspect_slide(path, source, settings, keep_picture),
            )
        return _inspect_field(path, source, settings)
    except InputChanged:
        raise
    except UnreadableImage as error:
        message = str(error).replace(str(case_dir) + "/", "")
        return Inspected(problems=(problem_of(source, "UNREADABLE", message),))
    except (OSError, BadInput) as error:
        if is_of_machine(error):
            raise  # of a disk or share that fails: no verdict on the image
        detail = getattr(error, "strerror", None) or str(error)
        message = f"{source.file} cannot be read ({detail}); copy it again."
        return Inspected(problems=(problem_of(source, "UNREADABLE", message),))


def refuse_missing_pixel_size(case_dir: Path | str, declared: Declaration) -> None:
    """Raise BadInput for a field image whose size in micrometres nobody states, from its header alone.

    Intake finds it too, but only after every file was decoded; a person should not wait for that.
    """
    from storage.images import image_info

    for source in declared.sources:
        if source.kind != "field" or source.given_pixel_size_um or source.manifest_pixel_size_um:
            continue
        try:
            info = image_info(inside(Path(case_dir).absolute(), source.file))
        except (BadInput, OSError):
            continue  # a missing or damaged file is another problem, and not the whole case's
        if info.pixel_size_um is None:
            raise BadInput(f"{declared.case_id}: {no_pixel_size(source, info.notes).problems[0].message}")


def _inspect_field(path: Path, source: Source, settings: IntakeSettings) -> Inspected:
    from storage.images import MAX_FILE_BYTES, camera_bits, decode_image, exposure, is_grey, varies_in_colour

    data = read_regular_file(path, MAX_FILE_BYTES)
    digest = hashlib.sha256(data).hexdigest()
    info, pixels = decode_image(Path(source.file), data, max_pixels=settings.max_image_pixels)
    del data
    if min(info.width, info.height) < MIN_SIDE_PX:
        message = f"{source.file} has only {info.width} x {info.height} pixels; hand in the whole field."
        return Inspected(problems=(problem_of(source, "TOO_SMALL", message),))
    if source.modality == "brightfield" and source.stain == "unstained":
        message = (
            f"{source.file}: brightfield of an unstained smear shows no cell types; declare its stain, "
            "or its modality as dic."
        )
        return Inspected(problems=(problem_of(source, "UNSTAINED_BRIGHTFIELD", message),))
    if source.modality == "dic" and source.stain == "Perls":
        message = (
            f"{source.file} is declared as DIC of a Perls stain, but iron is read on brightfield; declare "
            "its modality as brightfield, or name the brightfield image."
        )
        return Inspected(problems=(problem_of(source, "PERLS_DIC", message),))
    if source.modality == "brightfield" and is_grey(pixels):
        message = (
            f"{source.file} is declared as {source.stain} brightfield but carries no colour, without "
            "which cells cannot be named; export it in colour, or declare it as dic."
        )
        return Inspected(problems=(problem_of(source, "GREY_BRIGHTFIELD", message),))
    if source.modality == "dic" and varies_in_colour(pixels):
        message = (
            f"{source.file} is declared as dic but is coloured as a stained image is; name the DIC of the "
            "field, or declare it as brightfield with its stain."
        )
        return Inspected(problems=(problem_of(source, "COLOURED_DIC", message),))
    scale = scale_of(source, info.pixel_size_um)
    if scale is None:
        return no_pixel_size(source, info.notes)
    size, origin, problems = scale
    problems += [
        problem_of(source, "FILE_NOTE", f"{source.file}: {note}.", fatal=False) for note in info.notes
    ]
    image = FieldImage(
        slide=source.slide,
        field=source.field,
        modality=source.modality,
        stain=source.stain,
        file=source.file,
        pixel_size_um=size,
        pixel_size_source=origin,
        width_px=info.width,
        height_px=info.height,
        bits=info.bits,
        channels=info.channels,
        sha256=digest,
        x_um=source.x_um,
        y_um=source.y_um,
        camera_bits=camera_bits(pixels, info.camera_bits) if pixels.dtype == np.uint16 else None,
        brightest=exposure(pixels, info.camera_bits) if source.modality == "brightfield" else None,
    )
    return Inspected(images=(image,), problems=tuple(problems))


def _source_of(image: FieldImage) -> tuple[str, ...]:
    """What a field was read from, under which name: fields of one whole slide share their hash and this."""
    prefix = image.field if image.region is None else image.field.rpartition("R")[0]
    return (image.file, image.slide, prefix, image.modality, image.stain)


def _drop_copies(images: list[FieldImage]) -> tuple[list[FieldImage], list[Problem]]:
    """Leave out a file's contents that stand under a second name: its cells would count twice."""
    kept: list[FieldImage] = []
    problems: list[Problem] = []
    first: dict[str, FieldImage] = {}
    for image in images:
        earlier = first.setdefault(image.sha256, image)
        if _source_of(earlier) == _source_of(image):
            kept.append(image)
            continue
        of_slide = image.region is not None
        here, there = (
            f"{i.file} ({i.slide if of_slide else f'{i.slide}/{i.field}'}, {i.modality}"
            f"{f' {i.stain}' if of_slide else ''})"
            for i in (image, earlier)
        )
        problem = Problem(
            code="DUPLICATE_IMAGE",
            message=f"{here} has the same contents as {there} and is left out; check which "
            f"{'slide' if of_slide else 'field'} it belongs to.",
            slide=image.slide,
            field=None if of_slide else image.field,
            file=image.file,
            stain=image.stain,
        )
        if problem not in problems:  # once for all fields of a slide
            problems.append(problem)
    return kept, problems


def _partners(declared: Declaration, images: list[FieldImage]) -> list[Problem]:
    """In a case of DIC and brightfield, the fields that were declared in one of them only."""
    modalities: dict[tuple[str, str], set[str]] = {}
    # Perls fields have no DIC partner by nature, and are none to DIC.
    for source in (s for s in declared.sources if s.stain != "Perls"):
        modalities.setdefault((source.slide, source.field), set()).add(source.modality)
    if {m for found in modalities.values() for m in found} != {"brightfield", "dic"}:
        return []
    problems: list[Problem] = []
    lost = {
        (p.slide, p.field) for p in declared.problems if p.code == "DUPLICATE_FIELD" and p.fatal_for_field
    }
    for image in images:
        key = (image.slide, image.field)
        if len(modalities.get(key, {""})) != 1 or image.stain == "Perls" or key in lost:
            continue
        other = "brightfield" if image.modality == "dic" else "dic"
        counted = "from virtually stained DIC" if image.modality == "dic" else "from brightfield alone"
        problems.append(
            Problem(
                code="NO_PARTNER",
                message=f"{image.slide}/{image.field} has no {other} image: it is counted {counted}; "
                "add the missing image to the manifest if it was taken.",
                slide=image.slide,
                field=image.field,
                file=image.file,
                fatal_for_field=False,
            )
        )
    return problems


def case_mode(images: Iterable[FieldImage]) -> CaseMode:
    """What the images allow: DIC with MGG is `paired`, MGG with Perls `mgg_perls`.

    With DIC, Perls images change nothing: a mode has no name for three kinds.
    """
    kinds = {(i.modality, i.stain) for i in images}
    modalities = {m for m, stain in kinds if stain != "Perls"}
    if modalities == {"brightfield", "dic"}:
        return "paired"
    if modalities == {"dic"}:
        return "dic"
    return "mgg_perls" if {s for _, s in kinds} >= {"MGG", "Perls"} else "brightfield"


def assemble_case(
    declared: Declaration,
    inspected: Iterable[Inspected | Mapping[str, Any]],
    marks: Mapping[str, SlideMark] | None = None,
) -> Case:
    """The Case of a declaration and what its sources turned out to be, in any order.

    `marks` are those of the whole slides (`slide_marks`); a slide without one is hashed again by each
    process that reads it.  Raises BadInput where a pixel size is missing, or where nothing is left to count.
    """
    found = [i if isinstance(i, Inspected) else Inspected.model_validate(i) for i in inspected]
    problems = [*declared.problems, *(p for i in found for p in i.problems)]
    for problem in sorted(problems, key=lambda p: p.file or ""):
        if problem.code == MISSING_PIXEL_SIZE:
            raise BadInput(f"{declared.case_id}: {problem.message}")
    seen = marks or {}
    images = sorted(
        (
            image.model_copy(update={"as_seen": seen.get(image.file)}) if image.region else image
            for i in found
            for image in i.images
        ),
        key=lambda i: (i.slide, i.field, i.modality, i.stain),
    )
    images, copies = _drop_copies(images)
    images, dim = of_one_camera(images)
    problems += copies + dim
    if not images:
        raise BadInput(f"{declared.case_id}: no field can be used: {_why_nothing(problems)}")
    problems += _partners(declared, images)
    used = {(i.slide, i.file) for i in images}
    choices = [i.choice for i in found if i.choice is not None and (i.choice.slide, i.choice.file) in used]
    single, of_slides = _declared_singly(declared, problems, images)
    return Case(
        case_id=declared.case_id,
        specimen=declared.specimen,
        collected=declared.collected,
        mode=case_mode(images),
        images=tuple(images),
        problems=tuple(settled(problems, images)),
        n_fields_declared=len({(d.slide, d.field) for d in single} | of_slides),
        lost=lost_images(single, images),
        slide_choices=tuple(sorted(choices, key=lambda c: (c.slide, c.file))),
    )


def _why_nothing(problems: Sequence[Problem]) -> str:
    fatal = [p for p in problems if p.fatal_for_field]
    first = fatal[0].message if fatal else "no image was found"
    more = f" ({len(fatal) - 1} more problems)" if len(fatal) > 1 else ""
    return f"{first}{more}"


def _declared_singly(
    declared: Declaration, problems: Iterable[Problem], images: Sequence[FieldImage]
) -> tuple[tuple[DeclaredImage, ...], set[tuple[str, str]]]:
    """The images that were declared but for the whole slides read, and the fields cut from those."""
    slides_read = {i.file for i in images if i.region is not None}
    slides_read |= {p.file for p in problems if p.code == NO_FIELD_NAMED and p.file}
    whole = {s.names[:4] for s in declared.sources if s.file in slides_read}
    single = tuple(d for d in declared.declared if (d.slide, d.field, d.modality, d.stain) not in whole)
    return single, {(i.slide, i.field) for i in images if i.region is not None}


def read_case(case_dir: Path | str, settings: IntakeSettings, *, pixel_size_um: float | None = None) -> Case:
    """The Case of a folder, its files inspected one after the other; raises BadInput."""
    declared = declare(case_dir, settings, pixel_size_um=pixel_size_um)
    marks = slide_marks(case_dir, declared)
    return assemble_case(
        declared, [inspect_source(case_dir, source, settings) for source in declared.sources], marks
    )


def read_field(case_dir: Path | str, image: FieldImage, settings: IntakeSettings) -> np.ndarray:
    """The pixels of a field as stored: brightfield (H, W, 3), DIC (H, W), uint8 or uint16.

    DIC from a colour camera becomes its luminance.  Raises InputChanged where the file is gone or is not
    the one that intake hashed (of a whole slide: `pipeline.slide_marks`).
    """
    path = inside(Path(case_dir).absolute(), image.file)
    if image.region is not None:
        return read_slide_field(path, image)
    from storage.images import MAX_FILE_BYTES, decode_image, luminance

    try:
        data = read_regular_file(path, MAX_FILE_BYTES)
    except OSError as error:
        raise InputChanged(f"{image.file} cannot be read any more ({error}); copy it again.") from error
    if hashlib.sha256(data).hexdigest() != image.sha256:
        raise InputChanged(f"{image.file} was changed while the case was read; run the case again.")
    _, pixels = decode_image(Path(image.file), data, max_pixels=settings.max_image_pixels)
    return luminance(pixels) if image.modality == "dic" else pixels
