"""What the acquisition was like: each field and each slide, judged against their own kind."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from statistics import median
from typing import Literal

from pipeline.report_inputs import FieldKey, ImageKey, Quality
from pipeline.result import FieldFocus, FieldRegistration, FieldReport, SlideInfo, SlideQc
from pipeline.types import (
    Case,
    Cell,
    FieldImage,
    FocusQuality,
    Modality,
    Problem,
    Purpose,
    Registration,
    Stain,
    purpose_of,
)

# Below this robust z a field is less sharp than its own kind (outlier rule of Iglewicz and Hoaglin 1993).
FOCUS_Z = -3.5
FEWEST_FOR_Z = 4
# Fields differ by this much in content alone; a smaller spread would make outliers of good fields.
FOCUS_SCALE_FLOOR = math.log(1.15)
ILLUMINATION_MIN = 0.8
SATURATION_MAX_PCT = 1.0
RESIDUAL_MAX_UM = 0.5
RESIDUAL_P95_MAX_UM = 1.0


def shown_modality(modality: str) -> Literal["brightfield", "DIC"]:
    """The modality as the result writes it."""
    return "DIC" if modality == "dic" else "brightfield"


def focus_scores(quality: Quality) -> dict[ImageKey, float]:
    """Robust z-score of each image's focus among the images of its slide, modality and stain.

    The score is the higher of those of the normalised variance and the Laplacian's variance, both on
    a log scale: a field is called soft only where both say so, for the first also falls where cells
    are few.  Kinds with fewer than four images have no score.
    """
    kinds: dict[tuple[str, str, str], list[ImageKey]] = {}
    for key in sorted(quality.focus):
        kinds.setdefault((key[0], key[2], key[3]), []).append(key)
    scores: dict[ImageKey, float] = {}
    for keys in kinds.values():
        own = [quality.focus[k] for k in keys]
        if len(own) < FEWEST_FOR_Z:
            continue
        by_variance = _robust_z([f.normalised_variance for f in own])
        by_laplacian = _robust_z([f.laplacian_variance for f in own])
        for key, a, b in zip(keys, by_variance, by_laplacian, strict=True):
            scores[key] = round(max(a, b), 2)
    return scores


def _robust_z(values: Sequence[float]) -> list[float]:
    logs = [math.log(max(v, 1e-12)) for v in values]
    middle = median(logs)
    scale = max(1.4826 * median(abs(v - middle) for v in logs), FOCUS_SCALE_FLOOR)
    return [(value - middle) / scale for value in logs]


def is_doubtful(registration: Registration) -> bool:
    """Whether a registration failed or leaves more than the laboratory accepts."""
    return (
        registration.status == "failed"
        or (registration.residual_um or 0.0) > RESIDUAL_MAX_UM
        or (registration.residual_p95_um or 0.0) > RESIDUAL_P95_MAX_UM
    )


def field_reports(
    case: Case, cells: tuple[Cell, ...], counted: set[str], quality: Quality
) -> tuple[FieldReport, ...]:
    """Every field that was declared or is spoken of, used or rejected, in order.

    `counted` are the ids of the cells in the denominator.  A field is rejected where no image of it
    came through, or where a later stage lost it.
    """
    problems = case.problems
    images: dict[FieldKey, list[FieldImage]] = {}
    for image in case.images:
        images.setdefault((image.slide, image.field), []).append(image)
    named = {(p.slide, p.field) for p in problems if p.slide is not None and p.field is not None}
    scores = focus_scores(quality)
    seen: dict[FieldKey, list[str]] = {}
    for cell in cells:
        seen.setdefault((cell.slide, cell.field), []).append(cell.cell_id)
    reports = []
    for slide, name in sorted(set(images) | {(s, f) for s, f in named if s and f}):
        reason = _rejected(images.get((slide, name), []), _problems_of(case, (slide, name)))
        here = seen.get((slide, name), [])
        registration = quality.registrations.get((slide, name))
        reports.append(
            FieldReport(
                slide_id=slide,
                field=name,
                status="rejected" if reason is not None else "used",
                reason=reason or "",
                n_cells=len(here),
                n_denominator=sum(cell_id in counted for cell_id in here),
                focus=tuple(
                    _focus(key, quality.focus[key], scores)
                    for key in sorted(quality.focus)
                    if key[:2] == (slide, name)
                ),
                registration=None if registration is None else _registration(registration),
            )
        )
    return tuple(reports)


def field_losses(case: Case, fields: Sequence[FieldReport]) -> dict[Purpose, tuple[int, int]]:
    """Of each purpose that images were declared for: the fields lost to it, and those declared for it.

    A field whose MGG image is lost is lost to the differential, though iron is read on its Perls image.
    """
    images: dict[Purpose, dict[FieldKey, list[FieldImage]]] = {}
    for image in case.images:
        of_purpose = images.setdefault(purpose_of(image.stain), {})
        of_purpose.setdefault((image.slide, image.field), []).append(image)
    for gone in case.lost:
        images.setdefault(purpose_of(gone.stain), {}).setdefault((gone.slide, gone.field), [])
    known = {key for of_purpose in images.values() for key in of_purpose}
    # A field of which no one can say what it was for (of earlier versions' findings) is lost to all.
    unknown = max(0, case.n_fields_declared - len(known), len(fields) - len(known))
    return {
        purpose: (
            unknown + sum(_rejected(own, _problems_of(case, key)) is not None for key, own in found.items()),
            unknown + len(found),
        )
        for purpose, found in sorted(images.items())
    }


def _problems_of(case: Case, key: FieldKey) -> list[Problem]:
    return [p for p in case.problems if (p.slide, p.field) == key]


def _rejected(images: list[FieldImage], problems: list[Problem]) -> str | None:
    """Why a field is not used; `images` and `problems` are those of the field."""
    fatal = [p for p in problems if p.fatal_for_field]
    if not images:
        return fatal[0].message if fatal else "no image of the field could be used"
    # A problem of a later stage names the file that it lost; the field is gone when all that could be
    # counted is.
    lost = {p.file for p in fatal}
    countable = [i for i in images if i.modality == "brightfield"] or images
    if all(i.file in lost for i in countable):
        return next(p.message for p in fatal if p.file == countable[0].file)
    return None


def _focus(key: ImageKey, found: FocusQuality, scores: dict[ImageKey, float]) -> FieldFocus:
    stain: Stain = "Perls" if key[3] == "Perls" else "MGG" if key[3] == "MGG" else "unstained"
    return FieldFocus(
        modality=shown_modality(key[2]),
        stain=stain,
        variance=round(found.variance, 6),
        normalised_variance=round(found.normalised_variance, 6),
        laplacian_variance=round(found.laplacian_variance, 6),
        focus_z=scores.get(key),
        illumination_ratio=round(found.illumination_ratio, 4),
        saturation_pct=round(found.saturation_pct, 3),
    )


def _registration(found: Registration) -> FieldRegistration:
    def cut(value: float | None, digits: int = 4) -> float | None:
        return None if value is None else round(value, digits)

    matrix = None
    if found.matrix is not None:
        (a, b, c), (d, e, f) = found.matrix
        matrix = (
            (round(a, 8), round(b, 8), round(c, 4)),
            (round(d, 8), round(e, 8), round(f, 4)),
        )
    return FieldRegistration(
        status=found.status,
        reason=found.reason,
        doubtful=is_doubtful(found),
        ecc=cut(found.ecc),
        residual_px=cut(found.residual_px),
        residual_um=cut(found.residual_um),
        residual_p95_um=cut(found.residual_p95_um),
        p_false_accept=None if found.p_false_accept is None else float(f"{found.p_false_accept:.3g}"),
        matrix=matrix,
    )


def slide_infos(
    case: Case,
    fields: tuple[FieldReport, ...],
    quality: Quality,
    virtual: Mapping[Stain, Collection[ImageKey]],
) -> tuple[SlideInfo, ...]:
    """Each slide in each modality and stain that it was imaged in, and the virtual images made of it.

    `virtual` are, by the stain that is imitated, the images of which cells were stained virtually.  Fields
    whose image was declared and lost count among `n_fields`, but among those of no virtual entry.
    """
    kinds: dict[tuple[str, Modality, Stain], list[FieldImage]] = {}
    for image in case.images:
        kinds.setdefault((image.slide, image.modality, image.stain), []).append(image)
    lost = Counter((d.slide, d.modality, d.stain) for d in case.lost)
    failed = {(p.slide, p.field, p.file) for p in case.problems if p.fatal_for_field}
    used = {(f.slide_id, f.field) for f in fields if f.status == "used"}
    used_images = {
        i for i in case.images if (i.slide, i.field) in used and (i.slide, i.field, i.file) not in failed
    }
    infos = []
    for kind in sorted({*kinds, *lost}):
        images = kinds.get(kind, [])
        info = _slide_info(kind, images, used_images)
        own = {"n_fields": info.n_fields + lost[kind], "qc": _slide_qc(*kind, fields)}
        infos.append(info.model_copy(update=own))
        for stain, made_of in sorted(virtual.items()):
            sources = [i for i in images if (i.slide, i.field, i.modality, i.stain) in made_of]
            if sources:
                imitated = {
                    "stain": stain,
                    "modality": "brightfield",
                    "virtual": True,
                    "source_stain": kind[2],
                }
                infos.append(_slide_info(kind, sources, used_images).model_copy(update=imitated))
    return tuple(infos)


def _slide_info(
    kind: tuple[str, Modality, Stain], images: Sequence[FieldImage], used: Collection[FieldImage]
) -> SlideInfo:
    slide, modality, stain = kind
    return SlideInfo(
        slide_id=slide,
        stain=stain,
        modality=shown_modality(modality),
        virtual=False,
        pixel_size_um=round(median(i.pixel_size_um for i in images), 6) if images else None,
        sha256=hashlib.sha256("\n".join(sorted({i.sha256 for i in images})).encode()).hexdigest(),
        n_fields=len(images),
        n_fields_used=sum(i in used for i in images),
        qc=SlideQc(),
    )


def _slide_qc(slide: str, modality: str, stain: str, fields: tuple[FieldReport, ...]) -> SlideQc:
    own = [f for f in fields if f.slide_id == slide]
    focus = [q for f in own for q in f.focus if (q.modality, q.stain) == (shown_modality(modality), stain)]
    scores = [q.focus_z for q in focus if q.focus_z is not None]
    residuals = [
        f.registration.residual_p95_um
        for f in own
        if f.registration is not None and f.registration.residual_p95_um is not None
    ]
    return SlideQc(
        focus_z=min(scores, default=None),
        illumination_ratio=min((q.illumination_ratio for q in focus), default=None),
        saturation_pct=max((q.saturation_pct for q in focus), default=None),
        registration_p95_um=max(residuals, default=None) if modality == "dic" else None,
    )
