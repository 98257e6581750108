"""`smearflow run CASE_DIR --store URL`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flows.console import output, pixel_size_option, store_options


def settings_values(config: Path | None) -> dict[str, Any]:
    """The settings of a file as plain values, for a flow parameter; checked here, before anything starts."""
    from pipeline.settings import load_settings

    return load_settings(config).model_dump(mode="json", exclude_defaults=True)


def field_positions(path: Path) -> list[dict[str, Any]]:
    """The fields that a CSV names, as plain values of `intake.slide_fields`."""
    from pipeline.slide_positions import read_positions

    return [p.model_dump(mode="json", exclude_none=True) for p in read_positions(path)]


@click.command(name="run")
@click.argument("case_dir", type=click.Path(path_type=Path))
@pixel_size_option("Micrometres a pixel, where neither manifest nor file says.")
@click.option(
    "--fields",
    type=click.Path(path_type=Path),
    default=None,
    help="CSV of the fields of a whole slide to read, x_um,y_um or x_px,y_px [chosen by their look].",
)
@store_options
def command(
    case_dir: Path,
    pixel_size: float | None,
    fields: Path | None,
    store: str,
    scheduler: str | None,
    workers: int | None,
    config: Path | None,
    as_json: bool,
) -> None:
    """Process one case folder into a report.

    What was computed before from the same inputs, settings and models is not computed again.
    """
    values = settings_values(config)
    if fields is not None:
        values["intake"] = {**values.get("intake", {}), "slide_fields": field_positions(fields)}
    with output(as_json) as show:
        from flows.local import run_case

        outcome = run_case(
            case_dir, store, values, scheduler=scheduler, workers=workers, pixel_size_um=pixel_size
        )
        show(outcome.result, describe(outcome))


def describe(outcome: Any) -> str:
    """The result for a terminal, and where the report is."""
    from pipeline.report_text import render_text
    from pipeline.result import Result

    computed, reused = sum(outcome.computed.values()), sum(outcome.reused.values())
    work = (
        f"computed {computed}, reused {reused}" if computed else f"nothing computed, {reused} results reused"
    )
    return f"{render_text(Result.model_validate(outcome.result))}\n\n{work}\nreport: {outcome.report_url}"
