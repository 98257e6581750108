"""The audit logs of a store's cases: written by runs, shown, and held against the results."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from flows.records import CaseRun
from flows.review_acts import acts_of
from flows.runs import settings_mark
from flows.status import open_existing
from pipeline.errors import BadInput
from pipeline.review import audit_part
from storage.audit import Action, AuditBroken, AuditEntry, AuditLog, Change
from storage.store import Store

RESULT = "result.json"


def note(run: CaseRun, action: Action, *, error: BaseException | None = None, reason: str = "") -> None:
    """Add a line for a run, report or retry that changed the case; a look that found all kept leaves none.

    A result whose line is missing (its run was killed in between) gets one from the next.
    """
    from importlib.metadata import version

    audit = AuditLog(run.store, run.case_id)
    key = f"{run.case_id}/{RESULT}"
    new = None
    if error is None and run.store.exists(key):
        new = hashlib.sha256(run.store.read_bytes(key)).hexdigest()
    if not run.computed and error is None and new in (None, _last_result(audit.entries())):
        return
    audit.append(
        action,
        reason=reason if error is None else f"failed: {type(error).__name__}",
        changes=[Change(target=RESULT, new=new)] if new else [],
        detail={
            "software": version("smearflow"),
            "config_sha256": settings_mark(run.settings),
            "computed": ", ".join(f"{k} {n}" for k, n in sorted(run.computed.items())),
        },
    )


def _last_result(entries: Sequence[AuditEntry]) -> str | None:
    """sha256 of result.json as the log has it last."""
    made = [c.new for e in entries for c in e.changes if c.target == RESULT]
    return made[-1] if made else None


def audit_cases(url: str, cases: Sequence[str] = (), *, verify: bool = False) -> list[dict[str, Any]]:
    """Each case's entries, and with `verify` what is wrong with them, one sentence each."""
    from pipeline.intake import check_case_id

    store = open_existing(url)
    names = [check_case_id(c) for c in cases] or [n for n in store.list() if store.list(f"{n}/audit")]
    found = []
    for name in names:
        if cases and not store.list(f"{name}/audit"):
            raise BadInput(f"{name}: the store {url} holds no audit log of this case; check its id.")
        wrong = _verify(store, name) if verify else []
        try:
            entries = [e.model_dump(mode="json") for e in AuditLog(store, name).entries()]
        except AuditBroken as error:
            if not verify:
                raise
            entries = []
            wrong = wrong or [str(error)]
        found.append({"case": name, "entries": entries, "wrong": wrong})
    return found


def _verify(store: Store, case_id: str) -> list[str]:
    """What is wrong with a case's log, and where its result says otherwise."""
    wrong = AuditLog(store, case_id).verify()
    key = f"{case_id}/{RESULT}"
    if wrong or not store.exists(key):
        return wrong
    try:
        document = store.read_json(key)
        said = list(document["audit"])
    except (ValueError, KeyError, TypeError):
        return ["result.json cannot be read."]
    known = [a.model_dump(mode="json") for a in audit_part(acts_of(store, case_id))]
    if said != known:
        more = "more" if len(said) > len(known) else "fewer" if len(said) < len(known) else "other"
        wrong.append(f"result.json tells of {more} changes by persons than the log.")
    entries = AuditLog(store, case_id).entries()
    if _last_result(entries) != hashlib.sha256(store.read_bytes(key)).hexdigest():
        wrong.append("result.json is not the file that the last run or review wrote.")
    return wrong
