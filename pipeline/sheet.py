"""The result as a table for a spreadsheet: one row a class, and one for ring sideroblasts.

A row stands by itself: the case's pseudonym, the report, its status and its flags are in each.  A value that
the report withholds is empty; counts and intervals stand, as in the report.
"""

from __future__ import annotations

from typing import Any

from pipeline.fhir import is_virtual, of_generator, perls_only, shown_loinc
from pipeline.result import Result
from pipeline.result_counts import Row
from storage.tables import sheet_text

SIGNED = ("final", "corrected")
COLUMNS = (
    *("case", "report", "created", "status", "reviewed", "specimen", "kind", "class", "display"),
    *("n", "n_model", "n_reviewed", "n_denominator", "pct", "ci_low", "ci_high", "interval"),
    *("boot_low", "boot_high", "mean_confidence", "loinc", "virtual", "flags", "use"),
)


def result_sheet(result: Result) -> str:
    """The result as CSV in UTF-8, its text cells neutralised (`storage.tables.sheet_text`).

    `kind`: `class` (these add to the denominator), `total` (a parent with all below it), `excluded` (not in
    the denominator), `by person` (a class that only a person could name), `iron`.  Percentages and limits are
    0-100.
    """
    m = result.method
    shared = {
        "case": result.case.pseudo_id,
        "report": result.report_uuid,
        "created": result.created.isoformat(timespec="seconds"),
        "status": result.status,
        "reviewed": result.status in SIGNED,
        "specimen": result.case.specimen,
        "interval": f"{m.interval} {100 * m.level:g} %",
        "virtual": is_virtual(result),
        "flags": "; ".join(f"{f.severity} {f.code}" for f in result.flags),
        "use": result.use_label,
    }
    rows = [] if perls_only(result) else _smear(result)
    return sheet_text(COLUMNS, [{**shared, **row} for row in (*rows, *_iron(result))])


def _smear(result: Result) -> list[dict[str, Any]]:
    d = result.differential
    counts = [
        {"kind": kind, "class": x.class_, "display": x.display, "n": x.n}
        for kind, found in (("excluded", d.excluded), ("by person", d.named_by_person))
        for x in found
    ]
    shares = (*(("class", r) for r in d.rows), *(("total", r) for r in d.groups))
    return [*(_share(result, kind, row) for kind, row in shares), *counts]


def _share(result: Result, kind: str, row: Row) -> dict[str, Any]:
    d = result.differential
    return {
        "kind": kind,
        "class": row.class_,
        "display": row.display,
        "n": row.n_ai if row.n_reviewed is None else row.n_reviewed,
        "n_model": row.n_ai,
        "n_reviewed": row.n_reviewed,
        "n_denominator": d.n_denominator,
        "pct": None if d.pct_blocked else row.pct,
        "ci_low": row.ci_low,
        "ci_high": row.ci_high,
        "boot_low": row.boot_low,
        "boot_high": row.boot_high,
        "mean_confidence": row.mean_confidence,
        "loinc": shown_loinc(row, result),
    }


def _iron(result: Result) -> list[dict[str, Any]]:
    rs = result.sideroblasts
    if rs is None:
        return []
    drawn = rs.evidence == "virtual_perls"
    row: dict[str, Any] = {
        "kind": "iron",
        "class": rs.code,
        "display": "Ring sideroblasts by VIRTUAL Perls, not a stain" if drawn else "Ring sideroblasts",
        "n_denominator": rs.n_erythroblasts,
        "virtual": drawn,
    }
    if drawn:  # preliminary whoever signed the report, unless it was withdrawn
        row |= {"reviewed": False, "interval": of_generator(result)}
        row |= {} if result.status == "cancelled" else {"status": "preliminary"}
    if rs.support is not None and not rs.support.supported:
        return [row]
    pct = None if rs.pct_blocked else rs.rs_pct
    return [
        {**row, "n": rs.type3, "n_model": rs.type3, "pct": pct, "ci_low": rs.ci_low, "ci_high": rs.ci_high}
    ]
