"""One case: one Prefect flow, one task per stage, one Dask cluster."""

from __future__ import annotations

import flows.prefect_env  # noqa: F401  (sets Prefect's environment before it is imported)

# isort: split
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows import stages
from flows.auditing import check_record, note
from flows.cluster import Workers
from flows.execute import CaseOutcome, begin, end_failed, execute, summary
from flows.identity import pseudonym
from flows.records import CaseRun
from flows.runs import configured, open_run
from flows.stopping import as_stopped, check
from pipeline.settings import NightSettings
from storage.audit import Action

log = logging.getLogger("smearflow.case")


def as_task(name: str, function: Any) -> Any:
    """A Prefect task of a stage.

    The arguments are bound before Prefect sees the call: it would walk through every cell of the case
    to look for futures, and hash them for a cache that is not used.
    """

    def call(run: CaseRun, *args: Any) -> Any:
        check()
        bound: Any = partial(function, run, *args)
        gpu = stages.uses_gpu(name, run, args[0] if name == "detection" else None)
        with limited(name, run.settings.night, gpu=gpu):
            stage: Any = task(bound, name=name, persist_result=False, cache_policy=NO_CACHE)
            return stage()

    return call


# A slot of a process that died is free again after so long; Prefect's least.
LEASE_S = 60.0


@contextmanager
def limited(stage: str, settings: NightSettings, *, gpu: bool) -> Iterator[None]:
    """Hold the concurrency limit that the settings name for a stage, if they name one.

    Within one cluster the resource GPU does this; a limit of the server also holds between the clusters of
    several flow runs on one machine.  Raises where the server has no limit of that name.
    """
    name = settings.gpu_limit if gpu else None
    name = settings.database_limit if stage == "report" else name
    if name is None:
        yield
        return
    from prefect.concurrency.sync import concurrency

    with concurrency(name, occupy=1, lease_duration=LEASE_S, strict=True):
        yield


@contextmanager
def workers_for(workers: Workers | None, scheduler: str | None, n_workers: int | None) -> Iterator[Workers]:
    """The night's workers where there are any, else workers of this run alone."""
    if workers is not None:
        yield workers
    else:
        with Workers(scheduler, n_workers) as own:
            yield own


def process_case(
    case_dir: Path,
    store: str,
    settings: dict[str, Any] | None,
    workers: Workers,
    pixel_size_um: float | None = None,
    *,
    action: Action = "run",
    by_night: bool = False,
) -> CaseOutcome:
    """Run a case inside a flow: stages as tasks, the report as an artifact.

    `action` is what the audit log calls it.
    """
    run = open_run(case_dir, store, settings, workers, pixel_size_um, action=action, by_night=by_night)
    with run.store.writing(run.case_id):
        begin(run)
        try:
            check_record(run.store, run.case_id)
            run.store.sweep(run.case_id)
            outcome = execute(run, as_task)
        except BaseException as error:
            end_failed(run, as_stopped(error))
            raise
        run.end()
        note(run, action)
    try:
        _publish(outcome)
    except Exception as error:  # the server went away; the case is in the store, whole
        log.error("%s: its artifacts could not be made: %s", run.case_id, error)
    return outcome


def _publish(outcome: CaseOutcome) -> None:
    from pipeline.report_text import render_text
    from pipeline.result import Result

    if not flow_run.id:
        return
    named = pseudonym(outcome.case_id)
    slug = "".join(c if c.isalnum() else "-" for c in named.lower()).strip("-") or "case"
    create_link_artifact(link=outcome.report_url, link_text=f"Report of {named}", key=f"report-{slug}")
    text = render_text(Result.model_validate(outcome.result))
    create_markdown_artifact(markdown=f"```\n{text}\n```", key=f"summary-{slug}")


@flow(name="case", persist_result=False, validate_parameters=True)
def case(
    case_dir: str,
    store: str | None = None,
    settings: dict[str, Any] | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    pixel_size_um: float | None = None,
) -> dict[str, Any]:
    """Process one case folder into `<store>/<case>/`; returns where the results are.

    Without a store, the worker's SMEARFLOW_STORE.
    """
    store = configured(store, "SMEARFLOW_STORE", "store")
    with workers_for(None, scheduler, workers) as pool:
        outcome = process_case(Path(case_dir), store, settings, pool, pixel_size_um)
    return summary(outcome)
