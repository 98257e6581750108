"""`smearflow export CASE --store URL --format fhir|csv`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from flows.console import not_blank, store_option
from pipeline.errors import BadInput


@click.command(name="export")
@click.argument("case_id")
@store_option
@click.option(
    "--format",
    "form",
    required=True,
    type=click.Choice(["fhir", "csv"]),
    help="fhir: a FHIR R4B bundle as JSON; csv: a table with one row a class.",
)
@click.option("--cells", is_flag=True, help="With csv: one row a cell.")
@click.option("--out", callback=not_blank, help="File to write, a new one [stdout].")
@click.option(
    "--report", help="Id of the report that is wanted (or its first 8 characters); must be current."
)
def command(
    case_id: str, store: str, form: Literal["fhir", "csv"], cells: bool, out: str | None, report: str | None
) -> None:
    """Give a case's report to other systems: as FHIR, or as a table for a spreadsheet.

    It is what result.json says, under the same pseudonym (docs/export.md).
    """
    path = None if out is None else _new(out)
    from flows.exporting import export_case
    from storage.whole_files import write_text

    text, result = export_case(case_id, store, form, cells=cells, report=report)
    if path is None:
        click.echo(text.encode("utf-8"), nl=False)
        return
    write_text(path, text)
    click.echo(f"{path}: report {result.report_uuid} of {result.case.pseudo_id}, {result.status}")


def _new(out: str) -> Path:
    """The path of a file that is not there yet, so that nothing is overwritten."""
    path = Path(out)
    if path.is_dir():
        raise BadInput(f"{out}: this is a folder; name a file in it.")
    if path.exists() or path.is_symlink():
        raise BadInput(f"{out}: the file is there already; name a new one so that nothing is overwritten.")
    return path
