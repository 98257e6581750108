"""Prefect's own records in PostgreSQL, as docs/deploy.md sets it up."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.postgres import PASSWORD, running_postgres

PREFECT = str(Path(sys.executable).parent / "prefect")
FLOW = """
import flows.prefect_env
from prefect import flow, task

@task
def stage(n: int) -> int:
    return n + 1

@flow(name="probe")
def probe() -> int:
    return sum(f.result() for f in [stage.submit(n) for n in range(3)])

assert probe() == 6
"""


@pytest.mark.server
def test_a_prefect_server_keeps_its_runs_in_postgresql_and_says_no_password(tmp_path: Path) -> None:
    import psycopg

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with running_postgres() as server:
        database = server.database("prefect")
        environment = {
            **os.environ,
            "PREFECT_HOME": str(tmp_path / "home"),
            "PREFECT_API_DATABASE_CONNECTION_URL": database.replace("postgresql:", "postgresql+asyncpg:"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
        }
        with (tmp_path / "server.log").open("w") as log:
            process = subprocess.Popen(
                [PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)],
                env=environment,
                stdout=log,
                stderr=log,
                cwd=tmp_path,
            )
            try:
                api = f"http://127.0.0.1:{port}/api"
                deadline = time.monotonic() + 240  # the first start makes the tables
                while True:
                    try:
                        urllib.request.urlopen(f"{api}/health", timeout=2).read()
                        break
                    except OSError:
                        text = (tmp_path / "server.log").read_text()
                        assert process.poll() is None, text[-2000:]
                        assert time.monotonic() < deadline, text[-2000:]
                        time.sleep(0.5)
                client = {k: v for k, v in environment.items() if "DATABASE" not in k}
                done = subprocess.run(
                    [sys.executable, "-c", FLOW],
                    env={**client, "PREFECT_API_URL": api},
                    cwd=Path(__file__).resolve().parent.parent,
                    capture_output=True,
                    text=True,
                    timeout=240,
                    check=False,
                )
                assert done.returncode == 0, done.stderr[-2000:]
                with psycopg.connect(database) as connection:
                    states = connection.execute("SELECT state_type FROM flow_run").fetchall()
                    tasks = connection.execute("SELECT count(*) FROM task_run").fetchone()
                assert [s[0] for s in states] == ["COMPLETED"]
                assert tasks is not None
                assert tasks[0] >= 1
            finally:
                process.terminate()
                try:
                    process.wait(timeout=30)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
        logged = (tmp_path / "server.log").read_text() + done.stdout + done.stderr
        assert PASSWORD not in logged
        assert not list((tmp_path / "home").rglob("prefect.db"))
