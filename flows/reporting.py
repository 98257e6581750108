"""The last stage: count, flag, and write result.json, report.html, cells.parquet and the database row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from flows import stages
from flows.auditing import RESULT, announce, check_record
from flows.findings import FINDINGS, Findings
from flows.identity import deidentified, deidentified_text, pseudonym
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
from flows.runs import database_url, settings_mark
from pipeline.review import (
    Act,
    ReviewState,
    audit_part,
    lost_corrections,
    placed_labels,
    review_part,
    review_state,
)
from storage.clock import now
from storage.fingerprint import fingerprint

if TYPE_CHECKING:
    from pipeline.report_inputs import Quality, RunInfo

PAGE, TABLE = "report.html", "cells.parquet"


def report(run: CaseRun, findings: Findings) -> dict[str, Any]:
    """The result of the case: written where anything it is made of has changed, else the kept one."""
    from storage.results_db import ResultsDatabase

    with ResultsDatabase(database_url(run.store.url)) as database:
        told = check_record(run.store, run.case_id, database=database)
        acts, content, mark = report_marks(run, findings)
        # The results database may have been restored or lost.
        has_row = database.has(pseudonym(run.case_id), mark)

    def compute() -> dict[str, Any]:
        return {"sha256": write_report(run, findings, mark, acts, content)}

    def intact() -> bool:
        kept = run.kept("report", "case", mark)
        if kept is None or kept.output is None or not has_row:
            return False
        # The record could be forged with the files; what the log announced last could not.
        hashes = kept.output["sha256"]
        if told.last.get(RESULT) != hashes.get(RESULT) or told.mark not in (None, mark):
            return False
        return all(
            told.last.get(name, sha) == sha
            and run.store.exists(f"{run.case_id}/{name}")
            and hashlib.sha256(run.store.read_bytes(f"{run.case_id}/{name}")).hexdigest() == sha
            for name, sha in hashes.items()
        )

    run.run_here("report", mark, compute, intact=intact)
    result: dict[str, Any] = run.store.read_json(f"{run.case_id}/{RESULT}")
    return result


def report_marks(run: CaseRun, findings: Findings) -> tuple[list[Act], str, str]:
    """What persons did, the mark of what they sign, and that of the whole report."""
    acts = acts_of(run.store, run.case_id)
    content = content_mark(run, findings, review_state(acts))
    return acts, content, fingerprint("reviewed", content, acts) if acts else content


def report_mark(run: CaseRun, findings: Findings) -> str:
    return fingerprint(
        "report",
        # Of every stage: where one draws another picture of the same values, the page is made anew.
        stages.VERSIONS,
        version("smearflow"),
        # With models' cards: thresholds, reader errors and measured figures in a report are theirs.
        findings,
        pseudonym(run.case_id),
        run.settings.counting,
        run.settings.report,
    )


def content_mark(run: CaseRun, findings: Findings, state: ReviewState) -> str:
    """What a signature is given for: the report's inputs and the reviewer's corrections."""
    mark = report_mark(run, findings)
    return fingerprint("corrected", mark, state.labels) if state.labels else mark


def _quality(findings: Findings) -> Quality:
    """How well the images of a case are, without what would tell whose they are."""
    from pipeline.report_inputs import Quality

    told = deidentified_text(findings.case)
    return Quality(
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
    )


def _run_info(run: CaseRun, findings: Findings, mark: str) -> RunInfo:
    """What a report says of the run that it is made by."""
    from pipeline.report_inputs import RunInfo

    made_by = findings.made_by
    return RunInfo(
        fingerprint=mark,
        config_sha256=settings_mark(run.settings),
        expected_config_sha256=run.settings.report.validated_config,
        created=now(),
        models=made_by.models,
        version=version("smearflow"),
        commit=source_commit(),
        known_classes=made_by.known_classes,
        min_confidence=made_by.min_confidence,
        virtual_min_confidence=made_by.virtual_min_confidence,
        painted=findings.painted,
    )


def write_report(
    run: CaseRun, findings: Findings, mark: str, acts: Sequence[Act] = (), content: str | None = None
) -> dict[str, str]:
    """Write everything that a person reads; returns the sha256 of each file."""
    from pipeline.report import build_result
    from pipeline.report_cells import cells_table, parquet_bytes
    from pipeline.report_html import render_html
    from storage.results_db import ResultsDatabase

    made_by = findings.made_by
    case = deidentified(findings.case)
    state = review_state(acts)
    reviewed = placed_labels(state, findings.cells)
    n_smear = sum(c.stain != "Perls" for c in findings.cells)
    result = build_result(
        case,
        findings.cells,
        findings.classes,
        _quality(findings),
        _run_info(run, findings, mark),
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
        TABLE: parquet_bytes(cells_table(findings.cells, findings.classes, made_by.known_classes, reviewed)),
    }
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    head = announce(run, hashes, mark)
    for name, data in files.items():
        run.store.write_bytes(f"{run.case_id}/{name}", data)
    with ResultsDatabase(database_url(run.store.url)) as database:
        database.record(
            result.model_dump(mode="json"), fingerprint=mark, result_sha256=hashes[RESULT], log_head=head
        )
    return hashes
