"""`smearflow retry CASE | --failed`."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from flows.commands.run import settings_values
from flows.console import config_option, json_option, output, row_text, store_option


@click.command(name="retry")
@click.argument("case", required=False)
@click.option("--failed", is_flag=True, help="Every case that failed, died, or had to leave something out.")
@store_option
@click.option(
    "--inbox",
    envvar="SMEARFLOW_INBOX",
    default=None,
    help="Folder that holds the case folders [where the last run found them].",
)
@click.option("--scheduler", default=None, help="Address of a running Dask scheduler, tcp://host:port.")
@click.option("--workers", type=click.IntRange(1), default=None, help="Local worker processes [cores].")
@config_option
@json_option
def command(
    case: str | None,
    failed: bool,
    store: str,
    inbox: str | None,
    scheduler: str | None,
    workers: int | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Run a case again, or every case that is not whole.

    Inputs that were found unusable are read again; everything that was computed is reused.  Fields and a
    pixel size that were given for the case (run --fields, --pixel-size) hold until `smearflow run` says
    otherwise.  Exit status 0 if every case was processed, 3 if some were not.
    """
    values = settings_values(config)
    with output(as_json) as show:
        from flows.retry import chosen, retry_one

        rows = [
            retry_one(status, store, values, inbox, scheduler=scheduler, workers=workers)
            for status in chosen(store, case, failed)
        ]
        lines = [row_text(r) for r in rows]
        show(rows, "\n".join(lines) or "nothing to retry")
    if any(r["status"] != "done" for r in rows):
        sys.exit(3)
