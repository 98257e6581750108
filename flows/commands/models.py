"""`smearflow models`."""

from __future__ import annotations

from typing import Any

import click

from flows.console import json_option, output


@click.command(name="models")
@click.argument("name", required=False)
@json_option
def command(name: str | None, as_json: bool) -> None:
    """List the models that can be named, or print one model's card."""
    from pipeline.errors import UnknownName
    from storage.packages import find_package, list_packages, package_roots
    from storage.registry import entries

    with output(as_json) as show:
        if name is not None:
            package = find_package(name)
            if package is None:
                known = [p.name for p in list_packages()]
                raise UnknownName("model package", name, known)
            show(package.card.model_dump(mode="json"), package.card.model_dump_json(indent=1))
            return
        rows: list[dict[str, Any]] = [
            {
                "task": p.card.task,
                "name": p.name,
                "version": p.card.version,
                "architecture": p.card.architecture,
                "licence": p.card.licence,
                "summary": p.card.intended_use,
                "folder": str(p.folder),
            }
            for p in list_packages()
        ]
        rows += [
            {
                "task": e.task,
                "name": e.architecture,
                "version": None,
                "architecture": e.architecture,
                "licence": e.licence,
                "summary": e.summary,
                "folder": None,
            }
            for e in entries()
            if not e.needs_package
        ]
        rows.sort(key=lambda r: (r["task"], r["name"]))
        shipped = str(package_roots()[-1])

        def line(r: dict[str, Any]) -> str:
            own = r["folder"] is not None and not r["folder"].startswith(shipped)
            where = f" (from {r['folder']})" if own else ""  # it may stand for a shipped one of its name
            version = r["version"] or "no weights"
            return f"{r['task']:<19} {r['name']:<24} {version:<11} {r['summary']}{where}"

        show(rows, "\n".join(map(line, rows)))
