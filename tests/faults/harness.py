"""The laboratory of the fault suite: a real Prefect server, Dask scheduler, workers and store, to be killed.

Every part is a process of its own.  Nights run against them as `smearflow nightly --scheduler` does, each
in a process that can be killed alone (`tests.faults.zygote`).
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.faults import models
from tests.faults.traps import Trap, set_trap

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
START_LIMIT_S = 600.0  # on a machine that is busy with other things


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def until(
    condition: Callable[[], Any], what: str, limit_s: float = START_LIMIT_S, step_s: float = 0.05
) -> Any:
    """The first true value of a condition; an AssertionError that says what did not happen."""
    deadline = time.monotonic() + limit_s
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {limit_s:.0f} s: {what}"
        time.sleep(step_s)


def make_inbox(folder: Path, cases: int = 1, seed: int = 3) -> Path:
    """An inbox of tiny phantom cases that pass through every stage.

    Two fields of 480 x 360 px: one DIC and brightfield, one DIC alone, which is stained virtually.
    """
    from phantoms.cases import simulate_case

    for number in range(1, cases + 1):
        name = f"C-{number}"
        case = simulate_case(
            folder / name,
            case_id=name,
            seed=seed + number,
            n_fields=2,
            width_px=480,
            height_px=360,
            n_leukocytes_per_field=3,
        )
        rows = (case / "manifest.csv").read_text().splitlines()
        (case / "manifest.csv").write_text("\n".join(r for r in rows if "F002_BF" not in r) + "\n")
    return folder


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def kill_tree(pid: int) -> None:
    """`kill -9` of a process and everything under it, at once."""
    try:
        parent = psutil.Process(pid)
        tree = [*parent.children(recursive=True), parent]
    except psutil.NoSuchProcess:
        return
    for process in tree:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(tree, timeout=20)


class Night:
    """A night (or one case) under way in a process of its own."""

    def __init__(self, pid: int, outcome: Path, log: Path) -> None:
        self.pid, self._outcome, self.log = pid, outcome, log
        try:
            self._fd: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            self._fd = None

    def ended(self, timeout_s: float = 0.0) -> bool:
        if self._fd is None:
            return True
        waiting = select.poll()
        waiting.register(self._fd, select.POLLIN)
        if not waiting.poll(timeout_s * 1000):
            return False
        os.close(self._fd)
        self._fd = None
        return True

    def kill(self) -> None:
        """`kill -9`, and its end."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        assert self.ended(20)

    def outcome(self, timeout_s: float = 120.0) -> dict[str, Any] | None:
        """{"ok": summary} or {"error", "message"} when it has ended; None where it was killed."""
        if not self.ended(timeout_s):
            tail = self.log.read_text()[-3000:]
            self.kill()
            raise AssertionError(f"the night did not end within {timeout_s:.0f} s\n{tail}")
        if not self._outcome.exists():
            return None
        found: dict[str, Any] = json.loads(self._outcome.read_text())
        return found

    def summary(self, timeout_s: float = 120.0) -> dict[str, Any]:
        """The summary of a night that ended by itself."""
        outcome = self.outcome(timeout_s)
        assert outcome is not None, "the night was killed"
        assert "ok" in outcome, (outcome, self.log.read_text()[-3000:])
        found: dict[str, Any] = outcome["ok"]
        return found


class Lab:
    """The processes of a laboratory; start what is needed, kill what is to be killed."""

    def __init__(self, home: Path, n_workers: int = 2) -> None:
        self.home, self.n_workers = home, n_workers
        self.traps = home / "traps"
        for folder in (home, self.traps, home / "nights", home / "dask"):
            folder.mkdir(parents=True, exist_ok=True)
        self.server_port, self.scheduler_port = free_port(), free_port()
        self.api = f"http://127.0.0.1:{self.server_port}/api"
        self.scheduler = f"tcp://127.0.0.1:{self.scheduler_port}"
        self.cut_root = home / "line"
        self.cut_root.mkdir(exist_ok=True)
        self.environment = {
            **os.environ,
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_API_URL": self.api,
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_LOGGING_TO_API_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "SMEARFLOW_TRAPS": str(self.traps),
            "SMEARFLOW_CUT_ROOT": str(self.cut_root),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "DASK_DISTRIBUTED__WORKER__DAEMON": "true",
            "DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED": "false",
            "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "5s",
        }
        self.environment.pop("SMEARFLOW_DATABASE", None)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._zygote: subprocess.Popen[str] | None = None
        self._nights = 0

    def _spawn(self, name: str, *command: str) -> None:
        log = (self.home / f"{name}.log").open("ab")
        self.running[name] = subprocess.Popen(
            command, env=self.environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL, cwd=self.home
        )

    def tail(self, name: str) -> str:
        return (self.home / f"{name}.log").read_text(errors="replace")[-3000:]

    # Server, scheduler, workers

    def start_server(self, *, wait: bool = True) -> None:
        self._spawn(
            "server",
            str(BIN / "prefect"),
            "server",
            "start",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.server_port),
        )
        if wait:
            self.wait_for_server()

    def wait_for_server(self) -> None:
        until(lambda: answers(f"{self.api}/health"), "the Prefect server answers", step_s=0.2)

    def start_scheduler(self) -> None:
        self._spawn(
            "scheduler",
            str(BIN / "dask"),
            "scheduler",
            "--host",
            "127.0.0.1",
            "--port",
            str(self.scheduler_port),
            "--no-dashboard",
        )

    def start_workers(self) -> None:
        self._spawn(
            "workers",
            str(BIN / "dask"),
            "worker",
            self.scheduler,
            "--host",
            "127.0.0.1",
            "--nworkers",
            str(self.n_workers),
            "--nthreads",
            "1",
            "--no-dashboard",
            "--preload",
            "tests.faults.worker",
            "--local-directory",
            str(self.home / "dask"),
        )

    def wait_for_workers(self) -> None:
        from distributed import Client

        def count() -> int:
            try:
                with Client(self.scheduler, timeout="2s", set_as_default=False) as client:
                    return len(client.scheduler_info(n_workers=-1)["workers"])
            except (OSError, TimeoutError):
                return 0

        until(lambda: count() >= self.n_workers, "the workers join", step_s=0.3)

    def kill(self, name: str) -> None:
        """`kill -9` of the server, the scheduler or the workers, with everything under it."""
        process = self.running.pop(name)
        kill_tree(process.pid)
        process.wait()

    def worker_pids(self) -> list[int]:
        """The processes that compute, not those that watch over them."""
        nannies = psutil.Process(self.running["workers"].pid)
        return [
            p.pid
            for p in nannies.children(recursive=True)
            if not p.children() and "resource_tracker" not in " ".join(p.cmdline())
        ]

    def start(self) -> None:
        self.start_server(wait=False)
        self.start_scheduler()
        self.start_workers()
        self._start_zygote()
        self.wait_for_server()
        self.wait_for_workers()
        assert self._zygote is not None
        assert self._zygote.stdout is not None
        assert self._zygote.stdout.readline().strip() == "ready", self.tail("zygote")

    def mend(self) -> None:
        """Start again what is dead, and clear what the last fault left set."""
        self.clear_traps()
        (self.cut_root / "CUT").unlink(missing_ok=True)
        for name in list(self.running):
            if self.running[name].poll() is not None:
                self.kill(name)
        if "server" not in self.running:
            self.start_server()
        if "scheduler" not in self.running:
            if "workers" in self.running:
                self.kill("workers")
            self.start_scheduler()
        if "workers" not in self.running:
            self.start_workers()
            self.wait_for_workers()

    def stop(self) -> None:
        if self._zygote is not None:
            kill_tree(self._zygote.pid)
            self._zygote.wait()
        for name in list(self.running):
            self.kill(name)

    # Nights

    def _start_zygote(self) -> None:
        log = (self.home / "zygote.log").open("ab")
        self._zygote = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.zygote"],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=ROOT,
            text=True,
        )

    def night(self, inbox: Path, store: Path | str, **how: Any) -> Night:
        """Start a night; `how` may name a `case`, more `settings`, an `env`, a `clock_offset_s`."""
        self._nights += 1
        outcome = self.home / "nights" / f"{self._nights:05d}.json"
        log = outcome.with_suffix(".log")
        settings = {**models.SETTINGS, **how.pop("settings", {})}
        order = {
            "inbox": str(inbox),
            "store": str(store),
            "settings": settings,
            "scheduler": self.scheduler,
            "outcome": str(outcome),
            "log": str(log),
            **how,
        }
        assert self._zygote is not None
        assert self._zygote.stdin is not None
        assert self._zygote.stdout is not None
        self._zygote.stdin.write(json.dumps(order) + "\n")
        self._zygote.stdin.flush()
        return Night(int(self._zygote.stdout.readline()), outcome, log)

    def clear_traps(self) -> None:
        for trap in self.traps.iterdir():
            trap.unlink(missing_ok=True)

    def trap(self, at: str, do: str) -> Trap:
        return set_trap(self.traps, at, do)


def ledger(store: Path, case_id: str = "C-1") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((store / case_id / "ledger.json").read_text())
    return found


@contextmanager
def small_disk(folder: Path, megabytes: float) -> Iterator[Path]:
    """A real small file system at a folder; raises PermissionError where nobody may mount one."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={int(megabytes * 1024)}k", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PermissionError(done.stderr.strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def copy_store(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target
