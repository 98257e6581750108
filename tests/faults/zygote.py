"""Starts nights in processes of their own, forked from one that has imported everything.

A night of the fault suite must be a process that can be killed alone, and starting Python with Prefect,
Dask and the image libraries takes longer than the night itself.  So one process imports them, starts no
thread, and forks a child for each line of JSON on its standard input; the child runs the night exactly as
`smearflow nightly` does and leaves its outcome in a file.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import signal
import sys
import traceback
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

MODULES = (
    "cv2",
    "distributed",
    "pandas",
    "pyarrow.parquet",
    "sqlalchemy.dialects.sqlite",
    "zarr",
    "flows.local",
    "flows.nightly",
    "flows.reporting",
    "pipeline.classification",
    "pipeline.night_page",
    "pipeline.report_cells",
    "pipeline.report_html",
    "pipeline.segmentation",
)


def warm() -> None:
    """Import what a night imports."""
    import flows.reporting
    import pipeline.pages
    import storage.registry
    from tests.faults import cut_store, models, traps

    for name in MODULES:
        importlib.import_module(name)
    storage.registry._import_rooms()
    for template in ("report.html.j2", "night.html.j2"):
        pipeline.pages.environment().get_template(template)  # compiled once for all children
    # Someone may commit to this clone while the suite runs, and the report names the commit.
    flows.reporting.source_commit = lambda: None
    models.register_all()
    cut_store.register()
    traps.install()


def night(order: dict[str, Any]) -> dict[str, Any]:
    """Run what was ordered in this process."""
    from flows.local import run_case, run_night

    if order.get("clock_offset_s"):
        import storage.clock

        offset = timedelta(seconds=order["clock_offset_s"])
        storage.clock._read = lambda: datetime.now(UTC) + offset
    if order.get("preload"):
        import dask

        dask.config.set({"distributed.worker.preload": [order["preload"]]})
    if order.get("lease_s"):
        import storage.store_lock

        storage.store_lock.held.__wrapped__.__defaults__ = (order["lease_s"],)
    if order.get("canary_truth"):
        import flows.canary

        flows.canary.TRUTH_TOLERANCE = order["canary_truth"]
    how = {"scheduler": order.get("scheduler"), "workers": order.get("workers")}
    if "retry" in order:
        from flows.retry import chosen, retry_one

        found = chosen(order["store"], order["retry"], failed=order["retry"] is None)
        return {"rows": [retry_one(s, order["store"], order["settings"], None, **how) for s in found]}
    if order.get("case"):
        from flows.execute import summary

        return summary(run_case(Path(order["case"]), order["store"], order["settings"], **how))
    return run_night(Path(order["inbox"]), order["store"], order["settings"], **how)


def child(order: dict[str, Any]) -> None:
    """The life of one night's process."""
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(order.get("env", {}))
    logging.basicConfig(level=logging.WARNING, force=True)
    try:
        outcome: dict[str, Any] = {"ok": night(order)}
    except BaseException as error:
        traceback.print_exc()
        outcome = {"error": type(error).__name__, "message": str(error)}
    draft = Path(order["outcome"] + ".draft")
    draft.write_text(json.dumps(outcome))
    draft.rename(order["outcome"])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
    warm()
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            child(order)
        print(pid, flush=True)


if __name__ == "__main__":
    main()
