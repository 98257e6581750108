"""Hundreds of random faults against the real thing: how many cases are lost, doubled or wrong afterwards.

    python -m benchmarks.soak --kills 200 --out soak

A real Prefect server, Dask scheduler, workers and store (tests/faults/harness.py), a tiny phantom case
that passes through every stage, and weight-free stand-ins for the models: what a fault does does not depend
on them.  A round makes a fresh store, lets one kind of fault strike up to ten times at random moments of
as many nights, then lets a night run undisturbed and compares what stands there with the store of a night
to which nothing happened, byte for byte, times aside.

Every round is a line of `<out>/rounds.jsonl`, so that a soak that is stopped goes on where it was.  The next
round is of the kind that has struck least for its share; what it does is the same for the same seed, but for
what the clock of the machine makes of "a random moment".
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from tests.faults.compare import differences
from tests.faults.harness import Lab, Night, kill_tree, make_inbox

CASE = "C-1"
STAGES = ("intake", "registration", "detection", "cells", "patches", "staining", "classification", "report")
STRIKES = 10  # at most, in one round
Strike = Callable[["Soak", random.Random, Path], bool]


class Soak:
    """The laboratory, its undisturbed store, and how long a night takes here."""

    def __init__(self, out: Path, seed: int) -> None:
        self.out, self.seed = out, seed
        self.rounds = out / "rounds.jsonl"
        self.lab = Lab(out / f"lab-{os.getpid()}")
        self.night_s = 0.0

    def __enter__(self) -> Soak:
        try:
            self._begin()
        except BaseException:
            self.lab.stop()
            raise
        return self

    def _begin(self) -> None:
        self.lab.start()
        self.inbox = make_inbox(self.lab.home / "inbox", cases=1)
        self.undisturbed = self.lab.home / "undisturbed"
        self.finish(self.undisturbed)
        self.finish(self.lab.home / "second")  # the first paid for what is loaded once
        assert differences(self.lab.home / "second", self.undisturbed, CASE) == []

    def __exit__(self, *_: object) -> None:
        self.lab.stop()
        shutil.rmtree(self.lab.home, ignore_errors=True)

    def night(self, store: Path, **how: Any) -> Night:
        return self.lab.night(self.inbox, store, **how)

    def finish(self, store: Path) -> dict[str, Any]:
        """A night to its end; a machine as busy as this one gets its time."""
        started = time.monotonic()
        summary = self.night(store).summary(600)
        self.night_s = max(1.0, 0.5 * self.night_s + 0.5 * (time.monotonic() - started))
        return summary

    def moment(self, chance: random.Random) -> float:
        return chance.uniform(0.0, 0.9 * self.night_s)


def kill_night(soak: Soak, chance: random.Random, store: Path) -> bool:
    night = soak.night(store)
    if night.ended(soak.moment(chance)):
        return False
    night.kill()
    return True


def kill_tree_of_night(soak: Soak, chance: random.Random, store: Path) -> bool:
    """A night with a cluster of its own dies with all its workers at once."""
    night = soak.night(store, scheduler=None, workers=1, preload="tests.faults.worker")
    # Its cluster has to start first, which takes a few seconds of its own.
    if night.ended(soak.moment(chance) + chance.uniform(0, 8)):
        return False
    kill_tree(night.pid)
    return night.ended(20)


def kill_workers(soak: Soak, chance: random.Random, store: Path) -> bool:
    """One worker dies in the middle of a night, which goes on."""
    night = soak.night(store)
    if night.ended(soak.moment(chance)):
        return False
    victims = soak.lab.worker_pids()
    if not victims:
        night.summary(600)
        return False
    psutil.Process(chance.choice(victims)).kill()
    night.summary(600)
    return True


def kill_scheduler(soak: Soak, chance: random.Random, store: Path) -> bool:
    night = soak.night(store)
    if night.ended(soak.moment(chance)):
        return False
    soak.lab.kill("scheduler")
    night.outcome(600)
    soak.lab.mend()
    return True


def kill_server(soak: Soak, chance: random.Random, store: Path) -> bool:
    night = soak.night(store)
    if night.ended(soak.moment(chance)):
        return False
    soak.lab.kill("server")
    soak.lab.start_server()
    night.outcome(600)
    return True


def at_a_write(do: str) -> Strike:
    """Something happens to whoever writes the n-th document, before or after the write."""

    def strike(soak: Soak, chance: random.Random, store: Path) -> bool:
        stage = chance.choice(STAGES)
        place = f"write:{CASE}/(work/{stage}/|progress/|ledger|result|report|cells.parquet).*"
        trap = soak.lab.trap(f"{place}:{chance.choice(['before', 'after'])}", do)
        trap.skip(chance.randrange(8))
        night = soak.night(store)
        night.outcome(600)
        sprung = trap.sprung
        soak.lab.clear_traps()
        return sprung

    return strike


def worker_in_a_call(soak: Soak, chance: random.Random, store: Path) -> bool:
    """A worker dies at the start or the end of one of its functions."""
    name = chance.choice(["inspect", "align_field", "find_cells", "cut_unit", "stain_unit", "classify_unit"])
    trap = soak.lab.trap(f"^call:{name}:{chance.choice(['before', 'after'])}", "kill")
    soak.night(store).summary(600)
    sprung = trap.sprung
    soak.lab.clear_traps()
    return sprung


def two_nights(soak: Soak, chance: random.Random, store: Path) -> bool:
    """Two nights begin at once on one inbox, and one of them dies."""
    nights = [soak.night(store), soak.night(store)]
    victim = chance.choice(nights)
    died = not victim.ended(soak.moment(chance))
    if died:
        victim.kill()
    for night in nights:
        night.outcome(600)
    return died


def damage(soak: Soak, chance: random.Random, store: Path) -> bool:
    """A finished case is damaged: a shard torn, a marker or record lost or torn, the database gone."""
    if not (store / CASE / "result.json").exists():
        soak.finish(store)
    files = sorted(
        p
        for p in (store / CASE).rglob("*")
        if p.is_file() and p.name not in (".lock", "ledger.json") and "audit" not in p.parts
    )
    for path in chance.sample(files, min(3, len(files))):
        if chance.random() < 0.5:
            path.unlink()
        else:
            os.truncate(path, path.stat().st_size // 2)
    if chance.random() < 0.2:
        for path in store.glob("results.db*"):
            path.unlink()
    return True


def lock_database(soak: Soak, chance: random.Random, store: Path) -> bool:
    """Another program holds the results database while the report is written."""
    trap = soak.lab.trap("^record:before", "pause")
    night = soak.night(store)
    while not trap.sprung:
        if night.ended(0.1):
            soak.lab.clear_traps()
            return False
    other = sqlite3.connect(store / "results.db", isolation_level=None)
    other.execute("begin exclusive")
    trap.release()
    night.ended(chance.uniform(0.2, 2.0))
    if chance.random() < 0.5:
        night.kill()
    other.execute("rollback")
    other.close()
    night.outcome(600)
    soak.lab.clear_traps()
    return True


def set_clock_back(soak: Soak, chance: random.Random, store: Path) -> bool:
    """The clock goes back by days between two nights, the first of which dies."""
    night = soak.night(store, clock_offset_s=-86400 * chance.randrange(1, 400))
    if night.ended(soak.moment(chance)):
        return False
    night.kill()
    return True


# kind: (what strikes, its share of the faults)
FAULTS: dict[str, tuple[Strike, float]] = {
    "night killed at a random moment": (kill_night, 2.0),
    "night or worker killed at a random write": (at_a_write("kill"), 2.0),
    "night with its whole cluster killed": (kill_tree_of_night, 0.4),
    "worker killed at a random moment": (kill_workers, 1.0),
    "worker killed in a call": (worker_in_a_call, 1.0),
    "scheduler killed": (kill_scheduler, 0.5),
    "Prefect server killed and restarted": (kill_server, 0.4),
    "two nights at once, one killed": (two_nights, 1.0),
    "clock set back, night killed": (set_clock_back, 0.6),
    "disk full at a random write": (at_a_write("full"), 0.7),
    "store's connection cut at a random write": (at_a_write("cut"), 0.7),
    "database locked, night killed or not": (lock_database, 0.5),
    "files torn or lost": (damage, 0.7),
}


def judged(found: list[str]) -> dict[str, int]:
    """How a store differs from the undisturbed one: lost, doubled, wrong."""
    return {
        "lost": sum(d.endswith(": missing") for d in found),
        "doubled": sum(d.endswith(": too much") for d in found),
        "wrong": sum(d.endswith(": different") for d in found),
    }


def next_kind(rounds: list[dict[str, Any]]) -> str:
    """The kind that has struck least for its share; a round that struck nothing counts as a try."""
    tried = {kind: sum(max(1, r["struck"]) for r in rounds if r["fault"] == kind) for kind in FAULTS}
    return min(FAULTS, key=lambda kind: tried[kind] / FAULTS[kind][1])


def one_round(soak: Soak, number: int, kind: str) -> dict[str, Any]:
    chance = random.Random(f"{soak.seed}-{number}")
    strike, _ = FAULTS[kind]
    store = soak.lab.home / "store"
    shutil.rmtree(store, ignore_errors=True)
    struck = 0
    for _ in range(chance.randint(4, STRIKES)):
        soak.lab.mend()
        if not strike(soak, chance, store):
            break  # the night was done before: what follows would strike at nothing
        struck += 1
    soak.lab.mend()
    summary = soak.finish(store)
    found = differences(store, soak.undisturbed, CASE)
    if summary["counts"]["processed"] != 1:
        found.append(f"{CASE}/result.json: missing")
    kept = None
    if found:
        kept = soak.out / f"failed-{number}"
        shutil.copytree(store, kept, dirs_exist_ok=True)
    return {
        "round": number,
        "fault": kind,
        "struck": struck,
        **judged(found),
        "differences": found,
        "kept": str(kept) if kept else None,
    }


def done_rounds(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue  # the line that was being written when the soak was stopped
    return found


def table(rounds: list[dict[str, Any]]) -> str:
    """What was tried and what came of it, in Markdown."""
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, {len(rounds)} rounds.",
        "",
        "| fault | times tried | lost | doubled | wrong |",
        "|---|---|---|---|---|",
    ]
    total = [0, 0, 0, 0]
    for kind in FAULTS:
        mine = [r for r in rounds if r["fault"] == kind]
        row = [sum(r[k] for r in mine) for k in ("struck", "lost", "doubled", "wrong")]
        total = [a + b for a, b in zip(total, row, strict=True)]
        lines.append(f"| {kind} | " + " | ".join(map(str, row)) + " |")
    lines.append("| **all** | " + " | ".join(f"**{n}**" for n in total) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="faults to strike in all")
    parser.add_argument("--seed", type=int, default=20261121)
    parser.add_argument("--out", type=Path, default=Path("soak"))
    parser.add_argument("--table", action="store_true", help="print the table of what was done, and end")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    # Stopped from outside, it stops what it started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    rounds = done_rounds(given.out / "rounds.jsonl")
    if not given.table and sum(r["struck"] for r in rounds) < given.kills:
        with Soak(given.out.resolve(), given.seed) as soak:
            while sum(r["struck"] for r in rounds) < given.kills:
                number = 1 + max((r["round"] for r in rounds), default=0)
                rounds.append(one_round(soak, number, next_kind(rounds)))
                with soak.rounds.open("a") as stream:
                    stream.write(json.dumps(rounds[-1]) + "\n")
                last = rounds[-1]
                print(
                    f"round {number}: {last['fault']}, {last['struck']} times"
                    + (f", {last['differences'][:3]}" if last["differences"] else ", as if undisturbed"),
                    flush=True,
                )
    print(table(rounds))
    if any(r[k] for r in rounds for k in ("lost", "doubled", "wrong")):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
