"""A case's report again, from the records of its last run; no pixel of the case folder is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.auditing import note
from flows.cluster import Workers
from flows.runs import open_run
from pipeline.errors import BadInput


def rebuild(case_id: str, store: str, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """Count again with these settings and write result.json, report.html and the table anew."""
    from flows import reporting
    from pipeline.intake import check_case_id

    with Workers() as workers:
        run = open_run(Path("."), store, settings, workers, case_id=check_case_id(case_id))
        findings = reporting.kept_findings(run)
        if findings is None:
            raise BadInput(
                f"{case_id}: the store {store} holds no finished run of this case; process it first."
            )
        with run.store.writing(case_id):
            run.ledger.begin()
            result = reporting.report(run, findings)
            run.end()
            note(run, "report")
    return {
        "case": case_id,
        "report": run.store.url_of(f"{case_id}/report.html"),
        "result": run.store.url_of(f"{case_id}/result.json"),
        "status": result["status"],
    }
