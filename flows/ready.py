"""What every case of a night needs, looked at once before the first: a mistake in it is one sentence, not one
failure a case."""

from __future__ import annotations

import logging

from flows.cluster import Workers
from flows.console import output_folder
from flows.runs import database_url
from storage.keys import AUDIT, PSEUDONYM, key_of
from storage.packages import package_roots
from storage.store import local_folder

log = logging.getLogger("smearflow")


def check_ready(store: str, workers: Workers | None = None) -> None:
    """Raise BadInput where the keys, the store, the results database or the Dask scheduler of `workers`
    cannot be used, and BadModelPackage where a folder of SMEARFLOW_WEIGHTS is not there.

    A results database that only does not answer may by the time that a report is made: it is told of alone.
    """
    from storage.results_db import DatabaseAway, ResultsDatabase

    for key in (PSEUDONYM, AUDIT):
        key_of(key)
    package_roots()
    folder = local_folder(store)
    if folder is not None:
        output_folder(folder, "store")
    try:
        ResultsDatabase(database_url(store)).close()
    except DatabaseAway as error:
        log.error("%s", error)
    if workers is not None and workers.scheduler is not None:
        _ = workers.client
