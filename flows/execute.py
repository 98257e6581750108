"""A case from its folder to its report, free of any server: what the flows run and the command line asks."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows import (
    explain_stage,
    patient_stage,
    reporting,
    stages,
    target_stage,
    unit_stages,
    virtual_perls_stage,
)
from flows.asked import asked_of, last_asked
from flows.auditing import check_record, note
from flows.cluster import Workers
from flows.failures import worth_another_try
from flows.findings import gather
from flows.records import CaseRun, WorkNeeded
from flows.runs import open_run
from storage.audit import Action
from storage.store import CaseBusy

log = logging.getLogger("smearflow.case")


@dataclass(frozen=True)
class CaseOutcome:
    """Where a case's results are, and what was done for them."""

    case_id: str
    result: dict[str, Any]
    report_url: str
    result_url: str
    n_quarantined: int
    computed: dict[str, int]
    reused: dict[str, int]
    stage_seconds: dict[str, float]


def execute(run: CaseRun, wrap: Any = lambda name, function: function) -> CaseOutcome:
    """Every stage of a case in order; `wrap(name, function)` may make a Prefect task of each."""
    case = wrap("intake", stages.intake)(run)
    registrations, doubtful = wrap("registration", stages.registration)(run, case)
    detections, quality, overviews, problems = wrap("detection", stages.detection)(run, case)
    found = wrap("cells", stages.cells)(run, case, detections, registrations)
    patches_mark = wrap("patches", unit_stages.patches)(run, case, found)
    painted = wrap("target", target_stage.target)(run, case, found, patches_mark)
    staining_mark, doubt = wrap("staining", unit_stages.staining)(run, case, found, patches_mark, painted)
    classes = wrap("classification", unit_stages.classification)(
        run, found, patches_mark, staining_mark, doubt
    )
    classes = wrap("virtual-perls", virtual_perls_stage.virtual_perls)(
        run, case, found, classes, patches_mark
    )
    explained = wrap("explanation", explain_stage.explanation)(
        run, found, classes, patches_mark, staining_mark
    )
    pattern = wrap("patient", patient_stage.patient)(run, case, found, patches_mark)
    gathered = gather(
        run,
        case.model_copy(update={"problems": (*case.problems, *problems)}),
        found,
        classes,
        registrations,
        doubtful,
        quality,
        overviews,
        pattern if pattern is not None and pattern.familiar else None,
        patient_stage.why_not_shown(run, case, found, pattern),
        explained,
        painted,
    )
    result = wrap("report", reporting.report)(run, gathered)
    return CaseOutcome(
        case_id=run.case_id,
        result=result,
        report_url=run.store.url_of(f"{run.case_id}/report.html"),
        result_url=run.store.url_of(f"{run.case_id}/result.json"),
        n_quarantined=sum(p.fatal_for_field for p in gathered.case.problems),
        computed=dict(run.computed),
        reused=dict(run.reused),
        stage_seconds=dict(run.stage_seconds),
    )


def begin(run: CaseRun) -> None:
    """Open a run that reads the case's images, with what was asked of it; with the case's lock held.

    A night that fails leaves what a person had asked before, which it may not have asked again.
    """
    before = last_asked(run.store, run.case_id) if run.by_night else None
    run.ledger.begin(str(run.case_dir), asked_of(run), before)


def end_failed(run: CaseRun, error: BaseException) -> None:
    """Close a run that failed, in ledger and audit log; to be called with the case's lock held."""
    try:
        run.end(error)
        note(run, run.action, error=error)
    except Exception as second:  # of a full disk, say; the first error is the one to be told
        log.error("%s: the ledger could not be written: %s", run.case_id, second)


def up_to_date(
    case_dir: Path,
    store: str,
    settings: dict[str, Any] | None = None,
    pixel_size_um: float | None = None,
    *,
    action: Action = "run",
    last_word: bool = True,
    by_night: bool = False,
) -> CaseOutcome | None:
    """The kept outcome where nothing has to be computed, else None; needs no server and no cluster.

    An error ends the run in the case's ledger, unless the caller will try again (`last_word`), and is raised.
    """
    with Workers() as workers:
        how: dict[str, Any] = {"action": action, "by_night": by_night}
        run = open_run(case_dir, store, settings, workers, pixel_size_um, allow_work=False, **how)
        try:
            check_record(run.store, run.case_id)
            outcome = execute(run)
        except WorkNeeded:
            return None
        except Exception as error:
            if last_word:
                _leave_trace(run, error)
            raise
        with (
            contextlib.suppress(CaseBusy),
            run.store.writing(run.case_id),
        ):  # the busy one writes its own line
            begin(run)
            run.end()
            note(run, action)
        return outcome


def tried(case: str, attempt: Callable[[], CaseOutcome | None]) -> tuple[dict[str, Any] | None, bool]:
    """What became of one case among several, which a failed one must not stop: its row of the summary, None
    where the attempt came to nothing; and whether the same case may go through later."""
    started = time.perf_counter()
    try:
        outcome = attempt()
    except CaseBusy as error:
        return {"case": case, "status": "busy", "error": str(error)}, True
    except Exception as error:  # whatever it was, the others go on; the ledger and the row carry the error
        reason = f"{type(error).__name__}: {error}"
        return {"case": case, "status": "failed", "error": reason}, worth_another_try(error)
    if outcome is None:
        return None, False
    return {**summary(outcome), "seconds_total": round(time.perf_counter() - started, 2)}, False


def _leave_trace(run: CaseRun, error: Exception) -> None:
    """A failed run in the ledger, so that `status` and `retry` know of the case."""
    try:
        with run.store.writing(run.case_id):
            begin(run)
            end_failed(run, error)
    except CaseBusy:  # the busy one writes its own line
        return
    except Exception as second:  # as in end_failed
        log.error("%s: the ledger could not be written: %s", run.case_id, second)


def summary(outcome: CaseOutcome) -> dict[str, Any]:
    """A small, JSON-able account of a processed case."""
    return {
        "case": outcome.case_id,
        "status": "done",
        "report_status": outcome.result.get("status"),
        "report": outcome.report_url,
        "result": outcome.result_url,
        "quarantined": outcome.n_quarantined,
        "problems": [
            {k: p.get(k) for k in ("code", "slide", "field", "file", "message")}
            for p in outcome.result.get("problems", [])
        ],
        "computed": sum(outcome.computed.values()),
        "reused": sum(outcome.reused.values()),
        "flags": [f["code"] for f in outcome.result.get("flags", [])],
        "seconds": {k: round(v, 2) for k, v in outcome.stage_seconds.items()},
    }
