"""What persons did to a case, read off its audit log: the one record of a review."""

from __future__ import annotations

import json

from pipeline.review import Act
from storage.audit import PERSONS, AuditLog
from storage.store import Store


def acts_of(store: Store, case_id: str) -> list[Act]:
    """What persons did to a case, oldest first, as its audit log tells it."""
    return [
        Act(
            ts=entry.ts,
            actor=entry.actor,
            action=entry.action,
            reason=entry.reason,
            changes=tuple((c.target, c.old, c.new) for c in entry.changes),
            content=entry.detail.get("content"),
            boxes=json.loads(entry.detail.get("boxes", "{}")),
        )
        for entry in AuditLog(store, case_id).entries()
        if entry.action in PERSONS
    ]
