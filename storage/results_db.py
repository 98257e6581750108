"""The results database: one row a report, for tables across cases.

SQLite by default, beside the cases, or any database that SQLAlchemy speaks to.  A report that is
written again replaces its own row, and is then the case's current one; nothing else is ever changed.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    DateTime,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    event,
    false,
    insert,
    select,
    update,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    IntegrityError,
    InternalError,
    NoSuchModuleError,
    OperationalError,
    ProgrammingError,
)

from pipeline.errors import BadInput, SmearflowError
from storage.migrations import bring_forward

log = logging.getLogger("smearflow")

# What the steps of storage.migrations lead to; a test compares the two.  Constraint names are fixed, so
# that a step can name them on every database.
metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

results = Table(
    "results",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("case_id", String(128), nullable=False),
    Column("report_uuid", String(36), nullable=False),
    Column("fingerprint", String(64), nullable=False),  # of everything the report was made from
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
    Column("software_version", String(64), nullable=False),
    Column("result_sha256", String(64), nullable=False),
    Column("reviewer", String(128)),
    Column("reviewed_at", DateTime(timezone=True)),
    Column(
        "current", Boolean, nullable=False, server_default=false()
    ),  # of its case's rows, the one that holds
    # Where the case's audit log stood: the seal of its first entry, how many it had, the seal of its last.
    Column("audit_start", String(64)),
    Column("audit_entries", Integer),
    Column("audit_seal", String(64)),
    UniqueConstraint("case_id", "fingerprint"),
    Index("ix_results_case_created", "case_id", "created"),
)


class LogHead(NamedTuple):
    """Where a case's audit log stood: the seal of its first entry, how many it had, the seal of the last."""

    start: str
    entries: int
    seal: str


ATTEMPTS = 8
BUSY_TIMEOUT_S = 20.0
CONNECT_TIMEOUT_S = 20  # of a server; where its machine is gone, the kernel's own is minutes
T = TypeVar("T")

# Databases that did not answer when this process last asked: the next case of a night asks once, and does not
# wait its turn of attempts again.
_away: set[str] = set()


class DatabaseAway(SmearflowError, ConnectionError):
    """The results database is busy, away or out of disk: the machine's fault, which passes."""


_BUSY = ("locked", "busy", "deadlock", "could not serialize", "connection", "closed", "timeout", "timed out")
_DISK = ("disk i/o", "disk is full", "no space left", "could not extend", "starting up", "shutting down")


def _is_busy(error: Exception) -> bool:
    text = str(error).lower()
    if "authentication failed" in text or "does not exist" in text:  # waiting mends neither
        return False
    return any(w in text for w in _BUSY)


def _is_away(error: Exception) -> bool:
    """Whether the same call may go through later."""
    text = str(error).lower()
    return _is_busy(error) or any(w in text for w in (*_DISK, "resolve host", "translate host"))


def masked_url(url: str | URL) -> str:
    """A database URL without its password, for messages."""
    try:
        parsed = make_url(url)
        query = {
            k: "***" if re.search("pass|secret|token|key", k, re.I) else v for k, v in parsed.query.items()
        }
        return parsed.set(query=query).render_as_string(hide_password=True)
    except ArgumentError:
        return "the database URL"


class ResultsDatabase:
    """Results by URL, e.g. `sqlite:////stores/lab/results.db` or `postgresql+psycopg://…`.

    Raises BadInput for a URL that is no database, a wrong password or a newer schema, and DatabaseAway, here
    and in every call, where the database stays busy, is away or has no disk left.
    """

    def __init__(self, url: str | URL) -> None:
        try:
            parsed = make_url(url)
            if parsed.drivername == "postgresql":
                parsed = parsed.set(drivername="postgresql+psycopg")
            sqlite = parsed.get_backend_name() == "sqlite"
            arguments: dict[str, Any] = {"timeout": BUSY_TIMEOUT_S} if sqlite else {}
            if parsed.drivername == "postgresql+psycopg" and "connect_timeout" not in parsed.query:
                arguments["connect_timeout"] = CONNECT_TIMEOUT_S
            self._engine: Engine = create_engine(parsed, pool_pre_ping=True, connect_args=arguments)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise BadInput(
                f"{masked_url(url)} is no database that can be used ({type(error).__name__}); "
                "give sqlite:///PATH or postgresql://USER@HOST/NAME."
            ) from error
        if sqlite:
            event.listen(self._engine, "connect", _prepare_sqlite)
        self.url = masked_url(parsed)
        try:
            self._retry(lambda: bring_forward(parsed, arguments, self.url, metadata))
        except DatabaseError as error:
            raise BadInput(
                f"{self.url}: the results database cannot be opened ({_reason(error)}); check the URL, "
                "the disk and who may write."
            ) from error

    def _retry(self, work: Callable[[], T]) -> T:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                found = work()
                _away.discard(self.url)
                return found
            except (OperationalError, IntegrityError, ProgrammingError, InternalError) as error:
                # Another process made the table, or wrote the same report, between two of our statements.
                raced = isinstance(error, IntegrityError) or "already exists" in str(error).lower()
                last = attempt == ATTEMPTS or (self.url in _away and not raced)
                if last or not (raced or _is_busy(error)):
                    if _is_away(error):
                        _away.add(self.url)
                        raise DatabaseAway(
                            f"{self.url}: the results database does not answer ({_reason(error)}); see that "
                            "it runs and has disk, and run again."
                        ) from error
                    raise
                pause = min(5.0, 0.05 * 2**attempt) * (0.5 + random.random())
                log.info("results database busy (attempt %d of %d): %s", attempt, ATTEMPTS, _reason(error))
                time.sleep(pause)
        raise AssertionError("unreachable")

    def __enter__(self) -> ResultsDatabase:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def record(
        self,
        result: Mapping[str, Any],
        *,
        fingerprint: str,
        result_sha256: str,
        log_head: LogHead | None = None,
    ) -> None:
        """Write the row of a result.json document, in place of an earlier one of the same report.

        It is then the current row of its case.  One transaction, so a reader sees the old rows or the new.
        """
        start, entries, seal = log_head or (None, None, None)
        row = {
            **row_of(result, fingerprint, result_sha256),
            "current": True,
            "audit_start": start,
            "audit_entries": entries,
            "audit_seal": seal,
        }
        of_case = results.c.case_id == row["case_id"]
        same = of_case & (results.c.fingerprint == fingerprint)

        def write() -> None:
            with self._engine.begin() as connection:
                connection.execute(update(results).where(of_case & results.c.current).values(current=False))
                changed = connection.execute(update(results).where(same).values(row))
                if changed.rowcount == 0:
                    connection.execute(insert(results).values(row))

        self._retry(write)

    def rows(self, case_id: str | None = None) -> list[dict[str, Any]]:
        """Rows oldest first, of one case or of all."""
        query = select(results).order_by(results.c.created, results.c.id)
        if case_id is not None:
            query = query.where(results.c.case_id == case_id)

        def read() -> list[dict[str, Any]]:
            with self._engine.connect() as connection:
                return [dict(r._mapping) for r in connection.execute(query)]

        return self._retry(read)

    def log_head(self, case_id: str) -> LogHead | None:
        """Where the audit log of a case stood when its current row was written; None where nothing tells."""
        columns = (results.c.audit_start, results.c.audit_entries, results.c.audit_seal)
        query = select(*columns).where((results.c.case_id == case_id) & results.c.current)

        def read() -> LogHead | None:
            with self._engine.connect() as connection:
                row = connection.execute(query).first()
                return None if row is None or row[0] is None else LogHead(*row)

        return self._retry(read)

    def has(self, case_id: str, fingerprint: str) -> bool:
        """Whether the row of a report is there."""
        same = (results.c.case_id == case_id) & (results.c.fingerprint == fingerprint)

        def read() -> bool:
            with self._engine.connect() as connection:
                return connection.execute(select(results.c.id).where(same)).first() is not None

        return self._retry(read)

    def close(self) -> None:
        self._engine.dispose()


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "orig", None) or error).split())[:160]


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    """Readers do not wait for the writer, and a writer waits for another instead of failing."""
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout={int(BUSY_TIMEOUT_S * 1000)}")
    # Needs a lock itself; where another process holds it, that one switches the mode for both.
    try:
        cursor.execute("PRAGMA journal_mode=WAL")
    except Exception as error:  # sqlite3.OperationalError; a read-only or network disk keeps its mode
        log.info("results database keeps its journal mode: %s", error)
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.close()


def _moment(value: Any) -> Any:
    return datetime.fromisoformat(value) if isinstance(value, str) else value


def _reportable(differential: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a differential, without percentages where too few cells were counted to report any."""
    rows: list[dict[str, Any]] = differential["rows"]
    if not differential.get("pct_blocked"):
        return rows
    return [{k: None if k.startswith("pct") else v for k, v in row.items()} for row in rows]


def row_of(result: Mapping[str, Any], fingerprint: str, result_sha256: str) -> dict[str, Any]:
    """The row of a result.json document (docs/report.md)."""
    review = result.get("review") or {}
    iron = result.get("sideroblasts") or {}
    return {
        "case_id": result["case"]["pseudo_id"],
        "report_uuid": result["report_uuid"],
        "fingerprint": fingerprint,
        "created": _moment(result["created"]),
        "status": result["status"],
        "specimen": result["case"].get("specimen"),
        "n_cells": result["differential"]["n_detected"],
        "n_denominator": result["differential"]["n_denominator"],
        "differential": _reportable(result["differential"]),
        "rs_pct": iron.get("rs_pct"),
        "rs_ci_low": iron.get("ci_low"),
        "rs_ci_high": iron.get("ci_high"),
        "rs_evidence": iron.get("evidence"),
        "flags": [flag["code"] for flag in result["flags"]],
        "software_version": result["software"]["version"],
        "result_sha256": result_sha256,
        "reviewer": review.get("reviewer"),
        "reviewed_at": _moment(review.get("reviewed_at")),
    }
