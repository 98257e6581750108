"""`smearflow status [--store URL]`."""

from __future__ import annotations

import click

from flows.console import json_option, output, store_option


@click.command(name="status")
@store_option
@json_option
def command(store: str, as_json: bool) -> None:
    """List the cases of a store: state, report (preliminary, final, cancelled), what was left out and
    why, flags, last run, and who works on them.

    Nothing is written and nobody is waited for.
    """
    with output(as_json) as show:
        from flows.status import as_text, status_of_store

        found = status_of_store(store)
        show(found, as_text(found))
