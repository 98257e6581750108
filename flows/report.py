"""The flow that writes a case's report again."""

from __future__ import annotations

import flows.prefect_env  # noqa: F401  (sets Prefect's environment before it is imported)

# isort: split
from typing import Any

from prefect import flow

from flows.rebuild import rebuild
from flows.runs import configured


@flow(name="report", persist_result=False)
def report(case_id: str, store: str | None = None, settings: dict[str, Any] | None = None) -> dict[str, Any]:
    """Write a case's report again, counting by these settings."""
    return rebuild(case_id, configured(store, "SMEARFLOW_STORE", "store"), settings)
