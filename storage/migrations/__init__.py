"""The results database's schema, step by step, by Alembic; the only way in which its tables are made.

A file that was made before there were steps has the tables of the first one and no version: it is
taken as that version.  A step and its version are one transaction, so a kill leaves the old schema or
the new one.  Processes that open a database at once take turns.
"""

from __future__ import annotations

from pathlib import Path

from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.runtime.environment import EnvironmentContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, Engine, MetaData, create_engine, event, inspect, text
from sqlalchemy.engine import URL
from sqlalchemy.pool import NullPool

from pipeline.errors import BadInput

FIRST = "0001"
# Any number that no other program of the database takes: the letters of "smear" in base 26.
_LOCK = 8_423_117


def _scripts() -> ScriptDirectory:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    return ScriptDirectory.from_config(config)


def head() -> str:
    """The version that this program reads and writes."""
    found = _scripts().get_current_head()
    assert found is not None
    return found


def current(connection: Connection) -> str | None:
    """The version of a database; None where it is empty, `FIRST` where it was made before there were any."""
    version = MigrationContext.configure(connection).get_current_revision()
    if version is None and inspect(connection).has_table("results"):
        return FIRST
    return version


def _check_known(version: str | None, name: str) -> None:
    """Raise BadInput for a version that this program does not know: a newer program wrote it."""
    if version is None:
        return
    try:
        _scripts().get_revision(version)
    except CommandError as error:
        raise BadInput(
            f"{name}: the results database has the schema {version}, which this smearflow (schema {head()}) "
            "does not know, so a newer one wrote it; upgrade smearflow, or name another database."
        ) from error


def migration_engine(url: URL, arguments: dict[str, object]) -> Engine:
    """An engine whose transactions take the write lock at once, and hold every change of a table."""
    engine = create_engine(url, poolclass=NullPool, connect_args=arguments)
    if url.get_backend_name() == "sqlite":

        @event.listens_for(engine, "connect")
        def manual(connection: object, _record: object) -> None:
            # The driver would commit on its own before a change of a table.
            connection.isolation_level = None  # type: ignore[attr-defined]

        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def bring_forward(url: URL, arguments: dict[str, object], name: str, target: MetaData) -> None:
    """Make or alter the tables up to this program's version; nothing is written where they are there.

    Raises BadInput where the database is newer than the program; `name` is the URL without a password.
    """
    engine = migration_engine(url, arguments)
    try:
        with engine.connect() as connection:
            stamped = MigrationContext.configure(connection).get_current_revision()
        _check_known(stamped, name)
        if stamped == head():
            return
        with engine.begin() as connection:
            if url.get_backend_name() == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            context = MigrationContext.configure(connection)
            version = current(connection)
            _check_known(version, name)
            if version is not None and context.get_current_revision() is None:
                context.stamp(_scripts(), version)
            _upgrade(connection, target)
    finally:
        engine.dispose()


def _upgrade(connection: Connection, target: MetaData) -> None:
    scripts = _scripts()
    with EnvironmentContext(
        Config(), scripts, fn=lambda revision, _context: scripts._upgrade_revs("head", revision)
    ) as environment:
        environment.configure(connection=connection, target_metadata=target, transactional_ddl=True)
        environment.run_migrations()
