"""`smearflow retry` makes whole what a fault left, and reads again what could not be read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from flows.status import status_of_case
from storage.store import Store
from tests.faults.compare import differences
from tests.faults.harness import Lab, ledger

pytestmark = pytest.mark.server


def test_retry_finishes_a_run_that_was_killed_and_a_field_that_failed(
    lab: Lab, inbox: Path, undisturbed: Path, tmp_path: Path
) -> None:
    changing, store = tmp_path / "inbox", tmp_path / "store"
    shutil.copytree(inbox, changing)
    whole = (changing / "C-2" / "F001_BF.tif").read_bytes()
    (changing / "C-2" / "F001_BF.tif").write_bytes(whole[: len(whole) // 2])
    lab.night(changing, store, case=str(changing / "C-2")).summary()
    lab.trap("write:C-1/work/staining/.*:after", "kill")
    assert lab.night(changing, store, case=str(changing / "C-1")).outcome() is None
    assert status_of_case(Store(store), "C-1").state == "interrupted"
    left = status_of_case(Store(store), "C-2").left_out
    assert len(left) == 1
    assert "F001_BF" in left[0]["reason"]
    (changing / "C-2" / "F001_BF.tif").write_bytes(whole)
    rows = lab.night(changing, store, retry=None).summary()["rows"]
    assert {r["case"]: r["status"] for r in rows} == {"C-1": "done", "C-2": "done"}
    lab.night(changing, store).summary()
    assert status_of_case(Store(store), "C-1").state == "done"
    assert ledger(store)["runs"][-1].get("case_dir") == str(changing / "C-1")
    assert differences(store, undisturbed, "C-1") == []
    # The database keeps the row of the run without the field beside the row of the whole case.
    assert differences(store, undisturbed, "C-2") == ["results.db: different"]
