"""`smearflow report CASE --store URL`."""

from __future__ import annotations

from pathlib import Path

import click

from flows.commands.run import settings_values
from flows.console import config_option, json_option, output, store_option


@click.command(name="report")
@click.argument("case_id")
@store_option
@config_option
@json_option
def command(case_id: str, store: str, config: Path | None, as_json: bool) -> None:
    """Write a case's report again from what is stored, counting by the settings given here."""
    values = settings_values(config)
    with output(as_json) as show:
        from flows.rebuild import rebuild

        done = rebuild(case_id, store, values)
        show(done, f"report: {done['report']}")
