"""The stages of one case, in order: each takes typed values, runs what is not kept, returns typed values.

These are plain functions; `flows.case` wraps each in one Prefect task.
"""

from __future__ import annotations

from typing import Any

from flows import work
from flows.naming import check_painted_scale, check_painter
from flows.records import CaseRun, Item, Outcome, StageFailed, WorkNeeded, safe_key
from pipeline.report_inputs import FieldKey, ImageKey
from pipeline.settings import Settings
from pipeline.types import (
    LOW_CONTRAST,
    SCALE_DOUBT,
    Case,
    Cell,
    Detections,
    FieldImage,
    FocusQuality,
    Problem,
    Registration,
)
from storage.fingerprint import fingerprint

# Raised by one where a stage's code changes what it computes from the same inputs.
VERSIONS = {
    "intake": 7,
    "registration": 6,
    "detection": 10,
    "cells": 2,
    "patches": 3,
    "target": 1,
    "staining": 6,
    "classification": 5,
    "explanation": 2,
    "patient": 2,
    "sideroblasts": 1,
    "virtual_perls": 3,
    "report": 12,
}

GPU_STAGES = {"target", "staining", "classification", "virtual-perls", "explanation", "patient"}


def model_sha(task: Any, name: str) -> str:
    """What identifies a model in a fingerprint: its weights' hash and card, or its weight-free name."""
    from storage.registry import Entry, describe

    found = describe(task, name)
    return f"weight-free:{name}" if isinstance(found, Entry) else fingerprint(found.card)


def image_key(image: FieldImage) -> ImageKey:
    return (image.slide, image.field, image.modality, image.stain)


def intake(run: CaseRun) -> Case:
    """Read and validate the case folder; every image is hashed and decoded once."""
    from pipeline.intake import (
        assemble_case,
        declare,
        refuse_missing_pixel_size,
        refuse_unusable_slides,
        slide_marks,
    )

    declared = declare(run.case_dir, run.settings.intake, pixel_size_um=run.pixel_size_um)
    refuse_missing_pixel_size(run.case_dir, declared)
    refuse_unusable_slides(run.case_dir, declared, run.settings.intake)
    if any(s.modality == "dic" for s in declared.sources):
        check_painter(run.settings)
        check_painted_scale(run.settings)
    if not run.allow_work and not run.store.exists(run.record_key("report", "case")):
        # Of a case without a report a look needs no hashes, which cost the reading of every file.
        raise WorkNeeded(f"{run.case_id}: there is no report of it yet")
    items = []
    marks = slide_marks(run.case_dir, declared)
    for source in declared.sources:
        sha256 = source.hash_file(run.case_dir)
        key = safe_key(*source.names)
        items.append(
            Item(
                key=key,
                function=work.inspect,
                args=(
                    str(run.case_dir),
                    run.store.url,
                    run.picture_key("intake", key),
                    source,
                    sha256,
                    run.settings,
                ),
                fingerprint=fingerprint("intake", VERSIONS["intake"], sha256, source, run.settings.intake),
            )
        )
    outcomes = run.run_items("intake", items)
    _raise_crashes(run, "intake", outcomes)
    case = assemble_case(
        declared,
        [
            _inspected(source, outcomes[item.key])
            for source, item in zip(declared.sources, items, strict=True)
        ],
        marks,
    )
    for problem in case.problems:
        run.ledger.note_problem(problem)
    return case


def _raise_crashes(run: CaseRun, stage: str, outcomes: dict[str, Outcome]) -> None:
    """A stage whose every item crashed has failed; a single crash costs one item and is in the ledger."""
    crashed = [(key, o) for key, o in outcomes.items() if o.error is not None and not o.bad_input]
    if crashed and len(crashed) == len(outcomes):
        key, first = crashed[0]
        raise StageFailed(
            f"{run.case_id}: {stage} failed for all {len(crashed)} items; the first, {key}: "
            f"{first.error_type}: {first.error}"
        )


def _inspected(source: Any, outcome: Outcome) -> dict[str, Any]:
    """What intake found of a source; one whose reading crashed is named, never left out in silence."""
    if outcome.output is not None:
        return outcome.output
    problem = Problem(
        code="INTAKE_ERROR",
        slide=source.slide,
        field=source.field,
        file=source.file,
        stain=source.stain,
        message=f"reading {source.file} failed ({outcome.error_type}: {outcome.error}); it is left out.",
    )
    return {"problems": [problem.model_dump(mode="json")]}


def _lost(stage: str, image: FieldImage, outcome: Outcome) -> Problem:
    return image.problem(
        f"{stage.upper()}_ERROR",
        f"{stage} of {image.file} failed ({outcome.error_type}: {outcome.error}); it is left out.",
        fatal=True,
    )


def _scale_doubt(image: FieldImage, found: dict[str, Any]) -> Problem:
    """The Problem of an image whose red cells contradict its pixel size; it raises DOMAIN_MISMATCH."""
    return image.problem(
        SCALE_DOUBT,
        f"{image.file} is said to have {image.pixel_size_um:g} µm a pixel, but its "
        f"{found['n_red_cells']} red cells speak for {found['pixel_size_um']:.3g} µm; correct the pixel size "
        "and run the case again.",
    )


def _low_contrast(image: FieldImage, levels: float) -> Problem:
    """The Problem of an image whose red cells are faint; it raises DOMAIN_MISMATCH."""
    return image.problem(
        LOW_CONTRAST,
        f"{image.file} has little contrast: its red cells are only {levels:.0f} of 255 levels darker "
        "than the glass (haze, a pale stain or a flat camera curve), which the models were not made for; "
        "leukocytes can be missed and outlines be wrong.",
    )


def registration(run: CaseRun, case: Case) -> tuple[dict[FieldKey, Registration], dict[FieldKey, str]]:
    """DIC to brightfield, for every field that has both; and the pictures of doubtful ones."""
    items: list[Item] = []
    keys: dict[str, FieldKey] = {}
    for dic in case.images:
        if dic.modality != "dic":
            continue
        partner = case.image(dic.slide, dic.field, "brightfield", "MGG")
        if partner is None:
            continue
        key = safe_key(dic.slide, dic.field)
        keys[key] = (dic.slide, dic.field)
        items.append(
            Item(
                key=key,
                function=work.align_field,
                slide=dic.slide,
                field=dic.field,
                args=(
                    str(run.case_dir),
                    run.store.url,
                    run.picture_key("registration", key),
                    dic,
                    partner,
                    run.settings,
                ),
                fingerprint=fingerprint(
                    "registration", VERSIONS["registration"], dic, partner, run.settings.registration
                ),
            )
        )
    outcomes = run.run_items("registration", items)
    found: dict[FieldKey, Registration] = {}
    pictures: dict[FieldKey, str] = {}
    for key, outcome in outcomes.items():
        if outcome.output is None:
            found[keys[key]] = Registration(status="failed", reason=f"{outcome.error_type}: {outcome.error}")
            continue
        found[keys[key]] = Registration.model_validate(outcome.output["registration"])
        if outcome.output["picture"]:
            pictures[keys[key]] = outcome.output["picture"]
    return found, pictures


def detector_of(run: CaseRun, case: Case, image: FieldImage) -> str | None:
    """Which detector reads an image; None where its brightfield partner is read instead."""
    settings = run.settings.detection
    if image.stain == "Perls":
        return settings.perls_detector
    if image.modality == "brightfield":
        return settings.brightfield_detector
    if case.image(image.slide, image.field, "brightfield", "MGG") is not None:
        return None
    return settings.dic_detector


def _looks(run: CaseRun, image: FieldImage) -> tuple[bool, ...]:
    """What detection depends on beside image and model: whether DIC is painted, too."""
    return (run.settings.detection.dic_painted,) if image.modality == "dic" else ()


def is_painted(settings: Settings, image: FieldImage) -> bool:
    """Whether a stainer, for which there may be a GPU, takes part in looking at an image."""
    from detectors.painted import companions

    asked = image.modality == "dic" and settings.detection.dic_painted
    return asked and bool(companions(settings.detection.dic_detector))


def uses_gpu(stage: str, run: CaseRun, case: Case | None = None) -> bool:
    """Whether a stage, by the name of its Prefect task, runs networks where there is a GPU.

    Detection does where the case has DIC that is looked at painted.
    """
    if stage != "detection" or case is None:
        return stage in GPU_STAGES
    looked_at = (i for i in case.images if detector_of(run, case, i) is not None)
    return any(is_painted(run.settings, i) for i in looked_at)


def detection(
    run: CaseRun, case: Case
) -> tuple[list[Detections], dict[ImageKey, FocusQuality], dict[ImageKey, str], list[Problem]]:
    """Leukocytes and acquisition quality of every image."""
    items: list[Item] = []
    keys: dict[str, FieldImage] = {}
    shas: dict[str | None, str] = {None: ""}
    for image in case.images:
        name = detector_of(run, case, image)
        if name not in shas:
            shas[name] = model_sha("detector", str(name))
        key = safe_key(*image_key(image))
        keys[key] = image
        items.append(
            Item(
                key=key,
                function=work.find_cells,
                slide=image.slide,
                field=image.field,
                args=(
                    str(run.case_dir),
                    run.store.url,
                    run.picture_key("detection", key),
                    image,
                    name,
                    run.settings,
                ),
                gpu=name is not None and is_painted(run.settings, image),
                # The threshold is applied to the kept boxes later, so it is no part of what was computed.
                fingerprint=fingerprint(
                    "detection", VERSIONS["detection"], image, name, shas[name], *_looks(run, image)
                ),
            )
        )
    outcomes = run.run_items("detection", items)
    _raise_crashes(run, "detection", outcomes)
    detections: list[Detections] = []
    quality: dict[ImageKey, FocusQuality] = {}
    pictures: dict[ImageKey, str] = {}
    problems: list[Problem] = []
    for key, outcome in outcomes.items():
        image = keys[key]
        if outcome.output is None:
            problems.append(_lost("detection", image, outcome))
            continue
        detections.append(Detections.model_validate(outcome.output["detections"]))
        quality[image_key(image)] = FocusQuality.model_validate(outcome.output["quality"])
        if outcome.output["picture"]:
            pictures[image_key(image)] = outcome.output["picture"]
        if outcome.output["scale"]:
            problems.append(_scale_doubt(image, outcome.output["scale"]))
        if outcome.output["faint"] is not None:
            problems.append(_low_contrast(image, outcome.output["faint"]))
    return [d for d in detections if d.detector], quality, pictures, problems


def cells(
    run: CaseRun, case: Case, detections: list[Detections], registrations: dict[FieldKey, Registration]
) -> tuple[Cell, ...]:
    """The cells of the case, each once, in slide micrometres where positions are known."""
    from pipeline.cells import merge_cells

    mark = fingerprint(
        "cells", VERSIONS["cells"], case, detections, sorted(registrations.items()), run.settings.detection
    )

    def compute() -> dict[str, Any]:
        merged = merge_cells(case.images, detections, registrations, run.settings.detection)
        return {"cells": [c.model_dump(mode="json") for c in merged]}

    return tuple(Cell.model_validate(c) for c in run.run_here("cells", mark, compute)["cells"])
