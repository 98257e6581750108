"""The ledger of a case: what was done to each of its items, when, from what, and what went wrong.

One JSON document, `<case>/ledger.json`, written whole.  The process that runs the case, and holds its
lock, is its only writer.  Entries are changed by appending facts: an error that was seen stays in
`errors` when a later attempt succeeds, an item that was cut off counts it in `interrupted`, and each run
leaves a line in `runs`, one that died without a word included.
"""

from __future__ import annotations

import copy
import logging
import os
import socket
import time
import traceback
from typing import Any

from pipeline.types import Problem
from storage.clock import stamp
from storage.store import Store

log = logging.getLogger("smearflow")

MAX_RUNS = 100
MAX_ERRORS = 10  # kept per item, the newest
TRACEBACK_CHARACTERS = 2000
SCHEMA_VERSION = 2  # 2: `current`, interrupted runs, retired items
SAVE_EVERY_S = 10.0  # during a long stage, so that a look at the ledger sees it move


def describe_error(error: BaseException | str) -> dict[str, Any]:
    """Type, message and the tail of the traceback of an error, its cause first where it has one."""
    if isinstance(error, str):
        return {"type": "", "message": error, "traceback": ""}
    text = "".join(traceback.format_exception(error))
    return {
        "type": type(error).__name__,
        "message": str(error)[:2000],
        "traceback": text[-TRACEBACK_CHARACTERS:],
    }


class Ledger:
    """The record of one case.

    `begin` and `end_run` frame a run that computes; `start`, `done`, `fail` and `quarantine` change the
    record in memory; `save` writes it.  An entry left `running` by a process that died is shown as
    `interrupted` by the next one that opens it, and the run that died gets its line in `runs`.
    """

    def __init__(self, store: Store, case_id: str) -> None:
        self._store, self._key = store, f"{case_id}/ledger.json"
        self.case_id = case_id
        self._document = self._read()
        self._started: dict[tuple[str, str], float] = {}
        self._run: dict[str, Any] = {"started": stamp()}
        self._noted: list[dict[str, Any]] = []
        self._reused: list[tuple[str, str, str, str]] = []
        self._saved = time.monotonic()

    def _read(self) -> dict[str, Any]:
        empty: dict[str, Any] = {
            "schema_version": SCHEMA_VERSION,
            "case_id": self.case_id,
            "stages": {},
            "problems": [],
            "runs": [],
        }
        if not self._store.exists(self._key):
            return empty
        try:
            document = self._store.read_json(self._key)
            if not isinstance(document, dict) or not isinstance(document["stages"], dict):
                raise ValueError("no ledger")
        except (ValueError, KeyError):
            # The ledger tells the story; what may be reused stands in the records themselves.
            log.warning(
                "%s: the ledger was damaged; it is kept as ledger.damaged.json and begun anew", self.case_id
            )
            self._store.write_bytes(f"{self.case_id}/ledger.damaged.json", self._store.read_bytes(self._key))
            return empty
        for items in document["stages"].values():
            for entry in items.values():
                if entry.get("status") == "running":
                    entry["status"] = "interrupted"
                    entry["interrupted"] = entry.get("interrupted", 0) + 1
        return {**empty, **document, "schema_version": SCHEMA_VERSION}

    def begin(
        self,
        case_dir: str | None = None,
        asked: dict[str, Any] | None = None,
        asked_before: dict[str, Any] | None = None,
    ) -> None:
        """Open a run, from the images in `case_dir` if any; to be called with the case's lock held.

        `asked` is what a person asked of this case alone (JSON-able); another run may ask the same.  Of a run
        that fails or dies `asked_before` takes its place: what an earlier one was asked and holds on.

        The record is read anew: another process may have written it since this one looked.  A run that is
        still open in it died, since its process no longer holds the lock.
        """
        self._document = self._read()
        dead = self._document.pop("current", None)
        if isinstance(dead, dict):
            self._close({**dead, "ended": None, "interrupted": True})
        for stage, key, fingerprint, status in self._reused:  # what a look found before the lock was held
            self._entry(stage, key).update(status=status, fingerprint=fingerprint)
        self._run = {"started": stamp(), "pid": os.getpid(), "host": socket.gethostname()}
        if case_dir is not None:
            self._run["case_dir"] = case_dir
        if asked is not None:
            self._run["asked"] = asked
        if asked_before is not None:
            self._run["asked_before"] = asked_before
        self._document["current"] = dict(self._run)
        self.save()

    def _close(self, run: dict[str, Any]) -> None:
        before = run.pop("asked_before", None)
        if before is not None and ("error" in run or run.get("interrupted")):
            run["asked"] = before
        self._document["runs"] = [*self._document["runs"], run][-MAX_RUNS:]

    def _entry(self, stage: str, key: str) -> dict[str, Any]:
        items: dict[str, Any] = self._document["stages"].setdefault(stage, {})
        entry: dict[str, Any] = items.setdefault(key, {"status": "new", "attempts": 0})
        return entry

    def entry(self, stage: str, key: str) -> dict[str, Any] | None:
        """What is known of an item, or None."""
        found: dict[str, Any] | None = self._document["stages"].get(stage, {}).get(key)
        return None if found is None else dict(found)

    def is_current(self, stage: str, key: str, fingerprint: str) -> bool:
        """Whether an item was done from exactly these inputs."""
        entry = self.entry(stage, key)
        return entry is not None and entry["status"] == "done" and entry.get("fingerprint") == fingerprint

    def start(self, stage: str, key: str, fingerprint: str) -> None:
        entry = self._entry(stage, key)
        if entry.get("fingerprint") != fingerprint:
            entry["attempts"] = 0
        entry.update(
            status="running", fingerprint=fingerprint, started=stamp(), attempts=entry["attempts"] + 1
        )
        entry.pop("error", None)
        self._started[stage, key] = time.perf_counter()

    def _finish(self, stage: str, key: str, status: str, error: BaseException | str | None = None) -> None:
        entry = self._entry(stage, key)
        begun = self._started.pop((stage, key), None)
        entry["status"] = status
        # Wall time from hand-over to answer, waiting for a worker included.
        entry["seconds"] = None if begun is None else round(time.perf_counter() - begun, 3)
        if error is not None:
            entry["error"] = {**describe_error(error), "at": stamp(), "attempt": entry["attempts"]}
            entry["errors"] = [*entry.get("errors", []), entry["error"]][-MAX_ERRORS:]

    def done(self, stage: str, key: str) -> None:
        self._finish(stage, key, "done")

    def fail(self, stage: str, key: str, error: BaseException | str) -> None:
        """An item crashed; the next run tries it again."""
        self._finish(stage, key, "failed", error)

    def quarantine(self, stage: str, key: str, error: BaseException | str) -> None:
        """An item's input cannot be used; it is left out until the input changes."""
        self._finish(stage, key, "quarantined", error)

    def note_problem(self, problem: Problem) -> None:
        """Keep what intake (or a later stage) found wrong with the input."""
        document = problem.model_dump(mode="json")
        if document not in self._noted:
            self._noted.append(document)

    def reused(self, stage: str, key: str, fingerprint: str, *, bad_input: bool = False) -> None:
        """An item's kept outcome was taken; it may have been kept by a run that died before it said so."""
        status = "quarantined" if bad_input else "done"
        self._reused.append((stage, key, fingerprint, status))
        entry = self._entry(stage, key)
        entry["status"], entry["fingerprint"] = status, fingerprint

    def retire(self, stage: str, keys: set[str]) -> None:
        """Mark the items of a stage that are no longer among its `keys`: their input left the case."""
        for key, entry in self._document["stages"].get(stage, {}).items():
            if key not in keys and entry["status"] != "retired":
                entry["status"] = "retired"

    def end_run(
        self,
        *,
        computed: dict[str, int],
        reused: dict[str, int],
        seconds: dict[str, float] | None = None,
        error: BaseException | str | None = None,
        action: str = "run",
    ) -> None:
        """Close this run, by what it was (`run`, `retry`, `report`): how many items each stage computed and
        reused, and its seconds; saves.

        A run that computed nothing leaves its line as well: it is the proof that nothing was done.
        """
        run = self._run
        run.update(ended=stamp(), action=action, computed=dict(computed), reused=dict(reused))
        if seconds:
            run["seconds"] = {stage: round(s, 3) for stage, s in seconds.items()}
        if error is not None:
            run["error"] = describe_error(error)
        self._document.pop("current", None)
        self._close(run)
        # What a whole run found is all there is; a run that failed half-way may only add to it.
        kept = [] if error is None else self._document["problems"]
        self._document["problems"] = [*kept, *(p for p in self._noted if p not in kept)]
        self._run = {"started": stamp()}
        self.save()

    def save(self) -> None:
        self._document["updated"] = stamp()
        self._saved = time.monotonic()
        self._store.write_json(self._key, self._document)

    def save_now_and_then(self) -> None:
        """Write the record where the last time is long ago."""
        if time.monotonic() - self._saved > SAVE_EVERY_S:
            self.save()

    @property
    def runs(self) -> list[dict[str, Any]]:
        return list(self._document["runs"])

    def items(self, stage: str) -> dict[str, dict[str, Any]]:
        return {key: dict(entry) for key, entry in self._document["stages"].get(stage, {}).items()}

    def quarantined(self) -> list[tuple[str, str, dict[str, Any]]]:
        """(stage, item, entry) of everything that is left out or failed now."""
        return [
            (stage, key, dict(entry))
            for stage, items in self._document["stages"].items()
            for key, entry in items.items()
            if entry["status"] in ("quarantined", "failed")
        ]

    def document(self) -> dict[str, Any]:
        """The whole record, as it would be saved."""
        return copy.deepcopy(self._document)
