"""The night: every case of an inbox, one after another, on one Dask cluster; a failed case stops nothing."""

from __future__ import annotations

import flows.prefect_env  # noqa: F401  (sets Prefect's environment before it is imported)

# isort: split
import logging
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.runtime import flow_run
from prefect.states import Completed, State

from flows.case import process_case
from flows.cluster import Workers
from flows.console import progress
from flows.execute import summary, up_to_date
from flows.runs import configured
from pipeline.errors import BadInput

log = logging.getLogger("smearflow.nightly")


def cases_of(inbox: Path) -> list[Path]:
    """The case folders of an inbox, by name; hidden folders and loose files are not cases."""
    if not inbox.is_dir():
        raise BadInput(
            f"{inbox}: there is no such inbox folder; name the folder that holds the case folders."
        )
    return sorted(p for p in inbox.iterdir() if p.is_dir() and not p.name.startswith("."))


def _one_case(folder: Path, store: str, settings: dict[str, Any] | None, workers: Workers) -> dict[str, Any]:
    """Process a case or keep the reason why it could not be processed."""
    try:
        # Most cases of an inbox were done in nights before: they cost a look, not a run.
        done = up_to_date(folder, store, settings)
        return summary(done if done is not None else process_case(folder, store, settings, workers))
    except Exception as error:  # the night goes on; the ledger and the summary carry the error
        log.error("%s failed: %s: %s", folder.name, type(error).__name__, error)
        return {"case": folder.name, "status": "failed", "error": f"{type(error).__name__}: {error}"}


@flow(name="nightly", persist_result=False)
def nightly(
    inbox: str | None = None,
    store: str | None = None,
    settings: dict[str, Any] | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
) -> State:
    """Process every case folder of `inbox` into `store`; the final state says how many were quarantined.

    Without them, the worker's SMEARFLOW_INBOX and SMEARFLOW_STORE.
    """
    inbox = configured(inbox, "SMEARFLOW_INBOX", "inbox")
    store = configured(store, "SMEARFLOW_STORE", "store")
    folders = cases_of(Path(inbox))
    rows: list[dict[str, Any]] = []
    with Workers(scheduler, workers) as pool:
        for folder in progress(folders, what="night"):
            rows.append(_one_case(folder, store, settings, pool))
    failed = [r for r in rows if r["status"] == "failed"]
    lost = sum(r.get("quarantined", 0) for r in rows)
    if flow_run.id and rows:
        create_table_artifact(
            key="night",
            table=[
                {
                    "case": r["case"],
                    "status": r["status"],
                    "report": r.get("report", ""),
                    "quarantined": r.get("quarantined", ""),
                    "flags": ", ".join(r.get("flags", [])),
                    "reason": r.get("error", ""),
                }
                for r in rows
            ],
            description="The night's cases, their reports, and why a case has none.",
        )
    done = len(rows) - len(failed)
    message = f"{done} of {len(rows)} cases processed, {len(failed)} cases and {lost} fields quarantined"
    return Completed(message=message, data={"message": message, "cases": rows})
