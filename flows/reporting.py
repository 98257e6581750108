"""The last stage: count, flag, and write result.json, report.html, cells.parquet and the database row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from flows import stages
from flows.identity import deidentified, deidentified_text, pseudonym
from flows.naming import calibrated_confidence, known_classes
from flows.provenance import source_commit
from flows.records import CaseRun
from flows.report_pictures import (
    explained_pictures,
    field_pictures,
    registration_pictures,
    slide_pictures,
    thumbnails,
)
from flows.review_acts import acts_of
from flows.runs import settings_mark
from pipeline.review import (
    Act,
    ReviewState,
    audit_part,
    lost_corrections,
    placed_labels,
    review_part,
    review_state,
)
from pipeline.types import (
    Case,
    Cell,
    CellClass,
    ExplainedCell,
    FocusQuality,
    Modality,
    PaintedTarget,
    PatientPattern,
    Registration,
    Spec,
    Stain,
)
from storage.clock import now
from storage.fingerprint import fingerprint

RESULT, PAGE, TABLE, FINDINGS = "result.json", "report.html", "cells.parquet", "work/findings.json"


class FieldFinding(Spec):
    """What is known of one image or field besides its cells."""

    slide: str
    field: str
    modality: Modality | None = None
    stain: Stain | None = None
    registration: Registration | None = None
    quality: FocusQuality | None = None
    picture: str | None = None  # key of the reduced picture in the store


class Findings(Spec):
    """Everything that a report is made of; kept in the store, so that a report can be made again."""

    case: Case
    cells: tuple[Cell, ...]
    classes: tuple[CellClass, ...]
    registrations: tuple[FieldFinding, ...]
    images: tuple[FieldFinding, ...]
    patient: PatientPattern | None = None
    no_patient: str | None = None  # why there is no patient-level reading
    explained: tuple[ExplainedCell, ...] = ()  # cells in doubt, least sure first
    painted: PaintedTarget | None = None  # of virtual cells, where the settings name no target


def gather(
    case: Case,
    cells: tuple[Cell, ...],
    classes: tuple[CellClass, ...],
    registrations: dict[stages.FieldKey, Registration],
    doubtful: dict[stages.FieldKey, str],
    quality: dict[stages.ImageKey, FocusQuality],
    overviews: dict[stages.ImageKey, str],
    patient: PatientPattern | None = None,
    no_patient: str | None = None,
    explained: tuple[ExplainedCell, ...] = (),
    painted: PaintedTarget | None = None,
) -> Findings:
    """The stages' results in one value."""
    return Findings(
        case=case,
        cells=cells,
        classes=classes,
        registrations=tuple(
            FieldFinding(slide=k[0], field=k[1], registration=r, picture=doubtful.get(k))
            for k, r in sorted(registrations.items())
        ),
        images=tuple(
            FieldFinding.model_validate(
                {
                    "slide": k[0],
                    "field": k[1],
                    "modality": k[2],
                    "stain": k[3],
                    "quality": q,
                    "picture": overviews.get(k),
                }
            )
            for k, q in sorted(quality.items())
        ),
        patient=patient,
        no_patient=no_patient,
        explained=explained,
        painted=painted,
    )


def models_used(run: CaseRun, findings: Findings) -> tuple[Any, ...]:
    """Each model that took part, and what it read."""
    from detectors.painted import companions
    from pipeline.report_inputs import ModelUse
    from storage.registry import describe

    settings = run.settings
    kinds = {(c.modality, c.stain) for c in findings.cells}
    named: list[tuple[Any, str, tuple[tuple[Modality, Stain], ...]]] = []
    if any(i.modality == "brightfield" and i.stain == "MGG" for i in findings.case.images):
        named.append(("detector", settings.detection.brightfield_detector, (("brightfield", "MGG"),)))
    if any(
        stages.detector_of(run, findings.case, i) == settings.detection.dic_detector
        for i in findings.case.images
    ):
        named.append(("detector", settings.detection.dic_detector, (("dic", "unstained"),)))
        beside = companions(settings.detection.dic_detector) if settings.detection.dic_painted else ()
        for task, name in beside:  # the stainer reads the DIC, the detector what is painted of it
            dic = task == "stainer"
            named.append((task, name, (("dic", "unstained"),) if dic else (("brightfield", "MGG"),)))
    if any(k[1] == "Perls" for k in kinds):
        named.append(("detector", settings.detection.perls_detector, (("brightfield", "Perls"),)))
        readers = (
            settings.classification.sideroblast_reader,
            settings.classification.sideroblast_second_reader,
        )
        named += [("sideroblast-reader", r, (("brightfield", "Perls"),)) for r in readers if r is not None]
    if any(k[0] == "dic" for k in kinds):
        named.append(("stainer", settings.staining.dic_stainer, (("dic", "unstained"),)))
    if any(k[1] != "Perls" for k in kinds):
        named.append(("segmenter", settings.classification.segmenter, (("brightfield", "MGG"),)))
        own = settings.classification.virtual_classifier
        if own is None or ("brightfield", "MGG") in kinds:
            named.append(("classifier", settings.classification.classifier, (("brightfield", "MGG"),)))
        if own is not None and any(k[0] == "dic" for k in kinds):
            named.append(("classifier", own, (("dic", "unstained"),)))
    perls_stainer = settings.staining.perls_stainer
    if perls_stainer is not None and any(c.rs_virtual for c in findings.classes):
        named.append(("stainer", perls_stainer, (("brightfield", "MGG"),)))
        named.append(("sideroblast-reader", settings.staining.perls_reader, (("brightfield", "Perls"),)))
        if settings.staining.erythroblast_classifier is not None:
            named.append(("classifier", settings.staining.erythroblast_classifier, (("brightfield", "MGG"),)))
    if findings.patient is not None:
        named.append(("patient-classifier", findings.patient.model, (("brightfield", "MGG"),)))
    once: dict[tuple[Any, str], tuple[tuple[Modality, Stain], ...]] = {}
    for task, name, reads in named:  # one that took part twice stands once
        once.setdefault((task, name), reads)
    return tuple(
        ModelUse.of(describe(task, name), reads, version=version("smearflow"))
        for (task, name), reads in once.items()
    )


def report(run: CaseRun, findings: Findings) -> dict[str, Any]:
    """The result of the case: written where anything it is made of has changed, else the kept one."""
    acts, content, mark = report_marks(run, findings)

    def compute() -> dict[str, Any]:
        return {"sha256": write_report(run, findings, mark, acts, content)}

    def intact() -> bool:
        kept = run.kept("report", "case", mark)
        if kept is None or kept.output is None:
            return False
        return all(
            run.store.exists(f"{run.case_id}/{name}")
            and hashlib.sha256(run.store.read_bytes(f"{run.case_id}/{name}")).hexdigest() == sha
            for name, sha in kept.output["sha256"].items()
        ) and _has_row(run, mark)

    run.run_here("report", mark, compute, intact=intact)
    result: dict[str, Any] = run.store.read_json(f"{run.case_id}/{RESULT}")
    return result


def report_marks(run: CaseRun, findings: Findings) -> tuple[list[Act], str, str]:
    """What persons did, the mark of what they sign, and that of the whole report."""
    acts = acts_of(run.store, run.case_id)
    content = content_mark(run, findings, review_state(acts))
    return acts, content, fingerprint("reviewed", content, acts) if acts else content


def _has_row(run: CaseRun, mark: str) -> bool:
    """Whether the results database still has the row of this report (it may have been restored or lost)."""
    from flows.runs import database_url
    from storage.results_db import ResultsDatabase

    with ResultsDatabase(database_url(run.store.url)) as database:
        return database.has(pseudonym(run.case_id), mark)


def report_mark(run: CaseRun, findings: Findings) -> str:
    # With the cards: thresholds, reader errors and measured figures in a report are theirs.
    models = [(m.name, m.version, m.card) for m in models_used(run, findings)]
    return fingerprint(
        "report",
        # Of every stage: where one draws another picture of the same values, the page is made anew.
        stages.VERSIONS,
        version("smearflow"),
        findings,
        models,
        pseudonym(run.case_id),
        run.settings.classification,
        run.settings.staining,
        run.settings.counting,
        run.settings.report,
    )


def content_mark(run: CaseRun, findings: Findings, state: ReviewState) -> str:
    """What a signature is given for: the report's inputs and the reviewer's corrections."""
    mark = report_mark(run, findings)
    return fingerprint("corrected", mark, state.labels) if state.labels else mark


def write_report(
    run: CaseRun, findings: Findings, mark: str, acts: Sequence[Act] = (), content: str | None = None
) -> dict[str, str]:
    """Write everything that a person reads; returns the sha256 of each file."""
    from flows.runs import database_url
    from pipeline.report import build_result
    from pipeline.report_cells import cells_table, parquet_bytes
    from pipeline.report_html import render_html
    from pipeline.report_inputs import Quality, RunInfo
    from storage.results_db import ResultsDatabase

    classes = known_classes(run.settings, findings.cells)
    told = deidentified_text(findings.case)
    case = deidentified(findings.case)
    state = review_state(acts)
    reviewed = placed_labels(state, findings.cells)
    n_smear = sum(c.stain != "Perls" for c in findings.cells)
    result = build_result(
        case,
        findings.cells,
        findings.classes,
        Quality(
            focus={
                (f.slide, f.field, str(f.modality), str(f.stain)): f.quality
                for f in findings.images
                if f.quality is not None
            },
            registrations={
                (f.slide, f.field): f.registration.model_copy(update={"reason": told(f.registration.reason)})
                for f in findings.registrations
                if f.registration
            },
        ),
        RunInfo(
            fingerprint=mark,
            config_sha256=settings_mark(run.settings),
            expected_config_sha256=run.settings.report.validated_config,
            created=now(),
            models=models_used(run, findings),
            version=version("smearflow"),
            commit=source_commit(),
            known_classes=classes,
            min_confidence=calibrated_confidence(run.settings, findings.cells),
            painted=findings.painted,
        ),
        run.settings,
        status=state.status(content or mark),
        review=review_part(state, reviewed, findings.classes, n_smear) if acts else None,
        reviewed=reviewed,
        patient=findings.patient,
        no_patient=findings.no_patient,
    )
    lost = len(state.labels) - len(reviewed)
    result = result.model_copy(
        update={
            "audit": audit_part(acts),
            "not_assessed": (*result.not_assessed, *lost_corrections(lost)),
        }
    )
    files = {
        FINDINGS: (
            json.dumps(findings.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"
        ).encode(),
        RESULT: result.to_json().encode(),
        PAGE: render_html(
            result,
            thumbnails(run, findings, result),
            list(field_pictures(run, findings)),
            registration_pictures(run, findings),
            settings=run.settings.report,
            slides=slide_pictures(run, findings),
            explanations=explained_pictures(run, findings),
        ).encode(),
        TABLE: parquet_bytes(cells_table(findings.cells, findings.classes, classes, reviewed)),
    }
    for name, data in files.items():
        run.store.write_bytes(f"{run.case_id}/{name}", data)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    with ResultsDatabase(database_url(run.store.url)) as database:
        database.record(result.model_dump(mode="json"), fingerprint=mark, result_sha256=hashes[RESULT])
    return hashes


def kept_findings(run: CaseRun) -> Findings | None:
    """The findings of the case's last finished run, or None."""
    key = f"{run.case_id}/{FINDINGS}"
    return Findings.model_validate(run.store.read_json(key)) if run.store.exists(key) else None
