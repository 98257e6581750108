"""What a person asked of one case: the fields of a slide and the pixel size.  Kept with its run, asked again.

`smearflow run --fields --pixel-size` says it for a case, and neither `retry` nor the night has it on its
line.  Left out there, fields chosen by their look would take the place of those that a person had chosen.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flows.records import CaseRun
from flows.runs import settings_of
from pipeline.errors import BadInput
from pipeline.settings import IntakeSettings
from storage.fingerprint import fingerprint
from storage.store import Store


def asked_of(run: CaseRun) -> dict[str, Any] | None:
    """What is asked of this run beyond its files, and of which contents of them; None where nothing is."""
    fields = run.settings.intake.slide_fields
    if not fields and run.pixel_size_um is None:
        return None
    return {
        "slide_fields": [p.model_dump(mode="json", exclude_none=True) for p in fields],
        "pixel_size_um": run.pixel_size_um,
        "files": _files_mark(run.case_dir, run.settings.intake),
    }


def _files_mark(case_dir: Path, settings: IntakeSettings) -> str | None:
    """The hash of the case's image files; None where its folder cannot be read, which intake will say."""
    from pipeline.intake import declare

    try:
        sources = declare(case_dir, settings).sources
    except BadInput:
        return None
    return fingerprint(sorted((s.file, s.hash_file(case_dir)) for s in sources))


def last_asked(store: Store, case: str) -> dict[str, Any] | None:
    """What was asked of the newest run that read images; a report made again, or a review, reads none.

    A night's run that did not end well leaves what was asked before it.
    """
    try:
        ledger = store.read_json(f"{case}/ledger.json")
        runs = [*ledger["runs"], ledger.get("current") or {}]
        newest: dict[str, Any] = next((run for run in reversed(runs) if run.get("case_dir")), {})
        found = newest.get("asked_before") or newest.get("asked")
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if isinstance(found, dict) else None


def asked_again(
    case_dir: Path, store: str, values: dict[str, Any] | None, *, also_changed: bool
) -> tuple[dict[str, Any], float | None, str | None]:
    """Settings and pixel size (µm) for another run of a case, as its last run was asked; and that in words.

    Settings that name fields themselves go before.  Fields were chosen on the files as they were then:
    of others nothing is asked again, unless `also_changed`, where a person has this very case run again.
    """
    values = dict(values or {})
    asked = last_asked(Store(store), case_dir.resolve().name)
    if asked is None:
        return values, None, None
    if not also_changed and asked.get("files") != _files_mark(case_dir.resolve(), settings_of(values).intake):
        return values, None, "its files changed: not read as its last run was asked to"
    told = []
    intake = values.get("intake") or {}
    fields, size = asked.get("slide_fields"), asked.get("pixel_size_um")
    if fields and not intake.get("slide_fields"):
        values["intake"] = {**intake, "slide_fields": fields}
        told.append(f"{len(fields)} field{'' if len(fields) == 1 else 's'} named by hand")
    if size is not None:
        told.append(f"{size:g} µm a pixel")
    return values, size, f"as its last run was asked: {', '.join(told)}" if told else None
