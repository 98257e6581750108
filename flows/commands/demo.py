"""`smearflow demo`: two simulated cases, run for real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flows.commands.nightly import leave
from flows.console import json_option, output

# (case id, what it shows, how it is simulated)
CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    (
        "PHANTOM-PAIRED",
        "blood, MGG brightfield with DIC partners",
        {"seed": 11, "n_fields": 4, "modalities": ("brightfield", "dic"), "n_leukocytes_per_field": 30},
    ),
    (
        "PHANTOM-DIC",
        "blood, unstained DIC only: stained virtually",
        {"seed": 12, "n_fields": 2, "modalities": ("dic",), "n_leukocytes_per_field": 24},
    ),
)


@click.command(name="demo")
@click.option("--store", default="demo/store", show_default=True, help="Folder that takes the results.")
@click.option("--inbox", default=None, help="Folder for the simulated cases [beside the store].")
@click.option("--workers", type=click.IntRange(1), default=None)
@json_option
def command(store: str, inbox: str | None, workers: int | None, as_json: bool) -> None:
    """Simulate two cases (phantoms, not patients), run them, and show the way to their reports."""
    with output(as_json) as show:
        from flows.local import run_night
        from pipeline.errors import BadInput
        from storage.store import local_folder

        beside = local_folder(store)
        if inbox:
            folder = Path(inbox)
        elif beside is None:
            raise BadInput(f"{store}: no simulated case can lie beside a remote store; give --inbox.")
        else:
            folder = beside.parent / "inbox"
        for case_id, what, how in CASES:
            if not (folder / case_id / "manifest.csv").is_file():
                from phantoms.cases import simulate_case

                click.echo(f"simulating {case_id}: {what}", err=True)
                simulate_case(folder / case_id, case_id=case_id, **how)
        night = run_night(folder, store, {}, workers=workers)
        show(night, "\n".join(_summary(store, night)))
    leave(night)


def _summary(store: str, night: dict[str, Any]) -> list[str]:
    from pipeline.report_text import render_text
    from pipeline.result import Result
    from storage.store import Store

    lines = ["Phantom cases: simulated images, not patients.", ""]
    opened = Store(store)
    for case in night["cases"]:
        if case["status"] != "done":  # failed, busy or held back: a result may be there, and is not tonight's
            lines += [f"{case['case']}: {case['status']}: {case['error']}", ""]
            continue
        result = Result.model_validate(opened.read_json(f"{case['case']}/result.json"))
        lines += [render_text(result), f"report: {case['report']}", ""]
    lines.append(night["message"])
    lines += [f"Open a report in a browser: {c['report']}" for c in night["cases"] if c["status"] == "done"]
    return lines
