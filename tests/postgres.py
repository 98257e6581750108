"""A real PostgreSQL of Debian's package, private to a test: its own folder, port, user and password."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PASSWORD = "s3cr3t-of-the-database"  # secret-scan: allow, it lives as long as a test


@dataclass(frozen=True)
class Postgres:
    """A running server; `url` is for SQLAlchemy, with the password in it."""

    port: int
    url: str

    def database(self, name: str) -> str:
        """A new database's URL."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
        return self.url.rsplit("/", 1)[0] + f"/{name}"


def _program(name: str) -> str | None:
    found = shutil.which(name)
    if found:
        return found
    return next(
        (str(p) for p in sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), reverse=True)), None
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Start a server, or skip the test with what to install."""
    initdb, server = _program("initdb"), _program("postgres")
    if initdb is None or server is None:
        pytest.skip("PostgreSQL is not installed; on Debian: apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="smearflow-pg-"))
    # PostgreSQL refuses to run as root.
    who: dict[str, Any] = {}
    if os.getuid() == 0:
        names = {p.pw_name for p in pwd.getpwall()}
        owner = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
        os.chown(folder, owner.pw_uid, owner.pw_gid)
        who = {"user": owner.pw_uid, "group": owner.pw_gid, "extra_groups": []}
    try:
        secret = folder / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)
        made = subprocess.run(
            [
                *(initdb, "-D", str(folder / "data"), "-U", "smearflow", "--pwfile", str(secret)),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--no-sync", "--locale=C"),
            ],
            capture_output=True,
            text=True,
            cwd=folder,
            timeout=120,
            check=False,
            **who,
        )
        assert made.returncode == 0, made.stderr
        port = _free_port()
        with (folder / "log").open("w") as log:
            process = subprocess.Popen(
                [
                    *(server, "-D", str(folder / "data"), "-p", str(port), "-k", str(folder)),
                    *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
                ],
                stdout=log,
                stderr=log,
                cwd=folder,
                **who,
            )
            try:
                _wait(port, process, folder / "log")
                yield Postgres(port, f"postgresql://smearflow:{PASSWORD}@127.0.0.1:{port}/postgres")
            finally:
                process.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    import psycopg

    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(
                host="127.0.0.1", port=port, user="smearflow", password=PASSWORD, dbname="postgres"
            ).close()
            return
        except psycopg.OperationalError:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
