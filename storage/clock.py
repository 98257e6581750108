"""The wall clock, in one place: it is read for people to see, and nothing is decided by it.

A clock that is set back, or wrong, may not change what is computed, kept or counted.
"""

from __future__ import annotations

from datetime import UTC, datetime


def _read() -> datetime:
    return datetime.now(UTC)


def now() -> datetime:
    """The time of day, in UTC."""
    return _read()


def stamp() -> str:
    """The time of day as ISO 8601 to the second."""
    return now().isoformat(timespec="seconds")
