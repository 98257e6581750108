"""The deployments, on a real Prefect server with a real worker."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.harness import kill_tree, until

ROOT = Path(__file__).resolve().parent.parent
PREFECT = str(Path(sys.executable).parent / "prefect")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def start_worker(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    home = Path(environment["PREFECT_HOME"])
    with (home / "log.txt").open("a") as log:
        return subprocess.Popen(
            [PREFECT, "worker", "start", "--pool", "smearflow", "--type", "process"],
            env=environment,
            stdout=log,
            stderr=log,
            cwd=home,
        )


@pytest.fixture(scope="module")
def running() -> Iterator[list[subprocess.Popen[bytes]]]:
    """The server and the worker, in this order; a test may kill a worker and start another."""
    processes: list[subprocess.Popen[bytes]] = []
    yield processes
    for process in reversed(processes):
        process.terminate()
    for process in processes:
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, running: list[subprocess.Popen[bytes]]
) -> dict[str, str]:
    """A server and a worker of a process pool, in a Prefect home of their own."""
    home = tmp_path_factory.mktemp("prefect")
    port = free_port()
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "SMEARFLOW_STORE": str(home / "store"),
        "SMEARFLOW_INBOX": str(home / "inbox"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with (home / "log.txt").open("a") as log:
        running.append(
            subprocess.Popen(
                [PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)],
                env=environment,
                stdout=log,
                stderr=log,
                cwd=home,
            )
        )
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{environment['PREFECT_API_URL']}/health", timeout=2).read()
            break
        except OSError:
            assert time.monotonic() < deadline, (home / "log.txt").read_text()[-2000:]
            time.sleep(0.5)
    running.append(start_worker(environment))
    return environment


def prefect(environment: dict[str, str], *args: str) -> str:
    done = subprocess.run(
        [PREFECT, "--no-prompt", *args],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.server
def test_a_deployed_case_flow_processes_a_new_case_and_links_its_report(
    server: dict[str, str], tmp_path: Path
) -> None:
    from phantoms.cases import simulate_case

    case = simulate_case(
        tmp_path / "NEW-1",
        case_id="NEW-1",
        seed=2,
        n_fields=1,
        width_px=512,
        height_px=400,
        n_leukocytes_per_field=4,
    )
    deadline = time.monotonic() + 60
    while "smearflow" not in prefect(server, "work-pool", "ls"):  # the worker makes the pool
        assert time.monotonic() < deadline
        time.sleep(1)
    prefect(server, "deploy", "--all")
    prefect(server, "deployment", "run", "case/case", "--param", f"case_dir={case}", "--watch")
    store = Path(server["SMEARFLOW_STORE"])
    result = json.loads((store / "NEW-1" / "result.json").read_text())
    assert result["differential"]["n_detected"] > 0
    request = urllib.request.Request(
        f"{server['PREFECT_API_URL']}/artifacts/filter",
        data=b"{}",
        headers={"content-type": "application/json"},
    )
    artifacts = json.loads(urllib.request.urlopen(request, timeout=10).read())
    assert any(a["key"] == "report-new-1" and "report.html" in a["data"] for a in artifacts)


@pytest.mark.server
def test_the_nights_of_the_deployment_page_start_as_they_are_written_there(tmp_path: Path) -> None:
    """Its own block, in a shell that knows nothing of Prefect; another port and other folders."""
    page = (ROOT / "docs" / "deploy.md").read_text().split("## 2 ")[1]
    lines = page.split("```")[1].strip().splitlines()
    assert lines.pop(0) == "make setup"  # this environment is the one that it makes
    port, home, bin_folder = free_port(), tmp_path / "home", Path(sys.executable).parent
    home.mkdir()
    block = "\n".join(lines).replace("4200", str(port)).replace("/data", str(tmp_path))
    block = block.replace("$PWD/.venv/bin", str(bin_folder))
    known = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "SMEARFLOW_"))}
    elsewhere = os.pathsep.join(p for p in known["PATH"].split(os.pathsep) if Path(p) != bin_folder)
    with (tmp_path / "log.txt").open("w") as log:
        shell = subprocess.Popen(
            ["bash", "-c", f"set -e\n{block}"],
            env={
                **known,
                "PATH": elsewhere,
                "PREFECT_HOME": str(home),
                "PREFECT_SERVER_API_PORT": str(port),  # the page leaves the server its own
            },
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    api = f"http://127.0.0.1:{port}/api"

    def workers() -> list[Any]:
        assert shell.poll() is None, (tmp_path / "log.txt").read_text()[-3000:]
        request = urllib.request.Request(
            f"{api}/work_pools/smearflow/workers/filter",
            data=b"{}",
            headers={"content-type": "application/json"},
        )
        try:
            found: list[Any] = json.loads(urllib.request.urlopen(request, timeout=10).read())
        except OSError:
            return []
        return found

    try:
        until(workers, "the worker of the page's last line polls its pool", step_s=1.0)
        environment = {**known, "PREFECT_HOME": str(home), "PREFECT_API_URL": api}
        listed = prefect(environment, "deployment", "ls")
        assert all(name in listed for name in ("nightly/nightly", "case/case", "report/report"))
    finally:
        kill_tree(shell.pid)
        shell.wait()


@pytest.mark.server
def test_a_night_goes_on_past_a_case_that_fails(server: dict[str, str], tmp_path: Path) -> None:
    from phantoms.cases import simulate_case

    inbox = Path(server["SMEARFLOW_INBOX"])
    simulate_case(
        inbox / "N-2",
        case_id="N-2",
        seed=4,
        n_fields=1,
        width_px=512,
        height_px=400,
        modalities=("brightfield",),
        n_leukocytes_per_field=4,
    )
    (inbox / "N-1").mkdir()
    (inbox / "N-1" / "manifest.csv").write_text("nonsense\n1\n")
    # The canary has tests of its own (tests/faults/test_night.py).
    without = json.dumps({"settings": {"night": {"canary": False}}})
    output = prefect(server, "deployment", "run", "nightly/nightly", "--watch", "--params", without)
    assert "Completed" in output
    store = Path(server["SMEARFLOW_STORE"])
    counts = json.loads((store / "nights" / "latest.json").read_text())["counts"]
    assert (counts["cases"], counts["processed"], counts["failed"]) == (2, 1, 1)
    assert (store / "N-2" / "result.json").is_file()
    assert not (store / "N-1" / "result.json").exists()
    shutil.rmtree(inbox)


@pytest.mark.server
def test_a_prefect_worker_killed_in_a_night_keeps_the_next_from_nothing(
    server: dict[str, str], running: list[subprocess.Popen[bytes]]
) -> None:
    """`kill -9` of the worker and the flow that it started; Prefect goes on believing that the night runs."""
    from phantoms.cases import simulate_case

    inbox, store = Path(server["SMEARFLOW_INBOX"]), Path(server["SMEARFLOW_STORE"])
    simulate_case(
        inbox / "K-1",
        case_id="K-1",
        seed=5,
        n_fields=1,
        width_px=512,
        height_px=400,
        modalities=("brightfield",),
        n_leukocytes_per_field=4,
    )
    without = json.dumps({"settings": {"night": {"canary": False}}})
    prefect(server, "deployment", "run", "nightly/nightly", "--params", without)
    until(lambda: (store / "K-1" / "ledger.json").exists(), "the night has begun the case")
    kill_tree(running.pop().pid)
    assert not (store / "K-1" / "result.json").exists(), "the night was done before it was killed"
    running.append(start_worker(server))
    prefect(server, "deployment", "run", "nightly/nightly", "--watch", "--params", without)
    assert (store / "K-1" / "report.html").is_file()
    died, finished = json.loads((store / "K-1" / "ledger.json").read_text())["runs"]
    assert died["interrupted"]
    assert "error" not in finished
    shutil.rmtree(inbox)
