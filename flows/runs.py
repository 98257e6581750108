"""Opening a case's run: paths, store, settings and ledger from what a person or a schedule passes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.cluster import Workers
from flows.records import CaseRun
from pipeline.errors import BadInput
from pipeline.settings import NightSettings, Settings, load_settings
from storage.audit import Action
from storage.fingerprint import fingerprint
from storage.store import Store, local_folder

if TYPE_CHECKING:
    from sqlalchemy import URL


def settings_of(values: dict[str, Any] | None) -> Settings:
    """The settings that a flow parameter carries, or the defaults."""
    return load_settings(None, values or {})


def settings_mark(settings: Settings) -> str:
    """The hash of the settings that a result names.

    How its night was run says nothing of it, nor what its hash is compared with.
    """
    report = settings.report.model_copy(update={"validated_config": None})
    return fingerprint(settings.model_copy(update={"night": NightSettings(), "report": report}))


def configured(value: str | None, variable: str, what: str) -> str:
    """A flow parameter, else the environment variable of the worker; BadInput where neither is set."""
    found = value or os.environ.get(variable)
    if not found:
        raise BadInput(f"no {what} is given; pass it as a parameter of the run or set {variable}.")
    return found


def open_run(
    case_dir: Path,
    store: str,
    settings: dict[str, Any] | None,
    workers: Workers,
    pixel_size_um: float | None = None,
    *,
    allow_work: bool = True,
    case_id: str | None = None,
    action: Action = "run",
    by_night: bool = False,
) -> CaseRun:
    """A run of one case; the case's id is its folder's name, `action` what the audit log calls it."""
    from pipeline.intake import check_case_id
    from storage.ledger import Ledger

    if case_id is None:
        folder = case_dir.resolve()
        if not folder.exists():
            raise BadInput(f"{case_dir}: there is no such case folder; check the path.")
        if not folder.is_dir():
            raise BadInput(f"{case_dir}: a case is a folder with a manifest.csv; this is a file.")
        case_id, case_dir = check_case_id(folder.name), folder
    opened = Store(store)
    return CaseRun(
        case_dir=case_dir,
        case_id=case_id,
        store=opened,
        settings=settings_of(settings),
        workers=workers,
        ledger=Ledger(opened, case_id),
        pixel_size_um=pixel_size_um,
        allow_work=allow_work,
        action=action,
        by_night=by_night,
    )


def database_url(store_url: str) -> str | URL:
    """The results database: SMEARFLOW_DATABASE, else `results.db` beside the cases of a local store."""
    from sqlalchemy import URL

    configured = os.environ.get("SMEARFLOW_DATABASE")
    if configured:
        return configured
    folder = local_folder(store_url)
    if folder is None:
        raise BadInput(
            f"{store_url}: a remote store cannot hold an SQLite database; set SMEARFLOW_DATABASE to a "
            "PostgreSQL URL."
        )
    # Made of its parts: in a URL as text a '?' in the path would begin the options.
    return URL.create("sqlite", database=str(folder / "results.db"))
