"""The machine fails: processes are killed, disks fill, connections break.  The next night finishes.

Each test runs real nights against the laboratory of `tests.faults.harness`, and compares what they leave
byte for byte, times aside, with the store of a night to which nothing happened.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from tests.faults.compare import canonical, differences
from tests.faults.harness import Lab, kill_tree, ledger, small_disk, until

pytestmark = pytest.mark.server

CASES = ("C-1", "C-2")
# Points in the night's own process, in the order in which a case passes them.
NIGHT_POINTS = (
    "write:C-1/ledger.json:before",
    "write:C-1/work/intake/.*json:after",
    "write:C-1/work/registration/.*json:after",
    "write:C-1/work/detection/.*json:before",
    "write:C-1/work/cells/case.json:after",
    "write:C-1/work/patches/.*json:after",
    "write:C-1/work/staining/.*json:after",
    "write:C-1/work/classification/.*json:before",
    "write:C-1/result.json:after",
    "write:C-1/cells.parquet:before",
    "^record:before",
    "^record:after",
    "write:C-1/work/report/case.json:after",
)


def assert_undisturbed(store: Path, undisturbed: Path, cases: tuple[str, ...] = CASES) -> None:
    for case in cases:
        assert differences(store, undisturbed, case) == []


def last_run(store: Path, case: str = "C-1") -> dict[str, object]:
    found: dict[str, object] = ledger(store, case)["runs"][-1]
    return found


def test_two_undisturbed_nights_leave_the_same_bytes(
    lab: Lab, inbox: Path, undisturbed: Path, tmp_path: Path
) -> None:
    lab.night(inbox, tmp_path / "store").summary()
    assert_undisturbed(tmp_path / "store", undisturbed)
    found = canonical(tmp_path / "store", "C-1")
    kinds = {name.split("/")[0] for name in found}
    assert {"case.zarr", "progress", "work", "result.json", "report.html", "cells.parquet"} <= kinds
    assert any(name.startswith("case.zarr/virtual/") for name in found), "no cell was stained virtually"


def test_a_night_killed_in_every_stage_is_finished_by_the_next(
    lab: Lab, inbox: Path, undisturbed: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    for point in NIGHT_POINTS:
        trap = lab.trap(point, "kill")
        night = lab.night(inbox, store, case=str(inbox / "C-1"))
        assert night.outcome() is None, f"it was not killed at {point}"
        assert trap.sprung
    lab.night(inbox, store).summary()
    assert_undisturbed(store, undisturbed)
    runs = ledger(store)["runs"]
    # The first was killed before its first word; each other has a line that says that it died.
    died = [r for r in runs if r.get("interrupted")]
    assert len(died) == len(NIGHT_POINTS) - 1
    assert "error" not in runs[-1]
    assert all(e["status"] == "done" for items in ledger(store)["stages"].values() for e in items.values())
    assert any(e.get("interrupted") for items in ledger(store)["stages"].values() for e in items.values())


def test_a_worker_killed_in_each_stage_costs_nothing(
    lab: Lab, inbox: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Six workers die in one night, and one more between a shard and its marker."""
    store = tmp_path / "store"
    points = ["inspect", "align_field", "find_cells", "cut_unit", "stain_unit", "classify_unit"]
    traps = [
        lab.trap(f"^call:{name}:{'after' if i % 2 else 'before'}", "kill") for i, name in enumerate(points)
    ]
    traps.append(lab.trap("write:C-2/progress/patches/.*:before", "kill"))
    summary = lab.night(inbox, store).summary()
    assert all(t.sprung for t in traps)
    assert summary["counts"] == {
        "cases": 2, "processed": 2, "computed_anew": 2, "failed": 0, "busy": 0, "left_out": 0,
    }  # fmt: skip
    assert_undisturbed(store, undisturbed)


def test_a_whole_process_tree_killed_at_once_is_finished_by_the_next_run(
    lab: Lab, inbox: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """A night with a cluster of its own, as on one machine: flow, nannies and workers die together."""
    store = tmp_path / "store"
    night = lab.night(inbox, store, scheduler=None, workers=1, preload="tests.faults.worker")
    until(lambda: list((store / "C-1" / "work" / "detection").glob("*.json")), "a field is detected")
    kill_tree(night.pid)
    assert night.outcome() is None
    lab.night(inbox, store).summary()
    assert_undisturbed(store, undisturbed)


def test_a_dead_scheduler_fails_its_case_by_name_and_the_next_night_finishes(
    lab: Lab, inbox: Path, undisturbed: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    trap = lab.trap("^call:find_cells:before", "pause")
    night = lab.night(inbox, store)
    trap.wait()
    lab.kill("scheduler")
    summary = night.summary()
    assert summary["counts"]["processed"] == 0
    assert all("scheduler" in row["error"] for row in summary["cases"])
    assert "scheduler" in ledger(store)["runs"][0]["error"]["message"]
    assert not (store / "C-1" / "result.json").exists()
    lab.mend()
    assert lab.night(inbox, store).summary()["counts"]["processed"] == 2
    assert_undisturbed(store, undisturbed)


def test_a_night_outlives_a_restart_of_the_prefect_server(
    lab: Lab, inbox: Path, undisturbed: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    trap = lab.trap("^call:cut_unit:before", "pause")
    night = lab.night(inbox, store)
    trap.wait()
    lab.kill("server")
    trap.release()
    lab.start_server()
    assert night.summary(240)["counts"]["processed"] == 2
    assert_undisturbed(store, undisturbed)


def test_a_full_disk_is_named_and_the_next_night_finishes(
    lab: Lab, inbox: Path, undisturbed: Path, tmp_path: Path
) -> None:
    try:
        with small_disk(tmp_path / "disk", 8.0) as disk:
            store, ballast = disk / "store", disk / "ballast"
            free = shutil.disk_usage(disk).free
            ballast.write_bytes(b"\0" * (free - 300_000))  # room for a part of the first case
            summary = lab.night(inbox, store).summary()
            assert summary["counts"]["failed"] == 2
            assert all("No space left" in row["error"] for row in summary["cases"])
            named = f"the disk that holds {store} is full"
            assert [r["error"] for r in summary["cases"] if named not in r["error"]] == []
            assert not list(store.glob("*/result.json"))
            ballast.unlink()
            assert lab.night(inbox, store).summary()["counts"]["processed"] == 2
            assert_undisturbed(store, undisturbed)
    except PermissionError as error:
        pytest.skip(f"no file system can be mounted here: {error}")


def test_torn_shards_lost_markers_and_torn_records_are_made_again(
    lab: Lab, inbox: Path, undisturbed: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(undisturbed, store)
    case = store / "C-1"
    shards = sorted(p for p in (case / "case.zarr/patches").rglob("c/**/*") if p.is_file())
    os.truncate(shards[0], shards[0].stat().st_size // 2)
    virtual = sorted(p for p in (case / "case.zarr/virtual").rglob("c/**/*") if p.is_file())
    virtual[0].unlink()
    markers = sorted((case / "progress/patches").rglob("*.json"))
    markers[-1].unlink()
    record = sorted((case / "work/classification").glob("*.json"))[0]
    os.truncate(record, record.stat().st_size // 2)
    (case / "work/registration" / ".writing-left-by-a-dead-process").write_text("half a docu")
    picture = sorted((case / "work/detection").glob("*.jpg"))[0]
    os.truncate(picture, picture.stat().st_size // 2)
    (case / "case.zarr/virtual/zarr.json").unlink()
    os.truncate(case / "work/findings.json", 1000)
    os.truncate(case / "report.html", 1000)
    lab.night(inbox, store).summary()
    assert_undisturbed(store, undisturbed)
    computed = last_run(store)["computed"]
    assert computed["patches"] == 2
    assert computed["staining"] == 1
    assert computed["detection"] == 1
    assert "registration" not in computed


def test_a_lost_results_database_is_filled_again(
    lab: Lab, inbox: Path, undisturbed: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    shutil.copytree(undisturbed, store)
    for file in store.glob("results.db*"):
        file.unlink()
    lab.night(inbox, store).summary()
    assert_undisturbed(store, undisturbed)


def test_a_cut_connection_to_the_store_is_named_and_the_next_night_finishes(
    lab: Lab, inbox: Path, undisturbed: Path
) -> None:
    """The line is cut in the middle of staining, and is there again the next night."""
    store = lab.cut_root / "store"
    store.mkdir()  # the database lies in it, and its folder is asked for before the first case
    there = {"env": {"SMEARFLOW_DATABASE": f"sqlite:///{store / 'results.db'}"}, "lease_s": 2.0}
    trap = lab.trap("^call:stain_unit:before", "pause")
    night = lab.night(inbox, f"cut://{store}", **there)
    trap.wait()
    (lab.cut_root / "CUT").touch()
    trap.release()
    summary = night.summary()
    assert summary["counts"]["failed"] == 2
    assert all("connection" in row["error"] for row in summary["cases"])
    (lab.cut_root / "CUT").unlink()
    time.sleep(2.0)  # the lease of the night that could not give it back
    assert lab.night(inbox, f"cut://{store}", **there).summary()["counts"]["processed"] == 2
    assert_undisturbed(store, undisturbed)


def test_a_locked_database_is_waited_for(lab: Lab, inbox: Path, undisturbed: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    trap = lab.trap("^record:before", "pause")
    night = lab.night(inbox, store)
    trap.wait()
    other = sqlite3.connect(store / "results.db", isolation_level=None)
    other.execute("begin exclusive")
    trap.release()
    assert not night.ended(1.5)
    other.execute("rollback")
    other.close()
    assert night.summary()["counts"]["processed"] == 2
    assert_undisturbed(store, undisturbed)


def test_an_input_changed_between_runs_is_computed_anew(
    lab: Lab, inbox: Path, undisturbed: Path, tmp_path: Path
) -> None:
    changed = tmp_path / "inbox"
    shutil.copytree(inbox, changed)
    shutil.rmtree(changed / "C-2")
    store = tmp_path / "store"
    shutil.copytree(undisturbed, store)
    darken(changed / "C-1" / "F001_BF.tif")
    lab.night(changed, store).summary()
    lab.night(changed, tmp_path / "fresh").summary()
    found, fresh = canonical(store, "C-1"), canonical(tmp_path / "fresh", "C-1")
    rows = json.loads(found.pop("results.db"))
    assert found == {k: v for k, v in fresh.items() if k != "results.db"}
    assert found["result.json"] != canonical(undisturbed, "C-1")["result.json"]
    assert len(rows) == 2, "the row of the report that was made before stays"
    computed = last_run(store)["computed"]
    assert computed["intake"] == 1
    assert computed["detection"] == 1


def test_an_input_changed_while_it_is_read_is_read_again_in_the_same_night(
    lab: Lab, inbox: Path, tmp_path: Path
) -> None:
    changing = tmp_path / "inbox"
    shutil.copytree(inbox, changing)
    shutil.rmtree(changing / "C-2")
    trap = lab.trap("^call:find_cells:before", "pause")
    night = lab.night(changing, tmp_path / "store")
    trap.wait()
    darken(changing / "C-1" / "F001_BF.tif")
    darken(changing / "C-1" / "F002_DIC.tif")
    darken(changing / "C-1" / "F001_DIC.tif")
    trap.release()
    assert night.summary()["counts"]["processed"] == 1
    lab.night(changing, tmp_path / "fresh").summary()
    assert differences(tmp_path / "store", tmp_path / "fresh", "C-1") == []
    first, second = ledger(tmp_path / "store")["runs"]
    assert "was changed while" in first["error"]["message"]
    assert "error" not in second


def test_a_clock_set_back_changes_nothing(lab: Lab, inbox: Path, undisturbed: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    lab.trap("write:C-1/work/staining/.*json:after", "kill")
    assert lab.night(inbox, store).outcome() is None
    assert lab.night(inbox, store, clock_offset_s=-3 * 86400).summary()["counts"]["processed"] == 2
    assert_undisturbed(store, undisturbed)
    died, finished = ledger(store)["runs"]
    assert died["interrupted"]
    assert finished["started"] < died["started"], (
        "the order of the story is that of the runs, not the clock's"
    )
    again = lab.night(inbox, store, clock_offset_s=-6 * 86400).summary()
    assert again["counts"]["computed_anew"] == 0


def test_two_nights_at_once_on_one_inbox_compute_each_case_once(
    lab: Lab, inbox: Path, undisturbed: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    trap = lab.trap("^call:find_cells:before", "pause")
    first, second = lab.night(inbox, store), lab.night(inbox, store)
    trap.wait()
    time.sleep(0.5)
    trap.release()
    summaries = [first.summary(), second.summary()]
    assert all(s["counts"]["failed"] == 0 for s in summaries)
    assert sum(s["counts"]["computed_anew"] for s in summaries) == 2
    assert_undisturbed(store, undisturbed)
    for case in CASES:
        whole = [r for r in ledger(store, case)["runs"] if r["computed"]]
        assert len(whole) == 1
        assert whole[0]["computed"] == last_run(undisturbed, case)["computed"]


def darken(path: Path) -> None:
    """Another image of the same kind."""
    import numpy as np
    import tifffile

    pixels = tifffile.imread(path)
    draft = path.with_suffix(".draft")
    tifffile.imwrite(
        draft,
        (pixels * 0.93).astype(np.uint8),
        resolution=(100000, 100000),
        resolutionunit="CENTIMETER",
    )
    draft.rename(path)
