"""A laboratory that outgrew its machine: a Dask cluster of other processes, an S3 store, PostgreSQL.

Everything is started for real, once, with passwords of its own, and a case is run twice through the
command line.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from storage.results_db import ResultsDatabase
from storage.store import Store
from tests import postgres as pg
from tests import s3_server

pytestmark = pytest.mark.server
ROOT = Path(__file__).resolve().parent.parent
STORE = "s3://lab/store"


@dataclass
class Laboratory:
    """What runs, where it logs, and what the case's two runs said."""

    folder: Path
    database: str
    runs: list[subprocess.CompletedProcess[str]] = field(default_factory=list)

    @property
    def results(self) -> list[dict[str, Any]]:
        return [json.loads(r.stdout) for r in self.runs]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def dask_cluster(folder: Path, n_workers: int = 2) -> Iterator[str]:
    """A scheduler and workers as `docs/deploy.md` starts them; yields the scheduler's address."""
    port = _free_port()
    address = f"tcp://127.0.0.1:{port}"
    dask = [sys.executable, "-m", "dask"]
    commands = [[*dask, "scheduler", "--host", "127.0.0.1", "--port", str(port), "--no-dashboard"]]
    worker = [
        "worker",
        address,
        "--nthreads",
        "1",
        "--nworkers",
        "1",
        "--no-dashboard",
        "--host",
        "127.0.0.1",
    ]
    commands += [[*dask, *worker, "--local-directory", str(folder)] for _ in range(n_workers)]
    with contextlib.ExitStack() as stack:
        for number, command in enumerate(commands):
            log = stack.enter_context((folder / f"dask-{number}.log").open("w"))
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, start_new_session=True)
            stack.callback(process.wait)
            stack.callback(process.terminate)
        from distributed import Client

        deadline = time.monotonic() + 90
        while True:
            try:
                with Client(address, timeout="5s", set_as_default=False) as client:
                    client.wait_for_workers(n_workers, timeout=60)
                break
            except OSError:
                assert time.monotonic() < deadline, (folder / "dask-0.log").read_text()
        yield address


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Laboratory]:
    from phantoms.cases import simulate_case

    folder = tmp_path_factory.mktemp("laboratory")
    case = simulate_case(
        folder / "inbox" / "G-1",
        case_id="G-1",
        seed=4,
        n_fields=2,
        width_px=640,
        height_px=512,
        n_leukocytes_per_field=4,
    )
    with pytest.MonkeyPatch.context() as patch, pg.running_postgres() as server:
        database = server.database("smearflow")
        patch.setenv("SMEARFLOW_DATABASE", database)
        patch.setenv("SMEARFLOW_PSEUDONYM_KEY", KEY)
        patch.setenv("SMEARFLOW_AUDIT_KEY", AUDIT_KEY)
        patch.setenv("SMEARFLOW_ACTOR", "night shift")
        patch.setenv("PREFECT_HOME", str(folder / "prefect"))
        patch.setenv("PREFECT_LOGGING_LEVEL", "INFO")
        patch.setenv("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "300")
        patch.setenv("OMP_NUM_THREADS", "1")
        with s3_server.running_s3(patch), dask_cluster(folder) as scheduler:
            found = Laboratory(folder, database)
            command = [sys.executable, "-m", "flows.cli", "run", str(case), "--store", STORE, "--json"]
            for _ in range(2):
                found.runs.append(
                    subprocess.run(
                        [*command, "--scheduler", scheduler],
                        capture_output=True,
                        text=True,
                        timeout=900,
                        check=False,
                        cwd=ROOT,
                        env=dict(os.environ),
                    )
                )
            yield found


KEY, AUDIT_KEY = "k3y-of-the-pseudonyms", "k3y-of-the-audit"


def test_a_case_runs_on_a_cluster_into_an_object_store_and_postgresql(laboratory: Laboratory) -> None:
    import pandas as pd

    assert [r.returncode for r in laboratory.runs] == [0, 0], laboratory.runs[0].stderr
    result, store = laboratory.results[0], Store(STORE)
    assert result["differential"]["n_detected"] > 0
    assert {f["status"] for f in result["fields"]} == {"used"}
    assert store.read_json("G-1/result.json") == result
    table = pd.read_parquet(io.BytesIO(store.read_bytes("G-1/cells.parquet")))
    assert len(table) == result["differential"]["n_detected"]
    assert store.read_text("G-1/report.html").startswith("<!doctype html>")
    with ResultsDatabase(laboratory.database) as database:
        rows = database.rows()
    assert [(r["case_id"], r["n_cells"]) for r in rows] == [
        (result["case"]["pseudo_id"], result["differential"]["n_detected"])
    ]
    assert not store.exists("G-1/.lock")


def test_the_workers_of_the_cluster_did_the_work(laboratory: Laboratory) -> None:
    ledger = Store(STORE).read_json("G-1/ledger.json")
    first, second = ledger["runs"]
    assert first["computed"]["detection"] == 4
    assert "Dask cluster with" not in laboratory.runs[0].stderr  # no local one was started
    assert second["computed"] == {}
    assert sum(second["reused"].values()) >= sum(first["computed"].values())
    assert laboratory.results[0] == laboratory.results[1]


def test_a_result_does_not_depend_on_where_it_was_computed(laboratory: Laboratory, tmp_path: Path) -> None:
    from flows.cluster import Workers
    from tests.test_case_flow import process

    with pytest.MonkeyPatch.context() as patch, Workers(n_workers=1) as workers:
        patch.delenv("SMEARFLOW_DATABASE")
        outcome = process(laboratory.folder / "inbox" / "G-1", tmp_path / "store", workers)
    here = json.loads((tmp_path / "store" / "G-1" / "result.json").read_text())
    there = json.loads(json.dumps(laboratory.results[0]))
    for result in (here, there):
        del result["created"], result["software"]["commit"]  # a clone may move on meanwhile
    assert here == there
    assert outcome.computed["detection"] == 4


def test_what_may_leave_names_neither_the_case_nor_a_folder(laboratory: Laboratory) -> None:
    store = Store(STORE)
    assert laboratory.results[0]["case"]["pseudo_id"].startswith("P-")
    names = ("result.json", "report.html", "cells.parquet")
    for name in names:
        data = store.read_bytes(f"G-1/{name}")
        for told in (str(laboratory.folder), str(ROOT), "G-1", ".tif:", "_BF.tif", "_DIC.tif"):
            assert told.encode() not in data, f"{told} stands in {name}"


def test_the_audit_log_of_an_object_store_holds_and_names_who_ran(laboratory: Laboratory) -> None:
    from flows.auditing import audit_cases

    (found,) = audit_cases(STORE, verify=True)
    assert found["wrong"] == []
    (run,) = found["entries"]  # the second run computed nothing, and changed nothing
    assert (run["action"], run["actor"], run["keyed"]) == ("run", "night shift", True)
    assert run["changes"][0]["target"] == "result.json"


def test_no_password_or_key_appears_in_any_output_log_or_report(laboratory: Laboratory) -> None:
    secrets = [pg.PASSWORD, s3_server.SECRET, KEY, AUDIT_KEY]
    store = Store(STORE)
    places: dict[str, bytes] = {}
    for number, run in enumerate(laboratory.runs):
        places[f"run {number}"] = (run.stdout + run.stderr).encode()
    for path in laboratory.folder.rglob("*"):
        if path.is_file():
            places[str(path.relative_to(laboratory.folder))] = path.read_bytes()
    for name in store._fs.find(store._root):
        places[name] = store._fs.cat_file(name)
    with ResultsDatabase(laboratory.database) as database:
        places["database"] = repr((database.rows(), database.url, database)).encode()
    assert len([p for p in places if p.endswith(".json")]) > 5
    assert any("prefect.db" in p for p in places)
    for place, data in places.items():
        for secret in secrets:
            assert secret.encode() not in data, f"{secret} stands in {place}"
