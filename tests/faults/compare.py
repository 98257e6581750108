"""One meaning of "the same results": byte for byte, times aside."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from sqlalchemy import create_engine, text

# The story of how a result came to be differs between runs; the lock is empty.
STORY = {"ledger.json", ".lock"}
STORY_FOLDERS = {"audit"}
TOLD = {"id", "created", "result_sha256", "audit_start", "audit_entries", "audit_seal"}  # of a row
_CREATED = re.compile(rb'"created": "[^"]*"')
_SHOWN = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d UTC")


def canonical(store: Path, case_id: str) -> dict[str, str]:
    """sha256 of every file of a case by its key, its creation time taken out, and of its database rows.

    Every file counts: a draft that a dead process left behind is a difference.
    """
    root = store / case_id
    found = {}
    for path in sorted(p for p in root.rglob("*") if p.is_file()):
        key = path.relative_to(root).as_posix()
        if key in STORY or key.startswith("audit/"):
            continue
        data = path.read_bytes()
        if key == "result.json":
            data = _CREATED.sub(b"", data, count=1)
        elif key == "report.html":
            data = _SHOWN.sub(b"", data)
        elif key == "work/report/case.json":
            # Of result.json and report.html, which carry the time.
            document = json.loads(data)
            document["output"]["sha256"] = sorted(document["output"]["sha256"])
            data = json.dumps(document).encode()
        found[key] = hashlib.sha256(data).hexdigest()
    return {**found, "results.db": _rows(store / "results.db", case_id)}


def _rows(database: Path, case_id: str) -> str:
    """The case's rows but for their number and their time."""
    if not database.exists():
        return "no database"
    engine = create_engine(f"sqlite:///{database}")
    try:
        with engine.connect() as connection:
            rows = connection.execute(
                text("select * from results where case_id = :case order by fingerprint"), {"case": case_id}
            )
            plain = [{k: v for k, v in r._mapping.items() if k not in TOLD} for r in rows]
    finally:
        engine.dispose()
    return json.dumps(plain, sort_keys=True, default=str)


def differences(store: Path, reference: Path, case_id: str) -> list[str]:
    """What tells a case in one store from the same in another; nothing where they are the same."""
    here, there = canonical(store, case_id), canonical(reference, case_id)
    return [
        f"{key}: {'missing' if key not in here else 'too much' if key not in there else 'different'}"
        for key in sorted(here.keys() | there.keys())
        if here.get(key) != there.get(key)
    ]
