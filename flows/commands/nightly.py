"""`smearflow nightly INBOX --store URL`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from flows.commands.run import settings_values
from flows.console import output, row_text, store_options
from flows.stopping import EXIT_STATUS


@click.command(name="nightly")
@click.argument("inbox", type=click.Path(path_type=Path))
@store_options
def command(
    inbox: Path, store: str, scheduler: str | None, workers: int | None, config: Path | None, as_json: bool
) -> None:
    """Process every case folder of an inbox; a case that fails is named and stops nothing.

    Exit status 0 if every case was processed (or is being processed by another run), 3 if some were not,
    4 if the canary stopped the night before any case was touched, 143 if it was told to end (SIGTERM).
    """
    values = settings_values(config)
    with output(as_json) as show:
        from flows.local import run_night

        night = run_night(inbox, store, values, scheduler=scheduler, workers=workers)
        lines = [row_text(c) for c in night["cases"]]
        show(night, "\n".join([*lines, night["message"]]))
    leave(night)


def leave(night: dict[str, Any]) -> None:
    """End the command with the exit status of a night: 0 is a return, 3 a failed case, 4 the canary's alarm,
    143 SIGTERM."""
    if night["status"] in ("alarm", "stopped"):
        click.echo(f"smearflow: {night['message']}", err=True)
        sys.exit(4 if night["status"] == "alarm" else EXIT_STATUS)
    if any(c["status"] == "failed" for c in night["cases"]):
        sys.exit(3)
