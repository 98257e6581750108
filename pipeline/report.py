"""Stage: report.  From cells, classes and quality to the typed result.

`build_result` makes what `result.json` holds; `pipeline.report_html`, `pipeline.report_text` and
`pipeline.report_cells` show it as a page, for a terminal, and as a table.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace

from classifiers import taxonomy
from pipeline.counting import Counted, count
from pipeline.flags import raise_flags
from pipeline.flags_counts import OOD_PERCENTILE
from pipeline.flags_facts import Facts
from pipeline.report_inputs import ImageKey, ModelUse, Quality, RunInfo
from pipeline.report_limits import cut_cells, not_seen
from pipeline.report_quality import field_reports, shown_modality, slide_infos
from pipeline.report_virtual import evidence_of, virtual_galleries
from pipeline.result import (
    CardSummary,
    CaseInfo,
    Gallery,
    GalleryCell,
    InputFile,
    ModelInfo,
    NotAssessed,
    ProblemReport,
    Result,
    Review,
    Software,
    Status,
)
from pipeline.result_counts import ClassP, PatientCell, PatientLevel, PatternShare
from pipeline.settings import Settings
from pipeline.types import Case, Cell, CellClass, PatientPattern, Stain
from pipeline.virtual_perls import with_support

PATIENT_LEVEL = "The pattern of all cells together"
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:smearflow:report")


def build_result(
    case: Case,
    cells: tuple[Cell, ...],
    classes: tuple[CellClass, ...],
    quality: Quality,
    run: RunInfo,
    settings: Settings,
    *,
    status: Status = "preliminary",
    review: Review | None = None,
    reviewed: Mapping[str, str] | None = None,
    patient: PatientPattern | None = None,
    no_patient: str | None = None,
) -> Result:
    """The result of a case.

    Cells and classes may come in any order: the result has its own.  `reviewed` maps cell ids to a
    reviewer's labels (see `pipeline.counting.count`).  Raises BadInput as `count` does.
    """
    cells = tuple(sorted(cells, key=lambda c: c.cell_id))
    classes = tuple(sorted(classes, key=lambda c: c.cell_id))
    namers = [m.card for m in run.models if m.card is not None and m.card.task == "classifier"]
    counted = count(
        case,
        cells,
        classes,
        settings.counting,
        known_classes=run.known_classes,
        reviewed=reviewed,
        made_for={card.name: card.specimens for card in namers},
    )
    iron = with_support(counted.sideroblasts, evidence_of(run), settings.counting)
    counted = replace(counted, sideroblasts=iron)
    inside = {i for i, label in counted.labels.items() if taxonomy.in_denominator(label, case.specimen)}
    fields = field_reports(case, cells, inside, quality)
    facts = Facts(case, counted, classes, fields, run, status, settings.counting)
    virtual = {c.cell_id for c in classes if c.virtual}
    return Result(
        report_uuid=str(uuid.uuid5(_NAMESPACE, f"{case.case_id}\n{run.fingerprint}\n{status}")),
        created=run.created,
        status=status,
        case=CaseInfo(
            pseudo_id=case.case_id,
            specimen=case.specimen,
            collected=case.collected,
            mode=case.mode,
            n_fields_declared=max(case.n_fields_declared, len(fields)),
            n_fields_used=sum(f.status == "used" for f in fields),
        ),
        slides=slide_infos(case, fields, quality, _stained_virtually(cells, classes)),
        inputs=_inputs(case),
        software=_software(run),
        method=counted.method.model_copy(
            update={
                "min_confidence": run.min_confidence,
                "virtual_min_confidence": run.virtual_min_confidence,
            }
        ),
        differential=counted.differential,
        per_100_wbc=counted.per_100_wbc,
        me_ratio=counted.me_ratio,
        sideroblasts=counted.sideroblasts,
        patient=_patient(patient, run),
        galleries=(
            *virtual_galleries(
                cells,
                {c.cell_id: c for c in classes},
                lambda cell, found: _gallery_cell(cell, found, reviewed or {}),
                settings,
            ),
            *_galleries(cells, classes, counted, reviewed or {}, settings),
        ),
        flags=raise_flags(facts),
        not_assessed=(
            *not_seen(case, bool(virtual), run, settings),
            *cut_cells(cells, settings),
            *counted.not_assessed,
            *(
                [NotAssessed(code="NO_PATIENT_LEVEL", what=PATIENT_LEVEL, why=no_patient)]
                if no_patient
                else []
            ),
        ),
        problems=_problems(case),
        fields=fields,
        review=review or Review(),
    )


def _stained_virtually(cells: tuple[Cell, ...], classes: tuple[CellClass, ...]) -> dict[Stain, set[ImageKey]]:
    """The images of which cells were stained virtually, by the stain that was imitated."""
    by_id = {c.cell_id: c for c in classes}
    found: dict[Stain, set[ImageKey]] = {"MGG": set(), "Perls": set()}
    for cell in cells:
        named = by_id.get(cell.cell_id)
        key = (cell.slide, cell.field, cell.modality, cell.stain)
        if named is not None and named.virtual and cell.modality == "dic":
            found["MGG"].add(key)
        if named is not None and named.rs_virtual:
            found["Perls"].add(key)
    return found


def _patient(found: PatientPattern | None, run: RunInfo) -> PatientLevel | None:
    """The patient-level reading with what its model was measured on."""
    if found is None:
        return None
    card = next((m.card for m in run.models if m.name == found.model), None)
    ranked = sorted(found.probabilities, key=lambda k: (-found.probabilities[k], k))
    return PatientLevel(
        model=found.model,
        measured_on=str(card.metrics.get("measured_on", "not stated")) if card else "not stated",
        n_cells=found.n_cells,
        patterns=tuple(
            PatternShare(pattern=k, p_attention=found.probabilities[k], p_histogram=found.histogram[k])
            for k in ranked
        ),
        agree=ranked[0] == min(found.histogram, key=lambda k: (-found.histogram[k], k)),
        top_cells=tuple(
            PatientCell(cell_id=c.cell_id, attention=c.attention, speaks_for=c.speaks_for) for c in found.top
        ),
    )


def _inputs(case: Case) -> tuple[InputFile, ...]:
    images = sorted(case.images, key=lambda i: (i.slide, i.field, i.modality, i.stain, i.file))
    return tuple(
        InputFile(
            slide_id=i.slide,
            field=i.field,
            modality=shown_modality(i.modality),
            stain=i.stain,
            file=i.file,
            sha256=i.sha256,
            width_px=i.width_px,
            height_px=i.height_px,
            bits=i.bits,
            pixel_size_um=i.pixel_size_um,
            pixel_size_source=i.pixel_size_source,
        )
        for i in images
    )


def _software(run: RunInfo) -> Software:
    return Software(
        name="smearflow",
        version=run.version,
        commit=run.commit,
        config_sha256=run.config_sha256,
        models=tuple(
            ModelInfo(name=m.name, version=m.version, sha256=m.sha256, card=_card(m)) for m in run.models
        ),
    )


def _card(model: ModelUse) -> CardSummary | None:
    card = model.card
    if card is None:
        return None
    return CardSummary(
        task=card.task,
        architecture=card.architecture,
        licence=card.licence,
        intended_use=card.intended_use,
        modalities=card.modalities,
        stains=card.stains,
        specimens=card.specimens,
        pixel_size_um=card.pixel_size_um,
        classes=card.classes,
        training_data=card.training_data,
        limits=card.limits,
    )


def _galleries(
    cells: tuple[Cell, ...],
    classes: tuple[CellClass, ...],
    counted: Counted,
    reviewed: Mapping[str, str],
    settings: Settings,
) -> tuple[Gallery, ...]:
    """Cells by class in the order of a differential, least sure first; ring sideroblasts by type."""
    by_id = {c.cell_id: c for c in classes}
    groups: dict[tuple[int, str, str], list[tuple[Cell, CellClass | None]]] = {}
    for cell in cells:
        found = by_id.get(cell.cell_id)
        key: tuple[int, str, str]
        if cell.stain == "Perls":
            rs = found.rs_type if found is not None and found.rs_type is not None else "not read"
            name = {
                "3": "ring_sideroblast",
                "indeterminate": "iron_indeterminate",
                "not read": "iron_not_read",
            }
            title = {
                "3": "Ring sideroblasts (type 3)",
                "indeterminate": "Erythroblasts, iron indeterminate",
                "not read": "Erythroblasts, iron not read",
            }
            order = ("3", "indeterminate", "2", "1", "0", "not read").index(rs)
            key = (
                order - 100,
                name.get(rs, f"erythroblast_type_{rs}"),
                title.get(rs, f"Erythroblasts of iron type {rs}"),
            )
        else:
            label = counted.labels[cell.cell_id]
            key = (taxonomy.ORDER[label], label, taxonomy.display_name(label))
        groups.setdefault(key, []).append((cell, found))
    galleries = []
    for (_, name_, display), members in sorted(groups.items(), key=lambda g: g[0]):
        members.sort(key=lambda m: (m[1].confidence if m[1] else -1.0, m[0].cell_id))
        shown = members[: settings.report.gallery_cells_per_class]
        galleries.append(
            Gallery(
                class_=name_,
                display=display,
                n_total=len(members),
                cells=tuple(_gallery_cell(cell, found, reviewed) for cell, found in shown),
            )
        )
    return tuple(galleries)


def _gallery_cell(cell: Cell, found: CellClass | None, reviewed: Mapping[str, str]) -> GalleryCell:
    ranked = sorted(found.probabilities.items(), key=lambda p: (-p[1], p[0]))[:3] if found else []
    x0, y0, x1, y1 = cell.bbox_px
    return GalleryCell(
        cell_id=cell.cell_id,
        slide_id=cell.slide,
        field=cell.field,
        modality=shown_modality(cell.modality),
        stain=cell.stain,
        bbox_px=(round(x0, 1), round(y0, 1), round(x1, 1), round(y1, 1)),
        top3=tuple(ClassP(class_=k, p=round(p, 4)) for k, p in ranked),
        confidence=round(found.confidence, 4) if found else 0.0,
        virtual=found.virtual if found else False,
        ood=round(found.ood, 4) if found else 0.0,
        is_ood=found is not None and found.ood > OOD_PERCENTILE,
        stain_confidence=(
            None if found is None or found.stain_confidence is None else round(found.stain_confidence, 4)
        ),
        rs_type=found.rs_type if found else None,
        rs_type_second=found.rs_type_second if found else None,
        label_ai=found.label if found else None,
        label_reviewed=reviewed.get(cell.cell_id),
    )


def _problems(case: Case) -> tuple[ProblemReport, ...]:
    found = {(p.slide or "", p.field or "", p.file or "", p.code, p.message): p for p in case.problems}
    return tuple(
        ProblemReport(
            code=p.code,
            message=p.message,
            slide_id=p.slide,
            field=p.field,
            file=p.file,
            fatal_for_field=p.fatal_for_field,
        )
        for _, p in sorted(found.items())
    )
