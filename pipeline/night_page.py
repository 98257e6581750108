"""The page of a night: one self-contained file, in the report's look, that links every report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def render_night(night: Mapping[str, Any]) -> str:
    """The page of a night's summary (docs/reliability.md, "The night's summary").

    Everything of foreign origin is escaped, and only addresses inside the night's own store become links.
    """
    from pipeline.pages import asset, environment

    stages = night["stage_seconds"]
    longest = max(stages.values(), default=0.0) or 1.0
    store = str(night["store"]).rstrip("/")
    return str(
        environment()
        .get_template("night.html.j2")
        .render(
            night=night,
            style=asset("report.css"),
            bars={stage: round(100 * seconds / longest, 1) for stage, seconds in stages.items()},
            links={r["case"]: _link(str(r.get("report") or ""), store) for r in night["cases"]},
        )
    )


def _link(report: str, store: str) -> str | None:
    """The way from `<store>/nights/<night>.html` to a report of the same store; None for anything else.

    Relative, so that the page can be opened wherever the store is mounted.
    """
    from urllib.parse import quote

    if not report.startswith(f"{store}/"):
        return None
    return "../" + quote(report[len(store) + 1 :])
