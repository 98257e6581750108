"""The results database: one row a report, under many writers and locks."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from flows.failures import fault_of, worth_another_try
from pipeline.errors import BadInput
from storage import results_db
from storage.results_db import DatabaseAway, LogHead, ResultsDatabase


def _result(case_id: str = "C1", uuid: str = "u1") -> dict[str, Any]:
    return {
        "report_uuid": uuid,
        "created": "2026-11-20T03:00:00+00:00",
        "status": "preliminary",
        "case": {"pseudo_id": case_id, "specimen": "blood"},
        "differential": {
            "n_detected": 210,
            "n_denominator": 200,
            "rows": [{"class": "lymphocyte", "pct": 31.0}],
        },
        "sideroblasts": None,
        "flags": [{"code": "NOT_REVIEWED"}],
        "software": {"version": "0.1.0"},
    }


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'results.db'}"


def test_a_result_becomes_a_row_and_the_same_report_replaces_it(url: str) -> None:
    with ResultsDatabase(url) as database:
        database.record(_result(), fingerprint="f", result_sha256="a" * 64)
        database.record(_result(uuid="u2"), fingerprint="f", result_sha256="b" * 64)
        database.record(_result(), fingerprint="g", result_sha256="c" * 64)
        database.record(_result("C2"), fingerprint="f", result_sha256="d" * 64)
    with ResultsDatabase(url) as database:
        rows = database.rows("C1")
        assert [(r["fingerprint"], r["report_uuid"], r["result_sha256"][0]) for r in rows] == [
            ("f", "u2", "b"),
            ("g", "u1", "c"),
        ]
        assert (rows[0]["n_cells"], rows[0]["n_denominator"], rows[0]["flags"]) == (
            210,
            200,
            ["NOT_REVIEWED"],
        )
        assert rows[0]["differential"] == [{"class": "lymphocyte", "pct": 31.0}]
        assert rows[0]["rs_pct"] is None
        assert database.has("C1", "f")
        assert not database.has("C2", "g")
        assert len(database.rows()) == 3


def test_the_last_report_of_a_case_is_its_current_row_and_knows_where_the_log_stood(url: str) -> None:
    with ResultsDatabase(url) as database:
        for mark, status in (("f", "final"), ("g", "cancelled"), ("f", "final")):
            head = LogHead("s", len(mark), f"seal of {mark}")
            result = {**_result(), "status": status}
            database.record(result, fingerprint=mark, result_sha256="a", log_head=head)
        database.record(_result("C2"), fingerprint="h", result_sha256="b")
        assert [(r["fingerprint"], r["current"]) for r in database.rows("C1")] == [("f", True), ("g", False)]
        assert database.rows("C2")[0]["current"]
        assert database.log_head("C1") == LogHead("s", 1, "seal of f")
        assert database.log_head("C2") is None


def test_percentages_that_must_not_be_reported_are_not_in_the_database(url: str) -> None:
    few = _result()
    few["differential"] = {
        "n_detected": 3,
        "n_denominator": 3,
        "pct_blocked": True,
        "rows": [{"class": "blast", "n_ai": 1, "pct": 33.3, "ci_low": 0.8}],
    }
    with ResultsDatabase(url) as database:
        database.record(few, fingerprint="f", result_sha256="a")
        (row,) = database.rows()
    assert row["differential"] == [{"class": "blast", "n_ai": 1, "pct": None, "ci_low": 0.8}]


def test_names_cannot_inject_sql(url: str) -> None:
    evil = "x'); DROP TABLE results; --"
    with ResultsDatabase(url) as database:
        database.record(_result(evil), fingerprint="f", result_sha256="a")
        assert [r["case_id"] for r in database.rows(evil)] == [evil]


def test_a_locked_database_is_waited_for(url: str, tmp_path: Path) -> None:
    with ResultsDatabase(url) as database:
        other = sqlite3.connect(tmp_path / "results.db", check_same_thread=False, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")

        def release() -> None:
            time.sleep(0.5)
            other.execute("COMMIT")

        thread = threading.Thread(target=release)
        thread.start()
        started = time.perf_counter()
        database.record(_result(), fingerprint="f", result_sha256="a")
        assert time.perf_counter() - started > 0.3
        thread.join()
        other.close()
        assert len(database.rows()) == 1


def test_a_database_that_stays_locked_ends_in_the_original_error_and_is_tried_again_by_the_night(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results_db, "BUSY_TIMEOUT_S", 0.01)
    monkeypatch.setattr(results_db, "ATTEMPTS", 2)
    with ResultsDatabase(url) as database:
        other = sqlite3.connect(tmp_path / "results.db", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(DatabaseAway, match="locked") as caught:
            database.record(_result(), fingerprint="f", result_sha256="a")
        assert isinstance(caught.value.__cause__, OperationalError)
        assert fault_of(caught.value) == "machine"
        assert worth_another_try(caught.value)
        other.execute("COMMIT")
        other.close()


def test_a_database_that_did_not_answer_is_asked_once_a_case_until_it_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a night of 500 cases waits for its eight attempts 500 times, and once more for each second try."""
    waited: list[float] = []
    monkeypatch.setattr(results_db, "_away", set())  # other tests of this process asked for such a one, too
    monkeypatch.setattr(results_db.time, "sleep", waited.append)
    away = "postgresql://nobody@127.0.0.1:9/results"
    with pytest.raises(DatabaseAway):
        ResultsDatabase(away)
    assert len(waited) == results_db.ATTEMPTS - 1
    for _ in range(3):
        with pytest.raises(DatabaseAway):
            ResultsDatabase(away)
    assert len(waited) == results_db.ATTEMPTS - 1


def test_a_database_that_answers_again_is_waited_for_again(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(results_db, "BUSY_TIMEOUT_S", 0.01)
    monkeypatch.setattr(results_db.time, "sleep", waited.append)
    with ResultsDatabase(url) as database:
        for _ in range(2):
            waited.clear()
            other = sqlite3.connect(tmp_path / "results.db", isolation_level=None)
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(DatabaseAway, match="locked"):
                database.record(_result(), fingerprint="f", result_sha256="a")
            assert len(waited) == results_db.ATTEMPTS - 1
            other.execute("COMMIT")
            other.close()
            database.record(_result(), fingerprint="f", result_sha256="a")


def test_many_processes_make_and_fill_one_database_at_once(url: str) -> None:
    code = (
        "import sys; from storage.results_db import ResultsDatabase\n"
        "from tests.test_storage_results_db import _result\n"
        "n = int(sys.argv[2])\n"
        "with ResultsDatabase(sys.argv[1]) as d:\n"
        " for i in range(5):\n"
        "  d.record(_result(f'C{n}-{i}'), fingerprint='f', result_sha256='a')\n"
        "  d.record(_result('shared'), fingerprint='f', result_sha256='a')\n"
    )
    root = Path(__file__).resolve().parent.parent
    running = [
        subprocess.Popen([sys.executable, "-c", code, url, str(n)], cwd=root, stderr=subprocess.PIPE)
        for n in range(3)
    ]
    for process in running:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error.decode()
    with ResultsDatabase(url) as database:
        assert len(database.rows()) == 16
        assert len(database.rows("shared")) == 1


def test_a_database_that_cannot_be_opened_is_one_sentence_without_its_password(tmp_path: Path) -> None:
    asked = "nosuch://host/db?user=u&password=secret&sslpassword=secret"
    for url in ("nonsense", asked, "nosuch://u:secret@host/db", f"sqlite:///{tmp_path}/none/results.db"):
        with pytest.raises(BadInput) as caught:
            ResultsDatabase(url)
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)
