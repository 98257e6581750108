"""Structured logs: one JSON object a line, with the case, stage and field that it is about.

Every night writes to the file that SMEARFLOW_LOG names, if it names one; a night on a local store also
writes `<store>/nights/<night>.jsonl`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from storage.clock import now
from storage.store import Store

FIELDS = ("case", "stage", "item", "slide", "field", "status", "seconds")


class JsonLines(logging.Formatter):
    """A record as one line of JSON; text of foreign origin stays inside its string."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": now().isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "pid": record.process,
        }
        line |= {name: getattr(record, name) for name in FIELDS if getattr(record, name, None) is not None}
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = f"{type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        return json.dumps(line, ensure_ascii=True, default=str)


def _not_written(path: str | Path, error: BaseException | None) -> None:
    print(f"smearflow: the log {path} cannot be written ({error}); the night goes on.", file=sys.stderr)


class _Lines(logging.FileHandler):
    """A log that cannot be written (a full disk) costs its lines, never the night; the first is told of."""

    told = False

    def handleError(self, record: logging.LogRecord) -> None:
        if not self.told:
            self.told = True
            _not_written(self.baseFilename, sys.exc_info()[1])

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of lines that were not written
            super().close()


@contextlib.contextmanager
def to_file(store: Store, night: str) -> Iterator[None]:
    """Write what `smearflow` logs, from INFO, as JSON lines while the context lasts."""
    paths = [Path(p) for p in [os.environ.get("SMEARFLOW_LOG")] if p]
    if store.folder is not None:
        paths.append(store.folder / "nights" / f"{night}.jsonl")
    logger = logging.getLogger("smearflow")
    level, handlers = logger.level, []
    for path in paths:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handler = _Lines(path, encoding="utf-8")
        except OSError as error:
            _not_written(path, error)
            continue
        handler.setFormatter(JsonLines())
        handlers.append(handler)
        logger.addHandler(handler)
    if handlers:
        logger.setLevel(min(logging.INFO, logger.getEffectiveLevel()))
    # What the terminal shows is not for this to decide: there, only warnings pass.
    quiet = _only_warnings(logger) if handlers else []
    try:
        yield
    finally:
        for handler in handlers:
            logger.removeHandler(handler)
            handler.close()
        for other, before in quiet:
            other.setLevel(before)
        logger.setLevel(level)


def _only_warnings(logger: logging.Logger) -> list[tuple[logging.Handler, int]]:
    """Raise the level of the handlers that were there before to WARNING; returns them as they were."""
    found = []
    above: logging.Logger | None = logger
    while above is not None:
        for handler in above.handlers:
            if not isinstance(handler, _Lines) and handler.level < logging.WARNING:
                found.append((handler, handler.level))
                handler.setLevel(logging.WARNING)
        above = above.parent if above.propagate else None
    return found
