"""Try a case again: what was kept as unusable is forgotten, what was done is reused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.auditing import check_record
from flows.status import CaseStatus, cases_of_store, is_case, leaves_out, open_existing, status_of_case
from pipeline.errors import BadInput
from storage.store import Store


def chosen(store_url: str, case: str | None, failed: bool) -> list[CaseStatus]:
    """The case that is named, or every case of which another run may come to more."""
    from pipeline.intake import check_case_id

    store = open_existing(store_url)
    if (case is None) == (not failed):
        raise BadInput("name a case to retry, or give --failed for every case that failed, not both.")
    if case is None:
        found = [status_of_case(store, name) for name in cases_of_store(store)]
        return [s for s in found if s.needs_retry or s.left_out]
    if not is_case(store, check_case_id(case)):
        raise BadInput(f"{case}: the store {store_url} has no such case; 'smearflow status' lists them.")
    return [status_of_case(store, case)]


def forget_verdicts(store: Store, case: str) -> int:
    """Remove the records of inputs that could not be used, so that they are read again; returns how many."""
    forgotten = 0
    with store.writing(case):
        for stage in store.list(f"{case}/work"):
            if "." in stage:
                continue
            for name in store.list(f"{case}/work/{stage}"):
                key = f"{case}/work/{stage}/{name}"
                if not name.endswith(".json"):
                    continue
                try:
                    record = store.read_json(key)
                    bad = "error" in record or _left_out(record.get("output") or {})
                except (ValueError, AttributeError, TypeError):
                    bad = True
                if bad:
                    store.delete(key)
                    forgotten += 1
    return forgotten


def _left_out(output: dict[str, Any]) -> bool:
    problems = output.get("problems")
    return isinstance(problems, list) and any(leaves_out(p) for p in problems)


def folder_of(status: CaseStatus, inbox: str | None) -> Path:
    """Where the images of a case lie: in the inbox that is named, else where its last run found them."""
    if inbox is not None:
        return Path(inbox) / status.case
    if not status.case_dir:
        raise BadInput(f"{status.case}: its ledger does not say where its images lie; give --inbox.")
    return Path(status.case_dir)


def retry_one(
    status: CaseStatus,
    store_url: str,
    settings: dict[str, Any],
    inbox: str | None,
    **how: Any,
) -> dict[str, Any]:
    """Run one case as its last run was asked to; a row as in a night's summary, whatever becomes of it."""
    from flows.asked import asked_again
    from flows.execute import CaseOutcome, tried
    from flows.local import run_case

    forgotten, said = 0, None

    def attempt() -> CaseOutcome:
        nonlocal forgotten, said
        folder = folder_of(status, inbox)
        opened = Store(store_url)
        check_record(opened, status.case)
        values, pixel_size_um, said = asked_again(folder, store_url, settings, also_changed=True)
        forgotten = forget_verdicts(opened, status.case)
        found: CaseOutcome = run_case(
            folder, store_url, values, pixel_size_um=pixel_size_um, action="retry", **how
        )
        return found

    row, _ = tried(status.case, attempt)
    return {**(row or {}), "was": status.state, "forgotten": forgotten, "asked": said}
