"""What a night costs beside its cases: memory, time and processor time as the number of fields grows.

    python -m benchmarks.night [--fields 60] [--width 1032] [--out DIR]

Fields are phantoms; the models are the weight-free stand-ins of the fault suite, so that what is measured
is not hidden behind networks: with real models every share of orchestration is smaller.  Measured are
- peak memory (resident set) of the flow's process and of the largest worker, for a night of a tenth of the
  fields and of all, on one worker;
- fields a minute on 1 and on 2 workers, from the first stage to the report;
- orchestration: what each further field costs in a night (flow, Prefect's server, Dask's scheduler and
  worker) beyond what it costs where the same stages are called one after another in one process; what is
  started and loaded once a night is shown by itself.
Processor time, since the machine may have other work; wall time stands beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
DRAWN = 2  # fields that are drawn; the others are the same with one pixel changed


def make_case(folder: Path, n_fields: int, width_px: int) -> Path:
    """A case of paired fields, all different to a hash; drawing each would take longer than the night."""
    import tifffile

    from phantoms.cases import simulate_case

    height_px = width_px * 1544 // 2064
    case = simulate_case(
        folder / "N-1",
        case_id="N-1",
        seed=1,
        n_fields=DRAWN,
        width_px=width_px,
        height_px=height_px,
        n_leukocytes_per_field=8,
    )
    lines = (case / "manifest.csv").read_text().splitlines()
    header, rows = lines[0], [r.split(",") for r in lines[1:]]
    names = header.split(",")
    field_at, file_at = names.index("field"), names.index("file")
    x_at = names.index("x_um") if "x_um" in names else None
    kept = []
    for number in range(n_fields):
        for row in (r for r in rows if r[field_at] == f"F{number % DRAWN + 1:03d}"):
            new = list(row)
            new[field_at], new[file_at] = f"G{number:03d}", f"G{number:03d}_{row[file_at][5:]}"
            if x_at is not None and new[x_at]:
                new[x_at] = str(float(new[x_at]) + 10_000.0 * number)  # elsewhere on the slide
            image = tifffile.imread(case / row[file_at])
            image[0, 0] = number
            tifffile.imwrite(
                case / new[file_at],
                image,
                resolution=(100000, 100000),
                resolutionunit="CENTIMETER",
            )
            kept.append(",".join(new))
    for row in rows:
        (case / row[file_at]).unlink()
    (case / "manifest.csv").write_text("\n".join([header, *kept]) + "\n")
    return case


def one(kind: str, inbox: Path, store: Path, workers: int) -> dict[str, Any]:
    """In a process of its own: a night, the bare stages, or a server and a cluster with nothing to do."""
    import dask

    from tests.faults import models

    models.register_all()

    dask.config.set({"distributed.worker.preload": ["tests.faults.worker"]})
    started = time.perf_counter()
    if kind == "night":
        from flows.local import run_night

        night = run_night(inbox, str(store), models.SETTINGS, workers=workers)
        row = night["cases"][0]
        assert row["status"] == "done", row
        return {
            "seconds": time.perf_counter() - started,
            "stages": row["seconds"],
            "case": row["seconds_total"],
        }
    if kind == "bare":
        from flows.cluster import Workers
        from flows.execute import execute
        from flows.runs import open_run

        class Inline(Workers):
            def map(self, function: Any, calls: Any, **_: Any) -> Any:
                for key, args in calls.items():
                    yield key, function(*args), None

        run = open_run(inbox / "N-1", str(store), models.SETTINGS, Inline())
        outcome = execute(run)
        return {"seconds": time.perf_counter() - started, "stages": outcome.stage_seconds}
    import flows.prefect_env  # before prefect

    # isort: split
    from prefect import flow

    import flows.case  # noqa: F401
    from flows.cluster import Workers

    @flow(name="nothing", persist_result=False)
    def nothing() -> None:
        with Workers(n_workers=workers) as pool:
            dict(enumerate(pool.map(abs, {"a": (1,)})))

    nothing()
    return {"seconds": time.perf_counter() - started}


def watched(kind: str, inbox: Path, store: Path, workers: int) -> dict[str, Any]:
    """Run `one` in a process tree of its own; its processor time and its peak memory by role, MB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    # A home of its own: the temporary server begins with a fresh database each time.
    home = tempfile.mkdtemp(prefix="prefect-")
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.night", "--one", kind, str(inbox), str(store), str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        text=True,
        env={
            **os.environ,
            "PREFECT_HOME": home,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            # As a night's workers have it (flows/cluster.py), so that the bare stages are not slower.
            "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
            "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
        },
    )
    peaks = {"flow": 0.0, "worker": 0.0, "server": 0.0}
    tree = psutil.Process(process.pid)
    server_s = 0.0
    while process.poll() is None:
        try:
            peaks["flow"] = max(peaks["flow"], tree.memory_info().rss / 1e6)
            for child in tree.children(recursive=True):
                words = " ".join(child.cmdline())
                role = "server" if "prefect" in words and "spawn_main" not in words else "worker"
                peaks[role] = max(peaks[role], child.memory_info().rss / 1e6)
                if role == "server":
                    used = child.cpu_times()
                    server_s = max(server_s, used.user + used.system)
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            pass
        time.sleep(0.25)
    assert process.stdout is not None
    printed = process.stdout.read()
    assert process.returncode == 0, f"{kind} failed"
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    shutil.rmtree(home, ignore_errors=True)
    return {
        **json.loads(printed.strip().splitlines()[-1]),
        "cpu": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "server_cpu": server_s,
        **{f"{role}_mb": round(value, 1) for role, value in peaks.items()},
    }


def measure(n_fields: int, width_px: int, out: Path) -> dict[str, Any]:
    few, many = out / "few", out / "many"
    make_case(few, max(1, n_fields // 10), width_px)
    make_case(many, n_fields, width_px)
    found = {"fields": n_fields, "width_px": width_px}
    found["empty"] = watched("empty", many, out / "s0", 1)
    found["bare"] = watched("bare", many, out / "s1", 1)
    found["bare_few"] = watched("bare", few, out / "s5", 1)
    found["few"] = watched("night", few, out / "s2", 1)
    found["many_1"] = watched("night", many, out / "s3", 1)
    found["many_2"] = watched("night", many, out / "s4", 2)
    return found


def table(found: dict[str, Any]) -> str:
    n, few, many = found["fields"], found["few"], found["many_1"]
    load = os.getloadavg()[1]
    # What more fields cost more, so that what is loaded and started once a night falls out.
    server_s = many["server_cpu"] - few["server_cpu"]
    night_s = many["cpu"] - few["cpu"] - server_s
    stages_s = found["bare"]["cpu"] - found["bare_few"]["cpu"]
    more = n - max(1, n // 10)
    once_s = many["cpu"] - n / more * (night_s + server_s)
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d}, {os.cpu_count()} cores, load of the machine {load:.0f}; paired "
        f"phantom fields {found['width_px']} px wide, stand-in models.",
        "",
        "| figure | value |",
        "|---|---|",
        f"| peak memory of the flow, {max(1, n // 10)} fields | {few['flow_mb']:.0f} MB |",
        f"| peak memory of the flow, {n} fields | {many['flow_mb']:.0f} MB "
        f"({many['flow_mb'] / few['flow_mb']:.2f} x) |",
        f"| peak memory of the worker, {max(1, n // 10)} fields | {few['worker_mb']:.0f} MB |",
        f"| peak memory of the worker, {n} fields | {many['worker_mb']:.0f} MB "
        f"({many['worker_mb'] / few['worker_mb']:.2f} x) |",
        f"| fields a minute, 1 worker | {60 * n / many['case']:.1f} |",
        f"| fields a minute, 2 workers | {60 * n / found['many_2']['case']:.1f} |",
        f"| processor time of the stages alone, {n} fields | {found['bare']['cpu']:.1f} s |",
        f"| processor time of the night, {n} fields | {many['cpu']:.1f} s |",
        f"| of that once a night: server, cluster, libraries | {once_s:.1f} s |",
        f"| of that orchestration (flow, Dask), {n} fields | {n / more * (night_s - stages_s):.1f} s "
        f"({100 * (night_s - stages_s) / night_s:.1f} % of what the case takes) |",
        f"| of that the loops of Prefect's temporary server, {n} fields | {n / more * server_s:.1f} s |",
    ]
    return "\n".join(lines)


def main() -> None:
    if sys.argv[1:2] == ["--one"]:
        kind, inbox, store, workers = sys.argv[2:6]
        kept = os.dup(1)
        os.dup2(2, 1)
        answer = one(kind, Path(inbox), Path(store), int(workers))
        sys.stdout.flush()
        os.dup2(kept, 1)
        print(json.dumps(answer))
        return
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--fields", type=int, default=60)
    parser.add_argument("--width", type=int, default=1032)
    parser.add_argument("--out", type=Path, default=None)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="night-") as scratch:
        found = measure(given.fields, given.width, Path(scratch))
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "night.json").write_text(json.dumps(found, indent=1))
    print(table(found))


if __name__ == "__main__":
    main()
