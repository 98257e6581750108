"""`smearflow status` says what stands in a store, whatever state it was left in."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from flows.cli import group
from flows.retry import chosen, folder_of, forget_verdicts
from flows.status import as_text, status_of_case, status_of_store
from pipeline.errors import BadInput
from storage.ledger import Ledger
from storage.store import CaseBusy, Store


def result_of(**more: object) -> dict[str, object]:
    return {"problems": [], "flags": [], "differential": {"n_detected": 5}, **more}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One case in each state; no image was ever there."""
    store = Store(tmp_path / "store")
    done = Ledger(store, "A-done")
    done.begin("/inbox/A-done")
    done.start("detection", "F1", "f")
    done.done("detection", "F1")
    done.end_run(computed={"detection": 1}, reused={})
    problem = {"code": "UNREADABLE", "field": "F2", "file": "F2.tif", "message": "F2.tif is torn; copy it."}
    note = {"code": "NO_PARTNER", "field": "F3", "message": "no partner", "fatal_for_field": False}
    flags = [{"code": "LOW_COUNT"}]
    store.write_json("A-done/result.json", result_of(problems=[problem, note], flags=flags))

    failed = Ledger(store, "B-failed")
    failed.begin("/inbox/B-failed")
    failed.start("detection", "F1", "f")
    failed.fail("detection", "F1", RuntimeError("out of memory"))
    failed.end_run(computed={}, reused={}, error=RuntimeError("all items failed"))

    died = Ledger(store, "C-died")
    died.begin("/inbox/C-died")
    died.start("patches", "unit-00000", "f")
    died.start("patches", "unit-00001", "f")
    died.done("patches", "unit-00001")
    died.start("patches", "unit-00002", "f")
    died.retire("patches", {"unit-00000", "unit-00001"})  # its cells are gone
    died.save()

    store.write_text("D-damaged/ledger.json", '{"stages": ')
    store.write_json("nights/latest.json", {"started": "2026-11-21T01:00:00+00:00", "message": "1 of 4"})
    return store


def test_each_case_is_listed_with_its_state_reason_and_flags(store: Store) -> None:
    found = status_of_store(store.url)
    cases = {c["case"]: c for c in found["cases"]}
    assert {name: c["state"] for name, c in cases.items()} == {
        "A-done": "done",
        "B-failed": "failed",
        "C-died": "interrupted",
        "D-damaged": "damaged",
    }
    assert [p["reason"] for p in cases["A-done"]["left_out"]] == ["F2.tif is torn; copy it."]
    assert cases["A-done"]["flags"] == ["LOW_COUNT"]
    assert cases["B-failed"]["error"] == "RuntimeError: all items failed"
    assert cases["B-failed"]["failed_items"][0]["reason"] == "RuntimeError: out of memory"
    assert cases["C-died"]["progress"] == {"patches": "1/2"}
    assert found["last_night"]["message"] == "1 of 4"
    text = as_text(found)
    for part in (
        "F2.tif is torn",
        "out of memory",
        "interrupted",
        "1 damaged, 1 done, 1 failed, 1 interrupted",
    ):
        assert part in text


def test_each_report_is_listed_as_signed_withdrawn_or_neither_and_by_whom(store: Store) -> None:
    store.write_json("A-done/result.json", result_of(status="preliminary", review={"reviewer": None}))
    ledger = Ledger(store, "E-signed")
    ledger.begin("/inbox/E-signed")
    ledger.end_run(computed={}, reused={})
    review = {"reviewer": "Dr\x1b X", "reviewed_at": "2026-11-20T08:00:00Z"}
    for status in ("final", "cancelled"):
        store.write_json("E-signed/result.json", result_of(status=status, review=review))
        found = status_of_store(store.url)
        cases = {c["case"]: c for c in found["cases"]}
        assert cases["A-done"]["report_status"] == "preliminary"
        assert cases["A-done"]["reviewer"] is None
        assert cases["B-failed"]["report_status"] is None
        assert cases["E-signed"]["report_status"] == status
        assert cases["E-signed"]["reviewer"] == "Dr\x1b X"
        assert cases["E-signed"]["reviewed_at"] == "2026-11-20T08:00:00Z"
        lines = {line.split()[0]: line for line in as_text(found).splitlines()}
        assert "5 cells · report preliminary" in lines["A-done"]
        assert f"report {status} (Dr" in lines["E-signed"]
        assert "2026-11-20)" in lines["E-signed"]
        assert "\x1b" not in as_text(found)
        assert "report" not in lines["B-failed"]


def test_a_case_that_is_being_worked_on_is_shown_with_its_holder(store: Store) -> None:
    with store.writing("C-died"):
        pass
    assert status_of_case(store, "C-died").holder is None
    code = (
        "import sys, time; from storage.store import Store\n"
        "with Store(sys.argv[1]).writing('C-died'):\n print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, store.url], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        assert other.stdout.readline().strip() == "held"
        found = status_of_case(store, "C-died")
        assert found.state == "running"
        assert found.holder is not None
        assert found.holder["pid"] == other.pid
    finally:
        other.kill()
        other.wait()
    assert status_of_case(store, "C-died").state == "interrupted"


def test_a_look_never_keeps_a_run_from_starting(store: Store) -> None:
    """`status` probes the lock; a run that starts at that very moment must not be refused."""
    code = (
        "import sys, time; from storage.store import Store; s = Store(sys.argv[1])\n"
        "end = time.monotonic() + 1.0\nprint('looking', flush=True)\n"
        "while time.monotonic() < end: s.holder('A-done')"
    )
    other = subprocess.Popen([sys.executable, "-c", code, store.url], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None
        other.stdout.readline()
        deadline = time.monotonic() + 0.7
        while time.monotonic() < deadline:
            with store.writing("A-done"):
                pass
    finally:
        other.wait()


def test_the_command_prints_one_json_document(store: Store) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", "status", "--store", store.url, "--json"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert len(json.loads(done.stdout)["cases"]) == 4


def test_the_images_are_found_after_a_report_or_a_review_that_read_none(store: Store) -> None:
    again = Ledger(store, "A-done")
    again.begin()
    assert status_of_case(store, "A-done").case_dir == "/inbox/A-done"
    again.end_run(computed={"report": 1}, reused={})
    assert folder_of(status_of_case(store, "A-done"), None) == Path("/inbox/A-done")


def test_one_case_that_fails_in_any_way_does_not_keep_retry_from_the_others(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    def broken(folder: Path, *_: object, **__: object) -> None:
        tried.append(folder.name)
        raise CaseBusy("held") if folder.name == "C-died" else KeyError("a defect")

    monkeypatch.setattr("flows.local.run_case", broken)
    done = CliRunner().invoke(group, ["retry", "--failed", "--store", store.url, "--json"])
    assert done.exit_code == 3
    rows = {r["case"]: r for r in json.loads(done.stdout)}
    assert tried == ["B-failed", "C-died"]
    assert "audit" in rows["A-done"]["error"]  # its result has no log, and may not be written over
    assert {r["status"] for r in rows.values()} == {"failed", "busy"}
    assert rows["B-failed"]["error"] == "KeyError: 'a defect'"
    assert rows["B-failed"]["was"] == "failed"
    assert "give --inbox" in rows["D-damaged"]["error"]


def test_a_store_that_is_not_there_is_named_and_not_made(tmp_path: Path) -> None:
    for said in (str(tmp_path / "nowhere"), f"file://{tmp_path}/nowhere"):
        with pytest.raises(BadInput, match="nowhere"):
            status_of_store(said)
    assert not (tmp_path / "nowhere").exists()


def test_retry_takes_every_case_that_is_not_whole(store: Store) -> None:
    assert [s.case for s in chosen(store.url, None, failed=True)] == [
        "A-done",
        "B-failed",
        "C-died",
        "D-damaged",
    ]
    with pytest.raises(BadInput, match="no such case"):
        chosen(store.url, "Z-9", failed=False)
    with pytest.raises(BadInput, match="--failed"):
        chosen(store.url, None, failed=False)
    assert CliRunner().invoke(group, ["retry", "--store", store.url]).exit_code != 0


def test_retry_forgets_verdicts_and_nothing_else(store: Store) -> None:
    good = {"fingerprint": "a", "output": {"images": [1], "problems": [{"fatal_for_field": False}]}}
    store.write_json("A-done/work/intake/good.json", good)
    store.write_json("A-done/work/intake/bad.json", {"fingerprint": "b", "output": {"problems": [{}]}})
    store.write_json("A-done/work/detection/bad.json", {"fingerprint": "c", "error": {"message": "torn"}})
    store.write_json("A-done/work/findings.json", {"problems": [{}]})
    assert forget_verdicts(store, "A-done") == 2
    assert store.list("A-done/work/intake") == ["good.json"]
    assert store.list("A-done/work/detection") == []
    assert store.exists("A-done/work/findings.json")


def test_a_case_whose_run_found_no_room_for_a_ledger_is_named_and_found_by_retry(store: Store) -> None:
    """A full disk takes the lock, which is empty, and nothing after it."""
    with store.writing("E-full"):
        assert status_of_case(store, "E-full").state == "running"
    found = {c["case"]: c for c in status_of_store(store.url)["cases"]}["E-full"]
    assert found["state"] == "unfinished"
    assert "disk full" in found["error"]
    assert "E-full" in [s.case for s in chosen(store.url, None, failed=True)]
    (named,) = chosen(store.url, "E-full", failed=False)
    assert folder_of(named, "/inbox") == Path("/inbox/E-full")
    with pytest.raises(BadInput, match="give --inbox"):
        folder_of(named, None)
