"""`smearflow audit --store URL [CASE…] [--verify]`."""

from __future__ import annotations

import sys
from typing import Any

import click

from flows.console import json_option, output, store_option


@click.command(name="audit")
@click.argument("cases", nargs=-1)
@store_option
@click.option(
    "--verify", is_flag=True, help="Check the logs and the results; exit status 4 if they do not hold."
)
@json_option
def command(cases: tuple[str, ...], store: str, verify: bool, as_json: bool) -> None:
    """Show who ran and changed what, and whether the record of it still holds."""
    from flows.auditing import audit_cases

    with output(as_json) as show:
        found = audit_cases(store, cases, verify=verify)
        show(found, "\n".join(_lines(found, verify)))
    if any(case["wrong"] for case in found):
        sys.exit(4)


def _lines(found: list[dict[str, Any]], verify: bool) -> list[str]:
    lines = []
    for case in found:
        held = "" if not verify else ", holds" if not case["wrong"] else ", DOES NOT HOLD"
        lines.append(f"{case['case']}: {len(case['entries'])} entries{held}")
        lines += [f"  ! {sentence}" for sentence in case["wrong"]]
        for entry in case["entries"]:
            changes = [f"{c['target']}: {c['old'] or '-'} -> {c['new'] or '-'}" for c in entry["changes"]]
            shown = "; ".join(changes[:3]) + (f"; {len(changes) - 3} more" if len(changes) > 3 else "")
            reason = f" ({entry['reason']})" if entry["reason"] else ""
            lines.append(f"  {entry['ts']} {entry['actor']} {entry['action']} {shown}{reason}")
    return lines or ["no case has an audit log"]
