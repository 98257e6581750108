"""SIGTERM of a service manager, a machine shutting down or a person: the night ends in order, and says so."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from tests.faults import models
from tests.faults.harness import ROOT, START_LIMIT_S, kill_tree, ledger, make_inbox
from tests.faults.traps import set_trap

pytestmark = pytest.mark.server

# `smearflow nightly` with the stand-in models, in its own process and in its workers.
COMMAND = """
import sys
import dask
from tests.faults import models
models.register_all()
dask.config.set({"distributed.worker.preload": ["tests.faults.worker"]})
from flows.cli import main
main(sys.argv[1:])
"""
PATIENCE_S = 60.0


class Nightly:
    """`smearflow nightly` on this machine alone, without a Prefect server, held in its first field."""

    def __init__(self, folder: Path, inbox: Path, store: Path) -> None:
        self.store, self.traps, self.scratch = store, folder / "traps", folder / "scratch"
        for made in (self.traps, self.scratch, folder / "home"):
            made.mkdir(parents=True)
        config = folder / "settings.yaml"
        config.write_text(yaml.safe_dump(models.SETTINGS))
        self.trap = set_trap(self.traps, "^call:find_cells:before", "pause")
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "SMEARFLOW_"))
        } | {
            "SMEARFLOW_TRAPS": str(self.traps),
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(self.scratch),
            "HOME": str(folder / "home"),
            "OMP_NUM_THREADS": "1",
        }
        line = ["nightly", str(inbox), "--store", str(store), "--workers", "1", "--config", str(config)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, *line],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            self.trap.wait(START_LIMIT_S)
        except AssertionError:
            self.kill()
            raise
        self.tree = psutil.Process(self.process.pid).children(recursive=True)

    def ended(self) -> tuple[int, str]:
        """Exit status and what was said; an error where it does not end in reasonable time."""
        try:
            said, _ = self.process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return self.process.returncode, said

    def kill(self) -> None:
        kill_tree(self.process.pid)
        self.process.communicate()

    def left_running(self) -> list[psutil.Process]:
        _, alive = psutil.wait_procs(self.tree, timeout=10)
        return alive


@pytest.mark.parametrize("to_group", [False, True], ids=["the process alone", "its group"])
def test_a_night_that_is_terminated_ends_in_order_and_says_so(tmp_path: Path, to_group: bool) -> None:
    inbox, store = make_inbox(tmp_path / "inbox", cases=2), tmp_path / "store"
    night = Nightly(tmp_path / "work", inbox, store)
    assert any("uvicorn" in " ".join(p.cmdline()) for p in night.tree), "no server was started"
    (os.killpg if to_group else os.kill)(night.process.pid, signal.SIGTERM)
    status, said = night.ended()
    assert status == 143, said
    assert night.left_running() == []
    assert "stopped by a signal (SIGTERM)" in said
    assert "defect" not in said
    assert "Traceback" not in said
    assert len(said.splitlines()) < 20, said
    error = ledger(store)["runs"][-1]["error"]
    assert "stopped by a signal" in error["message"]
    summary = json.loads((store / "nights" / "latest.json").read_text())
    assert summary["status"] == "stopped"
    assert "stopped by a signal" in summary["message"]
    assert [row["status"] for row in summary["cases"]] == ["held back", "held back"]
    # Prefect's records name the cases; they go with the run.
    left = [p.name for p in (*night.scratch.rglob("*"), *(tmp_path / "work" / "home").rglob("*"))]
    assert not [name for name in left if "prefect.db" in name or "smearflow-prefect" in name]
