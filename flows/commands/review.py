"""`smearflow review CASE --store URL --reviewer NAME`."""

from __future__ import annotations

from pathlib import Path

import click

from flows.commands.run import settings_values
from flows.console import config_option, existing, json_option, output, store_option
from pipeline.errors import BadInput


@click.command(name="review")
@click.argument("case_id")
@store_option
@click.option("--reviewer", required=True, envvar="SMEARFLOW_REVIEWER", help="Who reviews.")
@click.option("--cell", "cells", multiple=True, help="Id of a cell to correct; once for each --class.")
@click.option("--class", "classes", multiple=True, help="Its canonical class (docs/classification.md).")
@click.option("--from", "table", type=click.Path(path_type=Path), help="CSV of corrections: cell_id,class.")
@click.option("--reason", default="", help="Why; stands in the report's audit, and a signature may need it.")
@click.option("--sign", is_flag=True, help="Release the report: final, or corrected after a first release.")
@click.option("--report", help="Id of the report that was read (or its first 8 characters); must be current.")
@click.option("--cancel", is_flag=True, help="Withdraw the report; needs --reason.")
@config_option
@json_option
def command(
    case_id: str,
    store: str,
    reviewer: str,
    cells: tuple[str, ...],
    classes: tuple[str, ...],
    table: Path | None,
    reason: str,
    sign: bool,
    report: str | None,
    cancel: bool,
    config: Path | None,
    as_json: bool,
) -> None:
    """Correct the classes of cells, sign a report, or withdraw it.

    The model's counts are kept beside the reviewer's; every change goes into the case's audit log.
    """
    if len(cells) != len(classes):
        raise BadInput(f"{len(cells)} --cell and {len(classes)} --class are given; give one for each.")
    corrections = list(zip(cells, classes, strict=True))
    values = settings_values(config)
    if table is not None:
        from pipeline.review import read_corrections

        corrections += read_corrections(existing(table))
    with output(as_json) as show:
        from flows.reviewing import review_case

        done = review_case(
            case_id,
            store,
            reviewer=reviewer,
            corrections=corrections,
            reason=reason,
            sign=sign,
            cancel=cancel,
            report=report,
            settings=values,
        )
        show(
            done,
            f"{case_id} is {done['status']}: {done['n_reclassified']} cells reclassified, "
            f"{done['pct_reviewed']:g} % reviewed\nreport: {done['report']}",
        )
