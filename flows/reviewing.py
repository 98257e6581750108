"""A person's corrections and signature: into the audit log, and from there into the result.

The audit log is the one record of a review; a result is always made from it, so that a run which is
killed between the two is put right by the next.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows import reporting
from flows.auditing import RESULT, check_record, note
from flows.cluster import Workers
from flows.findings import FINDINGS, as_made, kept_findings
from flows.identity import pseudonym
from flows.records import CaseRun
from flows.review_acts import acts_of
from flows.runs import database_url, open_run
from flows.status import open_existing
from pipeline.errors import BadInput
from pipeline.review import Act, check_corrections, review_state
from storage.audit import AuditLog, Change

MAX_NAME = 120
MIN_ID = 8  # characters of a report's id


def review_case(
    case_id: str,
    store: str,
    *,
    reviewer: str,
    corrections: Sequence[tuple[str, str]] = (),
    reason: str = "",
    sign: bool = False,
    cancel: bool = False,
    report: str | None = None,
    settings: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Keep a reviewer's corrections (cell id, class), sign or withdraw the report, and write it anew.

    `report` is the id of the report that was read.  Raises BadInput where it is not the current one, where a
    cell, class or name is wrong, where a signature needs a reason (`reasons_to_hesitate`), or where the
    settings or the pseudonym key are not those of the result under review.
    """
    from pipeline.intake import check_case_id
    from storage.results_db import ResultsDatabase

    reviewer = check_reviewer(reviewer)
    if not (corrections or sign or cancel):
        raise BadInput("nothing is given to review; give --cell and --class, --from, --sign or --cancel.")
    if cancel and (sign or corrections):
        raise BadInput("a report is withdrawn alone; give --cancel without corrections or --sign.")
    if cancel and not reason:
        raise BadInput("a report is withdrawn for a reason; give --reason.")
    open_existing(store)
    with Workers() as workers:
        run = open_run(Path("."), store, settings, workers, case_id=check_case_id(case_id), action="report")
        findings = kept_findings(run)
        run = as_made(run, findings, settings)
        check_corrections(case_id, findings.cells, corrections)
        with run.store.writing(case_id):
            with ResultsDatabase(database_url(run.store.url)) as database:
                check_record(run.store, case_id, built_on=(RESULT, FINDINGS), database=database)
            kept = _is_current(run, findings, report)
            why = reasons_to_hesitate(run, findings, kept) if sign and not reason else []
            if why:
                raise BadInput(
                    f"{case_id}: {'; '.join(why)}: look at the report again, and sign it with --reason."
                )
            run.ledger.begin()
            if corrections:
                _correct(run, findings, reviewer, corrections, reason)
            if sign or cancel:
                _release(run, findings, reviewer, reason, cancel=cancel)
            result = reporting.report(run, findings)
            run.end()
            note(run, "report")
    return {
        "case": case_id,
        "status": result["status"],
        "reviewer": reviewer,
        "corrections": len(corrections),
        "n_reclassified": result["review"]["n_reclassified"],
        "pct_reviewed": result["review"]["pct_reviewed"],
        "report": run.store.url_of(f"{case_id}/report.html"),
        "result": run.store.url_of(f"{case_id}/result.json"),
    }


def check_reviewer(name: str) -> str:
    """The name itself; raises BadInput unless it can stand in a report, a table and a log."""
    name = name.strip()
    if not name or len(name) > MAX_NAME or not name.isprintable():
        raise BadInput(f"a reviewer's name has 1 to {MAX_NAME} printable characters; give --reviewer NAME.")
    return name


def _is_current(run: CaseRun, findings: Any, report: str | None) -> dict[str, Any]:
    """The result under review; refuses a review of another report than the one that was read, and one that
    would count anew by other rules, or under another name, by the way.
    """
    kept: dict[str, Any] = run.store.read_json(f"{run.case_id}/{RESULT}")
    if report is not None and not is_named(report, kept["report_uuid"]):
        raise BadInput(
            f"{run.case_id}: its report is now {kept['report_uuid']} ({kept['status']}), not the one that "
            "was read; read it, and give its id as --report."
        )
    if kept["case"]["pseudo_id"] != pseudonym(run.case_id):
        raise BadInput(
            f"{run.case_id}: its report has another pseudonym; set SMEARFLOW_PSEUDONYM_KEY as the run did."
        )
    if run.kept("report", "case", reporting.report_marks(run, findings)[2]) is None:
        raise BadInput(
            f"{run.case_id}: its report was made with other settings or by another version; give the same "
            "--config as the run did, or write it anew first with 'smearflow report'."
        )
    return kept


def is_named(given: str, report_uuid: str) -> bool:
    """Whether an id, or its first part, is that of a report."""
    given = given.strip().lower()
    return len(given) >= MIN_ID and report_uuid.startswith(given)


def reasons_to_hesitate(run: CaseRun, findings: Any, result: dict[str, Any]) -> list[str]:
    """What a signature may not pass over in silence: a flag that blocks the report, corrections that were
    lost, and findings that are not those of the last signature.
    """
    why = [f"the flag {f['code']} blocks its report" for f in result["flags"] if f["severity"] == "block"]
    lost = [n["what"] for n in result["not_assessed"] if n["code"] == "REVIEW_LOST"]
    why += [f"{what} are lost" for what in lost]
    acts = acts_of(run.store, run.case_id)
    signed = max((n for n, act in enumerate(acts) if act.action == "sign"), default=None)
    if signed is not None:
        # The corrections of then on the findings of now: what was signed, unless these have changed.
        then = review_state(acts[: signed + 1])
        if reporting.content_mark(run, findings, then) != then.signed_content:
            why.append("images, models, settings or software have changed since it was signed")
    return why


def _correct(
    run: CaseRun, findings: Any, reviewer: str, corrections: Sequence[tuple[str, str]], reason: str
) -> None:
    state = review_state(acts_of(run.store, run.case_id))
    model = {c.cell_id: c.label for c in findings.classes}
    cells = {c.cell_id: c for c in findings.cells}
    wanted = dict(corrections)
    before = {i: state.labels.get(i, model.get(i, "unidentified")) for i in wanted}
    AuditLog(run.store, run.case_id).append(
        "review",
        actor=reviewer,
        reason=reason,
        changes=[Change(target=i, old=before[i], new=label) for i, label in wanted.items()],
        detail={"boxes": json.dumps({i: cells[i].bbox_px for i in wanted})},
    )


def _release(run: CaseRun, findings: Any, reviewer: str, reason: str, *, cancel: bool) -> None:
    acts = acts_of(run.store, run.case_id)
    state = review_state(acts)
    content = reporting.content_mark(run, findings, state)
    old = state.status(content)
    after = Act(
        ts="",
        actor=reviewer,
        action="cancel" if cancel else "sign",
        reason=reason,
        changes=(),
        content=None if cancel else content,
    )
    new = review_state([*acts, after]).status(content)
    AuditLog(run.store, run.case_id).append(
        "cancel" if cancel else "sign",
        actor=reviewer,
        reason=reason,
        changes=[Change(target="report", old=old, new=new)],
        detail={} if cancel else {"content": content},
    )
