"""Traps: a process of the real thing dies, waits or fails at a named point, once.

A trap is a file in the folder SMEARFLOW_TRAPS.  The processes of the fault suite (never those of a
laboratory: nothing outside tests/ knows of this) ask at each point whether one is set there; who finds one
takes it by renaming it, so that it springs once however many processes pass.

Points: `call:<function>:before|after` of the functions that workers run, `write:<key>:before|after` of every
document of the store, `record:before|after` of the results database.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

FOLDER = "SMEARFLOW_TRAPS"
WORK = ("inspect", "align_field", "find_cells", "cut_unit", "stain_unit", "classify_unit")
PAUSE_LIMIT_S = 60.0


def pass_by(point: str) -> None:
    """Spring the first trap that is set at this point, if any."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return
    for trap in sorted(Path(folder).glob("*.trap")):
        try:
            spec = json.loads(trap.read_text())
        except (OSError, ValueError):
            continue
        if not re.search(spec["at"], point):
            continue
        counter = trap.with_suffix(".skip")
        if counter.exists():
            # Not exact where two processes pass at once; a random moment need not be.
            left = int(counter.read_text() or 0)
            counter.write_text(str(left - 1))
            if left > 0:
                continue
        sprung = trap.with_suffix(".sprung")
        try:
            trap.rename(sprung)
        except FileNotFoundError:
            continue
        (trap.with_suffix(".pid")).write_text(str(os.getpid()))
        _act(spec, sprung)
        return


def _act(spec: dict[str, Any], sprung: Path) -> None:
    if spec["do"] == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    elif spec["do"] == "pause":
        release, deadline = sprung.with_suffix(".release"), time.monotonic() + PAUSE_LIMIT_S
        while not release.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
    elif spec["do"] == "full":
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    elif spec["do"] == "cut":
        raise ConnectionResetError("the connection to the store was cut")


class Trap:
    """A trap that was set; the harness's side of it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def sprung(self) -> bool:
        return self.path.with_suffix(".sprung").exists()

    def wait(self, timeout_s: float = 60.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.sprung:
            assert time.monotonic() < deadline, f"{self.path.name} did not spring"
            time.sleep(0.02)

    def skip(self, times: int) -> None:
        """Let so many pass before it springs."""
        if times:
            self.path.with_suffix(".skip").write_text(str(times))

    def release(self) -> None:
        self.path.with_suffix(".release").touch()


def set_trap(folder: Path, at: str, do: str) -> Trap:
    """Set a trap at the points that match the expression `at`: kill, pause, full (disk) or cut (store)."""
    number = len(list(folder.iterdir()))
    path = folder / f"{number:03d}.trap"
    draft = folder / f"{number:03d}.draft"
    draft.write_text(json.dumps({"at": at, "do": do}))
    draft.rename(path)
    return Trap(path)


def _around(function: Callable[..., Any], point: Callable[..., str]) -> Callable[..., Any]:
    @functools.wraps(function)
    def passing(*args: Any, **kwargs: Any) -> Any:
        name = point(*args, **kwargs)
        pass_by(f"{name}:before")
        result = function(*args, **kwargs)
        pass_by(f"{name}:after")
        return result

    return passing


def install() -> None:
    """Make this process pass by the traps; once."""
    from flows import cell_work, work
    from storage.results_db import ResultsDatabase
    from storage.store import Store

    if hasattr(Store.write_bytes, "__wrapped__"):
        return
    for name in WORK:
        room = work if hasattr(work, name) else cell_work
        setattr(room, name, _around(getattr(room, name), lambda *a, name=name, **k: f"call:{name}"))
    Store.write_bytes = _around(Store.write_bytes, lambda self, key, data: f"write:{key}")  # type: ignore[method-assign]
    ResultsDatabase.record = _around(ResultsDatabase.record, lambda *a, **k: "record")  # type: ignore[method-assign]
