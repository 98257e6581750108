"""The results database: one row per case and report, SQLite by default, PostgreSQL by URL.

SQLite serves one laboratory machine: write-ahead log, a long busy timeout, and a bounded retry, since
several flow runs may end in the same second.  Reports stay whole in the store; the row is what a
person searches by.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

from sqlalchemy import (
    JSON,
    Column,
    DateTime,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    event,
    insert,
    select,
    update,
)
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError

from pipeline.errors import BadInput

BUSY_SECONDS = 30.0
RETRIES = 6

metadata = MetaData()

results = Table(
    "results",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("case_id", String(128), nullable=False),
    Column("report_uuid", String(36), nullable=False, unique=True),
    Column("fingerprint", String(64), nullable=False),
    Column("created", DateTime(timezone=True), nullable=False),
    Column("status", String(16), nullable=False),
    Column("specimen", String(16)),
    Column("n_cells", Integer, nullable=False),
    Column("n_denominator", Integer, nullable=False),
    Column("differential", JSON, nullable=False),
    Column("rs_pct", Float),
    Column("rs_ci_low", Float),
    Column("rs_ci_high", Float),
    Column("rs_evidence", String(16)),
    Column("flags", JSON, nullable=False),
    Column("software_version", String(32), nullable=False),
    Column("result_sha256", String(64), nullable=False),
    Index("ix_results_case_created", "case_id", "created"),
)

T = TypeVar("T")


class ResultsDatabase:
    """Rows of results by URL; a context manager."""

    def __init__(self, url: str) -> None:
        try:
            self._engine = create_engine(url, pool_pre_ping=True)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise BadInput(
                f"the results database URL cannot be used ({error}); set SMEARFLOW_DATABASE."
            ) from error
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine, "connect", _prepare_sqlite)
        self._patiently(lambda: metadata.create_all(self._engine))

    def __enter__(self) -> ResultsDatabase:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._engine.dispose()

    def record(self, result: dict[str, Any], *, fingerprint: str, result_sha256: str) -> None:
        """Insert the row of a result, or replace the one of the same report."""
        from datetime import datetime

        created = result["created"]
        iron = result.get("sideroblasts") or {}
        row = {
            "case_id": result["case"]["pseudo_id"],
            "report_uuid": result["report_uuid"],
            "fingerprint": fingerprint,
            "created": datetime.fromisoformat(created) if isinstance(created, str) else created,
            "status": result["status"],
            "specimen": result["case"]["specimen"],
            "n_cells": result["differential"]["n_detected"],
            "n_denominator": result["differential"]["n_denominator"],
            "differential": result["differential"]["rows"],
            "rs_pct": iron.get("rs_pct"),
            "rs_ci_low": iron.get("ci_low"),
            "rs_ci_high": iron.get("ci_high"),
            "rs_evidence": iron.get("evidence"),
            "flags": [f["code"] for f in result["flags"]],
            "software_version": result["software"]["version"],
            "result_sha256": result_sha256,
        }

        def write() -> None:
            with self._engine.begin() as connection:
                changed = connection.execute(
                    update(results).where(results.c.report_uuid == row["report_uuid"]).values(row)
                )
                if changed.rowcount == 0:
                    connection.execute(insert(results).values(row))

        self._patiently(write)

    def rows(self, case_id: str | None = None) -> list[dict[str, Any]]:
        """Rows of one case or all, oldest first."""
        query = select(results).order_by(results.c.created, results.c.id)
        if case_id is not None:
            query = query.where(results.c.case_id == case_id)

        def read() -> list[dict[str, Any]]:
            with self._engine.connect() as connection:
                return [dict(r) for r in connection.execute(query).mappings()]

        return self._patiently(read)

    def _patiently(self, work: Callable[[], T]) -> T:
        """Retry what failed because another process held the database; the last error is raised as it is."""
        for attempt in range(RETRIES):
            try:
                return work()
            except OperationalError as error:
                busy = any(word in str(error).lower() for word in ("locked", "busy", "already exists"))
                if not busy or attempt == RETRIES - 1:
                    raise
                time.sleep(0.1 * 2**attempt)
        raise AssertionError("unreachable")


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_SECONDS * 1000)}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.close()
