"""What one declared source turned out to be, and what both kinds of sources share."""

from __future__ import annotations

from typing import Any

from pipeline.intake_manifest import Source
from pipeline.types import FieldImage, Problem, SlideChoice, Spec

PIXEL_SIZE_TOLERANCE = 0.10
MISSING_PIXEL_SIZE = "MISSING_PIXEL_SIZE"
MIN_SIDE_PX = 64  # smaller than any leukocyte at any objective that is used for counting
NO_FIELD_NAMED = "NO_FIELD_NAMED"  # of a slide, where a person named fields of others


class Inspected(Spec):
    """What one source turned out to be: images to count (several of a slide), and what was wrong."""

    images: tuple[FieldImage, ...] = ()
    problems: tuple[Problem, ...] = ()
    choice: SlideChoice | None = None  # of a whole slide
    picture: str | None = None  # and its key in the store


def problem_of(source: Source, code: str, message: str, *, fatal: bool = True) -> Problem:
    return Problem(
        code=code,
        message=message,
        slide=source.slide,
        field=source.field or None,
        file=source.file,
        stain=source.stain,
        fatal_for_field=fatal,
    )


def scale_of(source: Source, in_file_um: float | None) -> tuple[float, Any, list[Problem]] | None:
    """Pixel size, where it comes from, and a problem where two sources disagree; None where none says."""
    if source.given_pixel_size_um is not None:
        size, origin = source.given_pixel_size_um, "command line"
    elif source.manifest_pixel_size_um is not None:
        size, origin = source.manifest_pixel_size_um, "manifest"
    elif in_file_um is not None:
        return in_file_um, "file", []
    else:
        return None
    others = {"file": in_file_um, "manifest": source.manifest_pixel_size_um}
    problems = [
        problem_of(
            source,
            "PIXEL_SIZE_CONFLICT",
            f"{source.file}: the {origin} says {size:g} µm a pixel, the {name} {other:.4g} µm; "
            f"{size:g} µm is used. Correct the one that is wrong.",
            fatal=False,
        )
        for name, other in others.items()
        if other is not None and name != origin and abs(other / size - 1.0) > PIXEL_SIZE_TOLERANCE
    ]
    return size, origin, problems


def no_pixel_size(source: Source, notes: tuple[str, ...] = ()) -> Inspected:
    """The problem of a source whose pixel size nobody states; `notes` may say why the file's is not used."""
    why = next((n for n in notes if "not square" in n), None)
    why = why or "neither the manifest nor the file states the pixel size"
    where = f"line {source.line} of manifest.csv" if source.line else "a manifest.csv"
    message = f"{source.file}: {why}; write it into pixel_size_um in {where}, or give --pixel-size."
    return Inspected(problems=(problem_of(source, MISSING_PIXEL_SIZE, message),))
