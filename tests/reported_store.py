"""A store that holds one reported case, for tests of what is done with a report."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import reporting
from flows.auditing import note
from flows.cluster import Workers
from flows.findings import gather
from flows.runs import open_run
from tests.report_cases import BLOOD, a_case, cells_of

CASE = "K-001"


def reported_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store with one reported case of 200 cells of known classes; no pixels, so no thumbnails."""
    monkeypatch.setattr(reporting, "thumbnails", lambda *_: {})
    monkeypatch.delenv("SMEARFLOW_PSEUDONYM_KEY", raising=False)
    report_case(str(tmp_path / "store"))
    return str(tmp_path / "store")


def report_case(store: str, counts: dict[str, int] | None = None, shift: float = 0.0) -> None:
    cells, classes = cells_of(counts or BLOOD)
    if shift:
        cells = tuple(c.model_copy(update={"bbox_px": tuple(v + shift for v in c.bbox_px)}) for c in cells)
    with Workers() as workers:
        run = open_run(Path("."), store, None, workers, case_id=CASE)
        findings = gather(run, a_case(), cells, classes, {}, {}, {}, {})
        with run.store.writing(CASE):
            run.ledger.begin()
            reporting.report(run, findings)
            run.end()
            note(run, "run")
