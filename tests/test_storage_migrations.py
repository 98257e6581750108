"""The results database's schema: made, brought forward and refused by one mechanism, on both databases."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

from pipeline.errors import BadInput
from storage import migrations
from storage.results_db import DatabaseAway, ResultsDatabase, metadata
from tests.postgres import Postgres, running_postgres
from tests.test_storage_results_db import _result

ROOT = Path(__file__).resolve().parent.parent

# What the first version of the program made, by CREATE TABLE alone and without a version.
OLD = """
CREATE TABLE results (
    id INTEGER NOT NULL, case_id VARCHAR(128) NOT NULL, report_uuid VARCHAR(36) NOT NULL,
    fingerprint VARCHAR(64) NOT NULL, created DATETIME NOT NULL, status VARCHAR(16) NOT NULL,
    specimen VARCHAR(16), n_cells INTEGER NOT NULL, n_denominator INTEGER NOT NULL,
    differential JSON NOT NULL, rs_pct FLOAT, rs_ci_low FLOAT, rs_ci_high FLOAT, rs_evidence VARCHAR(16),
    flags JSON NOT NULL, software_version VARCHAR(64) NOT NULL, result_sha256 VARCHAR(64) NOT NULL,
    CONSTRAINT pk_results PRIMARY KEY (id), CONSTRAINT uq_results_case_id UNIQUE (case_id, fingerprint)
);
CREATE INDEX ix_results_case_created ON results (case_id, created);
INSERT INTO results VALUES (1, 'OLD-1', 'u', 'f', '2026-01-02 03:04:05.000000', 'preliminary', 'blood',
    10, 9, '[]', NULL, NULL, NULL, NULL, '["NOT_REVIEWED"]', '0.1.0', 'a');
"""


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with running_postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'results.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.database(tmp_path.name.replace("[", "").replace("]", "")[:50])


def _sql(url: str) -> str:
    return url.replace("postgresql://", "postgresql+psycopg://")


def test_the_steps_lead_to_the_tables_that_the_program_uses(url: str) -> None:
    ResultsDatabase(url).close()
    engine = create_engine(_sql(url))
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        assert context.get_current_revision() == migrations.head()
    engine.dispose()


def test_rows_are_kept_read_and_replaced_on_both_databases(url: str) -> None:
    with ResultsDatabase(url) as database:
        database.record(_result(), fingerprint="f", result_sha256="a" * 64)
        database.record(_result(uuid="u2"), fingerprint="f", result_sha256="b" * 64)
        reviewed = {**_result(), "status": "final"}
        reviewed["review"] = {"reviewer": "Dr. X", "reviewed_at": "2026-11-20T09:00:00+00:00"}
        database.record(reviewed, fingerprint="g", result_sha256="c" * 64)
    with ResultsDatabase(url) as database:
        first, second = database.rows("C1")
    assert (first["report_uuid"], first["flags"], first["reviewer"]) == ("u2", ["NOT_REVIEWED"], None)
    assert (second["status"], second["reviewer"], second["reviewed_at"].hour) == ("final", "Dr. X", 9)
    assert first["differential"] == [{"class": "lymphocyte", "pct": 31.0}]


def test_of_the_rows_of_an_old_file_the_last_of_each_case_is_current(tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    with sqlite3.connect(path) as old:
        old.executescript(OLD)
        for number, case, day in ((2, "OLD-1", 5), (3, "OLD-1", 4), (4, "OLD-2", 1), (5, "OLD-2", 1)):
            old.execute(
                "INSERT INTO results SELECT ?, ?, 'u', ?, ?, status, specimen, n_cells, n_denominator, "
                "differential, rs_pct, rs_ci_low, rs_ci_high, rs_evidence, flags, software_version, "
                "result_sha256 FROM results WHERE id = 1",
                (number, case, f"f{number}", f"2026-01-0{day} 03:04:05.000000"),
            )
    with ResultsDatabase(f"sqlite:///{path}") as database:
        rows = database.rows()
        assert len(rows) == 5
        assert sorted(r["id"] for r in rows if r["current"]) == [2, 5]
        assert database.log_head("OLD-1") is None


def test_an_old_file_is_brought_forward_with_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "results.db"
    with sqlite3.connect(path) as old:
        old.executescript(OLD)
    with ResultsDatabase(f"sqlite:///{path}") as database:
        rows = database.rows()
        assert [(r["case_id"], r["n_cells"], r["reviewer"]) for r in rows] == [("OLD-1", 10, None)]
        database.record(_result(), fingerprint="f", result_sha256="a")
        assert len(database.rows()) == 2
    engine = create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), metadata) == []
    engine.dispose()


def test_a_newer_database_is_refused_in_one_sentence_and_left_as_it_is(url: str) -> None:
    ResultsDatabase(url).close()
    engine = create_engine(_sql(url))
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(BadInput, match=r"schema 9999, which this smearflow .* upgrade smearflow") as caught:
        ResultsDatabase(url)
    assert "\n" not in str(caught.value)
    assert "s3cr3t" not in str(caught.value)
    with engine.connect() as connection:
        assert connection.execute(text("SELECT version_num FROM alembic_version")).scalar() == "9999"
    engine.dispose()


def test_a_step_that_fails_leaves_the_old_schema_whole(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import alembic.operations

    def torn(self: object, table: str, column: object, **_: object) -> None:
        if getattr(column, "name", "") == "reviewed_at":
            raise RuntimeError("power cut")
        original(self, table, column)

    original = alembic.operations.Operations.add_column
    monkeypatch.setattr(alembic.operations.Operations, "add_column", torn)
    monkeypatch.setattr("alembic.op.add_column", lambda *a: torn(alembic.op._proxy, *a), raising=False)
    with pytest.raises(RuntimeError, match="power cut"):
        ResultsDatabase(url)
    engine = create_engine(_sql(url))
    assert inspect(engine).get_table_names() == []
    engine.dispose()
    monkeypatch.undo()
    with ResultsDatabase(url) as database:
        assert database.rows() == []


def test_processes_that_open_a_new_database_at_once_make_it_once(url: str) -> None:
    code = (
        "import sys; from storage.results_db import ResultsDatabase\n"
        "from tests.test_storage_results_db import _result\n"
        "with ResultsDatabase(sys.argv[1]) as d:\n"
        " d.record(_result('C' + sys.argv[2]), fingerprint='f', result_sha256='a')\n"
        " d.record(_result('shared'), fingerprint='f', result_sha256='a')\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-c", code, url, str(n)], cwd=ROOT, stderr=subprocess.PIPE)
        for n in range(3)
    ]
    for process in running:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error.decode()
    with ResultsDatabase(url) as database:
        assert sorted(r["case_id"] for r in database.rows()) == ["C0", "C1", "C2", "shared"]


def test_a_connection_that_is_cut_between_two_reports_is_opened_again(postgres: Postgres) -> None:
    import psycopg

    with ResultsDatabase(postgres.database("cut")) as database:
        database.record(_result(), fingerprint="f", result_sha256="a")
        with psycopg.connect(postgres.url, autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'cut'")
        database.record(_result(), fingerprint="g", result_sha256="b")
        assert len(database.rows()) == 2


def test_a_wrong_password_and_a_server_that_is_away_are_one_sentence_without_it(
    postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.results_db.ATTEMPTS", 2)
    wrong = postgres.url.replace("s3cr3t", "wr0ng")
    away = f"postgresql://smearflow:s3cr3t@127.0.0.1:{postgres.port + 1}/postgres?connect_timeout=2"
    # A wrong URL is the person's to mend; a server that is away may be there again tonight.
    for url, kind in ((wrong, BadInput), (away, DatabaseAway)):
        with pytest.raises(kind) as caught:
            ResultsDatabase(url)
        assert "\n" not in str(caught.value)
        assert "s3cr3t" not in str(caught.value)
        assert "wr0ng" not in str(caught.value)
