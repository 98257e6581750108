"""What is left of a case's fields where images of them could not be used."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.types import DeclaredImage, FieldImage, Problem, purpose_of


def settled(problems: Iterable[Problem], images: Iterable[FieldImage]) -> list[Problem]:
    """The problems in order, each saying what its field is still read from.

    A field that keeps an image for the same purpose is not lost: iron is read on no MGG or DIC, and no
    differential on Perls.
    """
    kept: dict[tuple[str, str], list[FieldImage]] = {}
    for image in images:
        kept.setdefault((image.slide, image.field), []).append(image)
    found = [_settled(p, kept.get((p.slide or "", p.field or ""), [])) for p in problems]
    return sorted(found, key=lambda p: (p.slide or "", p.field or "", p.code, p.file or ""))


def _settled(problem: Problem, kept: list[FieldImage]) -> Problem:
    if not problem.fatal_for_field or not kept:
        return problem
    purpose = None if problem.stain is None else purpose_of(problem.stain)
    same = [i for i in kept if purpose in (None, purpose_of(i.stain))]
    rest = " and ".join(f"{i.modality} image ({i.stain})" for i in same or kept)
    if same:
        said = f"The field is counted from its {rest}."
    elif purpose == "iron":
        said = f"No iron is read on the field; it is counted from its {rest}."
    else:
        said = f"No differential is counted on the field; iron is read on its {rest}."
    return problem.model_copy(
        update={"fatal_for_field": not same, "message": f"{problem.message} {said}"},
    )


def lost_images(declared: Iterable[DeclaredImage], images: Iterable[FieldImage]) -> tuple[DeclaredImage, ...]:
    """The declared images that are none of `images`, each once, in order."""
    here = {(i.slide, i.field, i.modality, i.stain) for i in images}
    gone = {k: d for d in declared if (k := (d.slide, d.field, d.modality, d.stain)) not in here}
    return tuple(gone[k] for k in sorted(gone))
