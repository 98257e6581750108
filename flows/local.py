"""Running a case or a night from the command line: in this process, stopped by SIGTERM in good order."""

from __future__ import annotations

import flows.prefect_env  # noqa: F401  (sets Prefect's environment before it is imported below)

# isort: split
import logging
from pathlib import Path
from typing import Any, Literal


def run_case(
    case_dir: Path,
    store: str,
    settings: dict[str, Any],
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    pixel_size_um: float | None = None,
    action: Literal["run", "retry"] = "run",
) -> Any:
    """Process a case and return its CaseOutcome; `action` is what the audit log calls it.

    Bad input is found before any server starts, and a case of which everything is kept needs none.
    """
    from flows.execute import up_to_date
    from flows.ready import check_ready

    if case_dir.is_dir():
        check_ready(store)
    done = up_to_date(case_dir, store, settings, pixel_size_um, action=action)
    if done is not None:
        return done
    from prefect import flow

    from flows.case import process_case, workers_for
    from flows.identity import pseudonym
    from flows.own_server import own_server
    from flows.stopping import check, stoppable, take_back

    # An error is told once, in one sentence, by the command line; Prefect would print its traceback before.
    for name in ("prefect.flow_runs", "prefect.task_runs", "prefect"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    @flow(name="case", flow_run_name=f"case {pseudonym(case_dir.name)}", persist_result=False)
    def ad_hoc() -> Any:
        take_back()
        check()
        with workers_for(None, scheduler, workers) as pool:
            return process_case(case_dir, store, settings, pool, pixel_size_um, action=action)

    with stoppable(), own_server():
        return ad_hoc()


def run_night(
    inbox: Path,
    store: str,
    settings: dict[str, Any],
    *,
    scheduler: str | None = None,
    workers: int | None = None,
) -> dict[str, Any]:
    """Process an inbox and return the night's summary."""
    from flows.cluster import Workers
    from flows.nightly import cases_of, nightly
    from flows.own_server import own_server
    from flows.ready import check_ready
    from flows.stopping import stoppable

    cases_of(inbox)  # what is wrong for every case is told before any server starts
    with Workers(scheduler, workers) as pool:
        check_ready(store, pool)
    with stoppable(), own_server():
        state = nightly(str(inbox), store, settings, scheduler, workers, return_state=True)
    # A night that the canary or a signal stopped is a failed flow with a summary; other failures are raised.
    night: Any = state.result(raise_on_failure=False)
    if isinstance(night, BaseException):
        raise night
    found: dict[str, Any] = night
    return found
