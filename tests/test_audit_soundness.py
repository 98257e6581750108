"""No command builds on a case whose audit log and files disagree, or makes such a case look sound."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import nightly
from flows.auditing import RecordUnsound, audit_cases
from flows.case import process_case
from flows.cluster import Workers
from flows.execute import up_to_date
from flows.nightly import _Cases
from flows.rebuild import rebuild
from flows.retry import chosen, retry_one
from flows.reviewing import review_case
from flows.status import status_of_case
from pipeline.errors import BadInput
from storage.audit import AuditLog
from storage.results_db import ResultsDatabase
from storage.store import Store
from tests.case_folders import make_case
from tests.reported_store import CASE, report_case
from tests.test_review import _cell, _cli, _files, _holds, _result, _review, store

__all__ = ["store"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A case folder of the name of the store's case."""
    return make_case(tmp_path / "inbox" / CASE, fields=1)


def _forge(store: str, name: str, old: str, new: str) -> None:
    """Change a file of the case, and the record that the next look compares it with."""
    file, record = Path(store) / CASE / name, Path(store) / CASE / "work/report/case.json"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    document = json.loads(record.read_text())
    document["output"]["sha256"][name] = hashlib.sha256(file.read_bytes()).hexdigest()
    record.write_text(json.dumps(document))


def _final_by_hand(store: str) -> None:
    _forge(store, "result.json", '"status": "preliminary"', '"status": "final"')


def _log_cut(store: str) -> None:
    _review(store, "--sign")
    _review(store, "--cancel", "--reason", "wrong patient")
    for name in sorted((Path(store) / CASE / "audit").iterdir())[-2:]:
        name.unlink()


def _log_removed(store: str) -> None:
    _review(store, "--sign")
    shutil.rmtree(Path(store) / CASE / "audit")


def _log_and_result_removed(store: str) -> None:
    _log_removed(store)
    (Path(store) / CASE / "result.json").unlink()


def _unlocked(store: str) -> dict[str, bytes]:
    return {name: data for name, data in _files(store).items() if not name.endswith(".lock")}


@pytest.mark.parametrize("tamper", [_final_by_hand, _log_cut, _log_removed, _log_and_result_removed])
def test_a_case_that_was_tampered_with_is_refused_by_every_command_and_never_looks_sound(
    store: str, folder: Path, tamper: Callable[[str], None]
) -> None:
    tamper(store)
    before = _unlocked(store)
    assert not _holds(store)
    with Workers() as workers:
        commands: tuple[Callable[[], Any], ...] = (
            lambda: up_to_date(folder, store),
            lambda: process_case(folder, store, None, workers),
            lambda: rebuild(CASE, store),
            lambda: review_case(CASE, store, reviewer="Dr. X", sign=True),
        )
        for command in commands:
            with pytest.raises(RecordUnsound, match=f"{CASE}: .*nothing was changed; .*restore") as caught:
                command()
            assert "\n" not in str(caught.value)
            assert _unlocked(store) == before
    status = status_of_case(Store(store), CASE)
    assert (status.state, "nothing was changed" in str(status.error)) == ("failed", True)
    row = retry_one(status, store, {}, str(folder.parent))
    assert (row["status"], "nothing was changed" in row["error"]) == ("failed", True)
    assert not _holds(store)


def test_a_case_without_a_log_is_listed_and_does_not_verify(store: str) -> None:
    _log_removed(store)
    done = _cli("audit", "--store", store, "--verify", "--json")
    (found,) = json.loads(done.stdout)
    assert (done.exit_code, found["case"], found["entries"]) == (4, CASE, [])
    assert found["wrong"] == ["the log is missing, though the case was reported."]


def test_a_log_that_was_put_back_to_an_earlier_day_is_found_by_the_results_database(
    store: str, tmp_path: Path
) -> None:
    _review(store, "--sign")
    shutil.copytree(Path(store) / CASE, tmp_path / "copy")
    _review(store, "--cancel", "--reason", "wrong patient")
    shutil.rmtree(Path(store) / CASE)
    shutil.copytree(tmp_path / "copy", Path(store) / CASE)
    (found,) = audit_cases(store, verify=True)
    assert found["wrong"] == ["the results database knows an entry 5 that the log has not."]
    for command in (
        lambda: report_case(store),
        lambda: rebuild(CASE, store),
        lambda: review_case(CASE, store, reviewer="Dr. X", sign=True),
    ):
        with pytest.raises(RecordUnsound, match="the results database knows an entry 5"):
            command()


def test_a_log_that_goes_on_otherwise_from_an_earlier_day_is_found_by_the_results_database(
    store: str, tmp_path: Path
) -> None:
    shutil.copytree(Path(store) / CASE, tmp_path / "copy")
    _review(store, "--cancel", "--reason", "wrong patient")
    shutil.rmtree(Path(store) / CASE)
    shutil.copytree(tmp_path / "copy", Path(store) / CASE)
    (Path(store) / "results.db").rename(tmp_path / "results.db")
    _review(store, "--sign")  # as many entries, and each fits the one before it
    (tmp_path / "results.db").replace(Path(store) / "results.db")
    (found,) = audit_cases(store, verify=True)
    assert found["wrong"] == ["the results database knows an entry 3 that the log has not."]


def test_a_log_that_was_replaced_altogether_is_found_by_the_results_database(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = str(tmp_path / "other")
    report_case(other)
    _review(other, "--sign")
    shutil.rmtree(Path(store) / CASE)
    shutil.copytree(Path(other) / CASE, Path(store) / CASE)
    monkeypatch.setenv("SMEARFLOW_AUDIT_KEY", "k3y")  # an unkeyed log may be older than the key
    (found,) = audit_cases(store, verify=True)
    assert found["wrong"] == ["the results database knows another log of this case, or another store's."]


def test_a_run_without_the_key_of_the_log_is_refused_and_adds_nothing(
    store: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("SMEARFLOW_AUDIT_KEY", "k3y")
        _review(store, "--sign")
        before = _files(store)
    with pytest.raises(RecordUnsound, match="set SMEARFLOW_AUDIT_KEY"):
        up_to_date(folder, store)
    monkeypatch.setenv("SMEARFLOW_AUDIT_KEY", "k3y")
    assert _files(store) == before
    assert _holds(store)


def test_a_case_that_was_removed_begins_anew(store: str) -> None:
    _review(store, "--sign")
    shutil.rmtree(Path(store) / CASE)
    report_case(store)
    assert _result(store)["status"] == "preliminary"
    assert _holds(store)


def test_an_earlier_result_that_was_put_back_is_replaced_and_the_status_follows_from_the_acts(
    store: str,
) -> None:
    _review(store, "--sign")
    case = Path(store) / CASE
    kept = {n: (case / n).read_bytes() for n in ("result.json", "report.html", "work/report/case.json")}
    _review(store, "--cancel", "--reason", "wrong patient")
    current = json.loads((case / "work/report/case.json").read_text())["fingerprint"]
    for name, data in kept.items():
        (case / name).write_bytes(data)
    record = json.loads(kept["work/report/case.json"])
    (case / "work/report/case.json").write_text(json.dumps({**record, "fingerprint": current}))
    assert _result(store)["status"] == "final"
    assert not _holds(store)
    report_case(store)
    assert _result(store)["status"] == "cancelled"
    assert _holds(store)


@pytest.mark.parametrize("name", ["work/findings.json", "result.json", "report.html", "cells.parquet"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_report_that_is_killed_at_any_of_its_files_is_finished_by_the_next(
    store: str, name: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Store.write_bytes

    def killed(self: Store, key: str, data: bytes) -> None:
        if when == "after" or key != f"{CASE}/{name}":
            write(self, key, data)
        if key == f"{CASE}/{name}":
            raise KeyboardInterrupt

    for counts in ({"neutrophil": 100}, {"neutrophil": 120}):
        with monkeypatch.context() as patch:
            patch.setattr(Store, "write_bytes", killed)
            with pytest.raises(KeyboardInterrupt):
                report_case(store, counts)
    report_case(store, {"neutrophil": 120})
    assert _result(store)["differential"]["n_detected"] == 120
    assert _holds(store)


@pytest.mark.parametrize("name", ["report.html", "cells.parquet", "work/findings.json"])
def test_each_file_of_a_report_is_verified_and_made_again_by_a_run(store: str, name: str) -> None:
    _review(store, "--cell", _cell("monocyte"), "--class", "blast", "--sign")
    file = Path(store) / CASE / name
    before = file.read_bytes()
    file.write_bytes(before.replace(b"monocyte", b"monacyte"))
    (found,) = audit_cases(store, verify=True)
    assert found["wrong"] == [f"{name} is not the file that the last run or review wrote."]
    report_case(store)
    assert (_holds(store), _result(store)["status"]) == (True, "final")
    file.unlink()
    (found,) = audit_cases(store, verify=True)
    assert found["wrong"] == [f"{name} is missing, though the log tells of it."]


def test_a_report_is_not_made_again_from_findings_that_no_run_wrote(store: str) -> None:
    file = Path(store) / CASE / "work/findings.json"
    file.write_text(file.read_text().replace('"neutrophil"', '"blast"'))
    for command in (
        lambda: rebuild(CASE, store),
        lambda: review_case(CASE, store, reviewer="Dr. X", sign=True),
    ):
        with pytest.raises(RecordUnsound, match=r"findings\.json is no file that the audit log tells of"):
            command()


def test_looking_at_an_audit_makes_no_database(store: str) -> None:
    for file in Path(store).glob("results.db*"):
        file.unlink()
    assert _holds(store)
    assert not list(Path(store).glob("results.db*"))


def test_a_case_that_fails_before_anything_is_computed_is_named_by_status_and_found_by_retry(
    store: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = make_case(folder.parent / "BAD", fields=1)
    for case in (folder, new):
        (case / "manifest.csv").write_text("nothing of a manifest\n")
    monkeypatch.setattr(nightly, "process_case", lambda *_: pytest.fail("the look has to find it"))
    night = _Cases([folder, new], store, None)
    with Workers() as workers:
        night.process(night.look(), workers)
    assert [row["status"] for row in night.in_order()] == ["failed", "failed"]
    for case in (CASE, "BAD"):
        status = status_of_case(Store(store), case)
        assert (status.state, "manifest" in str(status.error)) == ("failed", True)
        runs = json.loads((Path(store) / case / "ledger.json").read_text())["runs"]
        assert sum("error" in run for run in runs) == 1  # not one more for the first look
    assert [s.case for s in chosen(store, None, True)] == ["BAD", CASE]
    with pytest.raises(BadInput, match="manifest"):
        up_to_date(new, store)
    assert status_of_case(Store(store), "BAD").attempts == 2
    assert _holds(store)


def test_a_case_that_stays_broken_leaves_one_entry_and_not_one_a_night(store: str, folder: Path) -> None:
    new = make_case(folder.parent / "BAD", fields=1)

    def entries_after(manifest: str) -> list[str]:
        (new / "manifest.csv").write_text(manifest)
        with pytest.raises(BadInput):
            up_to_date(new, store)
        return [entry.reason for entry in AuditLog(Store(store), "BAD").entries()]

    first = entries_after("nothing of a manifest\n")
    assert len(first) == 1
    assert entries_after("nothing of a manifest\n") == first
    assert len(entries_after("another,manifest\n")) == 2  # it fails in another way
    assert len(json.loads((Path(store) / "BAD" / "ledger.json").read_text())["runs"]) == 3
    assert _holds(store)


def test_a_report_made_again_does_not_hide_that_the_last_run_failed(store: str, folder: Path) -> None:
    (folder / "manifest.csv").write_text("nothing of a manifest\n")
    with pytest.raises(BadInput):
        up_to_date(folder, store)
    rebuild(CASE, store)
    _review(store, "--sign")
    status = status_of_case(Store(store), CASE)
    assert (status.state, status.case_dir) == ("failed", str(folder))
    assert CASE in [s.case for s in chosen(store, None, True)]


def test_a_case_folder_that_is_not_there_or_has_no_valid_name_leaves_nothing_in_the_store(
    store: str, tmp_path: Path
) -> None:
    before = Store(store).list()
    for name in ("missing", "a case"):
        if name == "a case":
            make_case(tmp_path / name, fields=1)
        with pytest.raises(BadInput):
            up_to_date(tmp_path / name, store)
    assert Store(store).list() == before


def test_of_a_case_s_rows_the_last_report_is_current(store: str) -> None:
    _review(store, "--sign")
    _review(store, "--cancel", "--reason", "wrong patient")
    with ResultsDatabase(f"sqlite:///{store}/results.db") as database:
        rows = [(r["status"], r["current"]) for r in database.rows(CASE)]
    assert rows == [("preliminary", False), ("final", False), ("cancelled", True)]
