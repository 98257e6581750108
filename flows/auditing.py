"""The audit logs of a store's cases: written by runs, shown, and held against the results.

Each file of a report is announced, by its sha256, before it is written.  A run that is killed between the
two leaves files that the log tells of, so a result that it does not tell of was made by no run: it is
neither taken nor adopted (`check_record`).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flows.identity import pseudonym
from flows.records import CaseRun
from flows.review_acts import acts_of
from flows.runs import database_url, settings_mark
from flows.status import cases_of_store, open_existing
from pipeline.errors import BadInput
from pipeline.review import audit_part
from storage.audit import PERSONS, Action, AuditBroken, AuditEntry, AuditLog, Change, who
from storage.fingerprint import fingerprint
from storage.store import Store

if TYPE_CHECKING:
    from storage.results_db import LogHead, ResultsDatabase

RESULT = "result.json"


class RecordUnsound(BadInput):
    """The audit log of a case does not hold, or its result is none that the log tells of."""


@dataclass
class Told:
    """What a log tells of a case's files: every sha256, the last of each, and the last report's mark.

    `start` is the seal of its first entry, by which a log is known; None where there is no entry.
    """

    start: str | None = None
    known: dict[str, set[str]] = field(default_factory=dict)
    last: dict[str, str] = field(default_factory=dict)
    mark: str | None = None


def told_by(entries: Sequence[AuditEntry]) -> Told:
    """What the entries of programs say was written."""
    told = Told(start=entries[0].seal if entries else None)
    for entry in entries:
        made = {c.target: c.new for c in entry.changes if c.new} if entry.action not in PERSONS else {}
        for name, sha in made.items():
            told.known.setdefault(name, set()).add(sha)
        if made:
            told.last |= made
            told.mark = entry.detail.get("report")
    return told


def note(run: CaseRun, action: Action, *, error: BaseException | None = None, reason: str = "") -> None:
    """Add a line for a run or retry that failed, or that computed something and kept its report.

    A report that is written has its line already (`announce`); a look that found all kept leaves none, nor
    does a failure that the last line tells of already, and nothing is added to a log that does not hold.
    """
    if isinstance(error, RecordUnsound) or (error is None and (run.announced or not run.computed)):
        return
    log, detail = AuditLog(run.store, run.case_id), _made_by(run, run.computed)
    if error is not None:
        reason = f"failed: {type(error).__name__}"
        detail["failure"] = fingerprint(str(error))  # the words stand in the ledger; a log is for all to read
        last = log.last()
        # A case that stays broken would have a line a night.
        if last is not None and (last.action, last.actor, last.reason, last.detail) == (
            action,
            who(),
            reason,
            detail,
        ):
            return
    log.append(action, reason=reason, detail=detail)


def announce(run: CaseRun, sha256: Mapping[str, str], mark: str) -> LogHead:
    """Log the files of a report that is about to be written, by name; returns where the log then ends.

    Raises RecordUnsound where the log does not hold, or the result there is none of its own.
    """
    from storage.results_db import LogHead

    told = check_record(run.store, run.case_id)
    log = AuditLog(run.store, run.case_id)
    computed = {**run.computed, "report": run.computed.get("report", 0) + 1}
    entry = log.append(
        run.action,
        changes=[Change(target=name, new=sha256[name]) for name in sorted(sha256, key=lambda n: n != RESULT)],
        detail={**_made_by(run, computed), "report": mark},
    )
    run.announced = True
    return LogHead(start=told.start or entry.seal, entries=entry.number, seal=entry.seal)


def _made_by(run: CaseRun, computed: Mapping[str, int]) -> dict[str, str]:
    from importlib.metadata import version

    return {
        "software": version("smearflow"),
        "config_sha256": settings_mark(run.settings),
        "computed": ", ".join(f"{k} {n}" for k, n in sorted(computed.items())),
    }


def check_record(
    store: Store,
    case_id: str,
    *,
    built_on: Sequence[str] = (RESULT,),
    database: ResultsDatabase | None = None,
) -> Told:
    """What a case's log tells; raises RecordUnsound unless it holds and tells of the files to be built on.

    An earlier file of the case, put back, is one that the log tells of: the next report replaces it.
    """
    # The files first: a hash is in the log before its file is there, so a look needs no lock.
    there = {name: _sha256(store, f"{case_id}/{name}") for name in built_on}
    wrong = _log_faults(store, case_id)
    entries = [] if wrong else AuditLog(store, case_id).entries()
    wrong = wrong or _against_database(case_id, entries, database)
    if wrong:
        raise RecordUnsound(
            f"{case_id}: the audit log does not hold ({wrong[0].rstrip('.')}), and nothing was changed; see "
            f"that SMEARFLOW_AUDIT_KEY is the laboratory's, then restore {store.url_of(case_id)} from a copy "
            "of the store, or remove it to begin anew without its signatures."
        )
    told = told_by(entries)
    for name, sha in there.items():
        known = told.known.get(name, set())
        # Logs of earlier versions tell of result.json alone.
        if sha is not None and sha not in known and (known or name == RESULT):
            raise RecordUnsound(
                f"{case_id}: {store.url_of(f'{case_id}/{name}')} is no file that the audit log tells of, and "
                "nothing was changed; restore the case from a copy of the store, or, where its log is known "
                "to be whole, remove the file and run the case again."
            )
    return told


def _sha256(store: Store, key: str) -> str | None:
    try:
        return hashlib.sha256(store.read_bytes(key)).hexdigest()
    except FileNotFoundError:
        return None


def _log_faults(store: Store, case_id: str) -> list[str]:
    """What is wrong with a case's log by itself, and that it is missing where the case has a report."""
    reported = _has_result(store, case_id) or _was_reported(store, case_id)
    if reported and not _has_log(store, case_id):
        return ["the log is missing, though the case was reported."]
    return AuditLog(store, case_id).verify()


def _against_database(
    case_id: str, entries: Sequence[AuditEntry], database: ResultsDatabase | None
) -> list[str]:
    """What a log lacks that it had when the results database was last written: its end was cut off."""
    head = database.log_head(pseudonym(case_id)) if database is not None else None
    if head is None or not entries or head.start != entries[0].seal:  # of a log that was begun anew
        return []
    if len(entries) < head.entries or entries[head.entries - 1].seal != head.seal:
        return [f"the results database knows an entry {head.entries} that the log has not."]
    return []


def _was_reported(store: Store, case_id: str) -> bool:
    """Whether the ledger tells of a report."""
    try:
        runs = store.read_json(f"{case_id}/ledger.json")["runs"]
        return any("report" in {**r.get("computed", {}), **r.get("reused", {})} for r in runs)
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return False


def audit_cases(url: str, cases: Sequence[str] = (), *, verify: bool = False) -> list[dict[str, Any]]:
    """Each case's entries, and with `verify` what is wrong with them, one sentence each.

    Without `cases`, every case that has a log, a ledger or a result.
    """
    from pipeline.intake import check_case_id

    store = open_existing(url)
    known = {
        *cases_of_store(store),
        *(n for n in store.list() if _has_log(store, n) or _has_result(store, n)),
    }
    names = [check_case_id(c) for c in cases] or sorted(known)
    found = []
    with existing_database(store) if verify else contextlib.nullcontext() as database:
        for name in names:
            if name not in known:
                raise BadInput(f"{name}: the store {url} holds no audit log of this case; check its id.")
            wrong = _verify(store, name, database) if verify else []
            try:
                entries = [e.model_dump(mode="json") for e in AuditLog(store, name).entries()]
            except AuditBroken as error:
                if not verify:
                    raise
                entries = []
                wrong = wrong or [str(error)]
            found.append({"case": name, "entries": entries, "wrong": wrong})
    return found


def _has_log(store: Store, name: str) -> bool:
    return bool(store.list(f"{name}/audit"))


def _has_result(store: Store, name: str) -> bool:
    return store.exists(f"{name}/{RESULT}")


@contextlib.contextmanager
def existing_database(store: Store) -> Iterator[ResultsDatabase | None]:
    """The results database, None where there is none: a look makes none."""
    from storage.results_db import ResultsDatabase

    remote = store.folder is None
    if not os.environ.get("SMEARFLOW_DATABASE") and (remote or not store.exists("results.db")):
        yield None
        return
    with ResultsDatabase(database_url(store.url)) as database:
        yield database


def _verify(store: Store, case_id: str, database: ResultsDatabase | None) -> list[str]:
    """What is wrong with a case's log, and where its files say otherwise."""
    wrong = _log_faults(store, case_id)
    if wrong:
        return wrong
    entries = AuditLog(store, case_id).entries()
    told = told_by(entries)
    if _has_result(store, case_id):
        try:
            said = list(store.read_json(f"{case_id}/{RESULT}")["audit"])
        except (ValueError, KeyError, TypeError):
            return ["result.json cannot be read."]
        known = [a.model_dump(mode="json") for a in audit_part(acts_of(store, case_id))]
        if said != known:
            more = "more" if len(said) > len(known) else "fewer" if len(said) < len(known) else "other"
            wrong.append(f"result.json tells of {more} changes by persons than the log.")
    for name, sha in told.last.items():
        there = _sha256(store, f"{case_id}/{name}")
        if there is None:
            wrong.append(f"{name} is missing, though the log tells of it.")
        elif there != sha:
            wrong.append(f"{name} is not the file that the last run or review wrote.")
    if RESULT not in told.last and _has_result(store, case_id):
        wrong.append(f"{RESULT} is not the file that the last run or review wrote.")
    wrong += _against_database(case_id, entries, database)
    head = database.log_head(pseudonym(case_id)) if database is not None else None
    # Told, but no run is refused for it: a trial on another store, into the same database, does the same.
    if head is not None and told.last and head.start != told.start:
        wrong.append("the results database knows another log of this case, or another store's.")
    return wrong
