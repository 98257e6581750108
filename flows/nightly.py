"""The night: the canary, then every case of an inbox on one Dask cluster; a failed case stops nothing.

A case that the machine failed, or that another run holds, is looked at again when the others are done.
"""

from __future__ import annotations

import flows.prefect_env  # noqa: F401  (sets Prefect's environment before it is imported)

# isort: split
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.states import Completed, Failed

from flows import canary, logs
from flows.asked import asked_again
from flows.case import process_case
from flows.cluster import Workers
from flows.console import progress
from flows.execute import CaseOutcome, tried, up_to_date
from flows.night_summary import NightSummary, publish, record
from flows.ready import check_ready
from flows.runs import configured, settings_of
from flows.stopping import Stopped, as_stopped, check, take_back
from pipeline.errors import BadInput
from storage.store import Store

log = logging.getLogger("smearflow.nightly")


def cases_of(inbox: Path) -> list[Path]:
    """The case folders of an inbox, by name; hidden folders and loose files are not cases."""
    if not inbox.is_dir():
        raise BadInput(
            f"{inbox}: there is no such inbox folder; name the folder that holds the case folders."
        )
    return sorted(p for p in inbox.iterdir() if p.is_dir() and not p.name.startswith("."))


def own_folder(folder: Path) -> Path:
    """The folder itself; raises BadInput for a link that leads out of the inbox.

    Who may only write there could otherwise have any folder of the machine processed and reported.
    """
    if folder.is_symlink() and not folder.resolve().is_relative_to(folder.parent.resolve()):
        raise BadInput(f"{folder} is a link to outside the inbox; move the folder itself into it.")
    return folder


class _Cases:
    """The cases of a night, and what became of each."""

    def __init__(self, folders: list[Path], store: str, settings: dict[str, Any] | None) -> None:
        self.folders, self.store, self.settings = folders, store, settings
        self.rows: dict[Path, dict[str, Any]] = {}
        self.asked: dict[Path, str | None] = {}  # what a person had asked of a case before, in words

    def look(self) -> list[Path]:
        """Settle what was computed in nights before, which costs a look; returns the others."""
        todo = []
        for folder in progress(self.folders, what="looking"):
            check()
            row, _ = self._try(folder, partial(self._kept, folder))
            if row is None or row["status"] != "done":
                todo.append(folder)
            else:
                self.rows[folder] = row
        return todo

    def _try(
        self, folder: Path, attempt: Callable[[], CaseOutcome | None]
    ) -> tuple[dict[str, Any] | None, bool]:
        self.asked.pop(folder, None)
        row, again = tried(folder.name, attempt)
        if row is not None and self.asked.get(folder):
            row["asked"] = self.asked[folder]
            log.info("%s: %s", folder.name, row["asked"], extra={"case": folder.name})
        if row is not None and row["status"] == "failed":
            about = {"case": folder.name, "status": "failed"}
            log.error("%s failed: %s", folder.name, row["error"], extra=about)
        return row, again

    def _as_asked(self, folder: Path) -> tuple[dict[str, Any], float | None]:
        values, pixel_size_um, self.asked[folder] = asked_again(
            own_folder(folder), self.store, self.settings, also_changed=False
        )
        return values, pixel_size_um

    def _kept(self, folder: Path) -> CaseOutcome | None:
        # What fails here is tried again tonight, and then leaves its word.
        return up_to_date(folder, self.store, *self._as_asked(folder), last_word=False, by_night=True)

    def process(self, todo: list[Path], workers: Workers) -> None:
        """Process cases; those that the machine failed or another run holds are tried again at the end."""
        for what in ("night", "night, second try"):
            again: list[Path] = []
            for folder in progress(todo, what=what):
                check()
                workers.restart_if_lost()
                row, retry = self._try(folder, partial(self._one, folder, workers))
                assert row is not None
                self.rows[folder] = row
                if retry:
                    again.append(folder)
            todo = again

    def _one(self, folder: Path, workers: Workers) -> CaseOutcome:
        # Another night may have finished it since.
        values, pixel_size_um = self._as_asked(folder)
        done = up_to_date(folder, self.store, values, pixel_size_um, by_night=True)
        return done or process_case(folder, self.store, values, workers, pixel_size_um, by_night=True)

    def hold_back(self, why: str) -> None:
        """A row for each case of which nothing is known yet."""
        for folder in self.folders:
            self.rows.setdefault(folder, {"case": folder.name, "status": "held back", "error": why})

    def in_order(self) -> list[dict[str, Any]]:
        return [self.rows[folder] for folder in self.folders]


@flow(name="nightly", persist_result=False)
def nightly(
    inbox: str | None = None,
    store: str | None = None,
    settings: dict[str, Any] | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
) -> State:
    """Process every case folder of `inbox` into `store`; the final state says how many were quarantined.

    Without them, the worker's SMEARFLOW_INBOX and SMEARFLOW_STORE.  Where the canary's figures have moved
    the flow fails before any case is touched; told to end (SIGTERM) it fails between two items.
    """
    take_back()
    inbox = configured(inbox, "SMEARFLOW_INBOX", "inbox")
    store = configured(store, "SMEARFLOW_STORE", "store")
    folders = cases_of(Path(inbox))
    opened = Store(store)
    night = NightSummary(inbox, opened.url, settings_of(settings).night.slowest)
    stop: BaseException | None = None
    with logs.to_file(opened, night.name), Workers(scheduler, workers) as pool:
        check_ready(store, pool)
        record(opened, night.begun())
        log.info("night %s: %d case folders in %s", night.name, len(folders), inbox)
        cases = _Cases(folders, store, settings)
        try:
            todo = cases.look()
            # A night that has nothing to compute needs no canary, nor the cluster that it would start.
            night.canary = canary.sing(opened, settings, pool) if todo else {"status": "not needed"}
            if night.canary["status"] == "alarm":
                log.error("%s", night.canary["message"])
                cases.hold_back("the canary stopped the night before this case was touched.")
            else:
                cases.process(todo, pool)
        except (Stopped, TerminationSignal) as error:
            stop = error
            cases.hold_back("the night was stopped by a signal before this case was done.")
        document = night.end(cases.in_order(), stopped=str(as_stopped(stop)) if stop else None)
        log.info("night %s: %s", night.name, document["message"])
    publish(opened, document)
    if isinstance(stop, TerminationSignal):  # a Prefect worker stopped its flow, and Prefect does the rest
        raise stop
    if document["status"] in ("alarm", "stopped"):
        return Failed(message=document["message"], data=document)
    return Completed(message=document["message"], data=document)
