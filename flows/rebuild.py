"""A case's report again, from the records of its last run; no pixel of the case folder is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.auditing import RESULT, check_record, note
from flows.cluster import Workers
from flows.runs import open_run
from flows.status import open_existing


def rebuild(case_id: str, store: str, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """Count again with these settings and write result.json, report.html and the table anew.

    Of the settings those of counting and report count; raises BadInput where another was not so in the run.
    """
    from flows.findings import FINDINGS, as_made, kept_findings
    from flows.reporting import report
    from pipeline.intake import check_case_id

    open_existing(store)
    with Workers() as workers:
        run = open_run(Path("."), store, settings, workers, case_id=check_case_id(case_id), action="report")
        with run.store.writing(run.case_id):
            check_record(run.store, run.case_id, built_on=(RESULT, FINDINGS))
            findings = kept_findings(run)
            run = as_made(run, findings, settings)
            run.ledger.begin()
            result = report(run, findings)
            run.end()
            note(run, "report")
    return {
        "case": case_id,
        "report": run.store.url_of(f"{case_id}/report.html"),
        "result": run.store.url_of(f"{case_id}/result.json"),
        "status": result["status"],
    }
