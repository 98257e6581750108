"""The audit log of a case: who ran and changed what, append-only, each entry sealing the one before.

`<case>/audit/<number>.json` is made once and never written again (an exclusive create, on an object
store as on a disk).  An entry holds the hash of the one before it, so nothing can be altered, left out
or put in between without every later hash saying so.  With SMEARFLOW_AUDIT_KEY the hashes are keyed
(HMAC-SHA256, RFC 2104): then not even who may write the store can make a chain that fits.  What was cut
off the end is found by the result, which repeats the changes that persons made.
"""

from __future__ import annotations

import getpass
import hashlib
import hmac
import os
import re
import socket
from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field, ValidationError

from pipeline.errors import SmearflowError
from pipeline.types import Spec
from storage.clock import stamp
from storage.fingerprint import fingerprint
from storage.keys import AUDIT, key_of
from storage.store import Store

Action = Literal["run", "report", "retry", "review", "sign", "cancel"]
PERSONS: tuple[Action, ...] = ("review", "sign", "cancel")  # what a result repeats
MAX_TEXT = 500
_NAME = re.compile(r"\d{6}\.json")
_START = "0" * 64


class AuditBroken(SmearflowError):
    """The audit log was altered; nothing may be added to it until a person has looked."""


class Change(Spec):
    """One thing that was changed: a cell's class, a status, a file's hash."""

    target: str
    old: str | None = None
    new: str | None = None


class AuditEntry(Spec):
    """One act of a person or a program; `seal` is the hash of everything else, the one before included."""

    number: int
    ts: str
    actor: str
    action: Action
    reason: str = ""
    changes: tuple[Change, ...] = ()
    detail: dict[str, str] = Field(default_factory=dict)
    before: str
    keyed: bool
    seal: str = ""


def who() -> str:
    """Who acts: SMEARFLOW_ACTOR, else the account and machine."""
    named = os.environ.get("SMEARFLOW_ACTOR")
    if named:
        return _plain(named)
    try:
        account = getpass.getuser()
    except (KeyError, OSError):  # an account without a name, in a container
        account = str(os.getuid())
    return f"{account}@{socket.gethostname()}"


def _plain(text: str) -> str:
    """Text on one line, cut, without anything that a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text)[:MAX_TEXT].strip()


def _seal(entry: AuditEntry, key: bytes | None) -> str:
    mark = fingerprint("audit", entry.model_copy(update={"seal": ""}))
    return hmac.new(key, mark.encode(), hashlib.sha256).hexdigest() if key else mark


class AuditLog:
    """The log of one case.  To be written with the case's lock held."""

    def __init__(self, store: Store, case_id: str) -> None:
        self._store, self._folder = store, f"{case_id}/audit"
        self.case_id = case_id

    def _numbers(self) -> list[str]:
        return [name for name in self._store.list(self._folder) if _NAME.fullmatch(name)]

    def _read(self, name: str) -> AuditEntry:
        try:
            return AuditEntry.model_validate_json(self._store.read_bytes(f"{self._folder}/{name}"))
        except (ValidationError, ValueError) as error:
            raise AuditBroken(
                f"{self.case_id}: {self._folder}/{name} is damaged; restore it from a copy of the store."
            ) from error

    def entries(self) -> list[AuditEntry]:
        """Every entry, oldest first; raises AuditBroken for one that cannot be read."""
        return [self._read(name) for name in self._numbers()]

    def last(self) -> AuditEntry | None:
        """The newest entry, None where there is none; raises AuditBroken as `entries` does."""
        names = self._numbers()
        return self._read(names[-1]) if names else None

    def append(
        self,
        action: Action,
        *,
        actor: str | None = None,
        reason: str = "",
        changes: Iterable[Change] = (),
        detail: Mapping[str, str] | None = None,
    ) -> AuditEntry:
        """Add an entry; raises AuditBroken where the last one is damaged or another process added one."""
        last = self.last()
        key = key_of(AUDIT)
        entry = AuditEntry(
            number=1 if last is None else last.number + 1,
            ts=stamp(),
            actor=_plain(actor) if actor else who(),
            action=action,
            reason=_plain(reason),
            changes=tuple(changes),
            detail=dict(detail or {}),
            before=_START if last is None else last.seal,
            keyed=key is not None,
        )
        entry = entry.model_copy(update={"seal": _seal(entry, key)})
        name = f"{self._folder}/{entry.number:06d}.json"
        try:
            self._store.create_bytes(name, (entry.model_dump_json(indent=1) + "\n").encode())
        except FileExistsError as error:
            raise AuditBroken(
                f"{self.case_id}: {name} was written by another process meanwhile; try again."
            ) from error
        return entry

    def verify(self) -> list[str]:
        """What is wrong with the log, one sentence each; nothing where it is whole."""
        wrong: list[str] = []
        before, keyed, key = _START, False, key_of(AUDIT)
        for number, name in enumerate(self._numbers(), start=1):
            if name != f"{number:06d}.json":
                wrong.append(f"entry {number} is missing.")
                break
            try:
                entry = self._read(name)
            except AuditBroken:
                wrong.append(f"entry {number} cannot be read.")
                break
            if entry.number != number or entry.before != before:
                wrong.append(f"entry {number} does not follow the one before it.")
            if entry.keyed and key is None:
                wrong.append(f"entry {number} is sealed by a key; set SMEARFLOW_AUDIT_KEY to check it.")
            elif keyed and not entry.keyed:
                wrong.append(f"entry {number} is not sealed by the key, though earlier ones are.")
            elif not hmac.compare_digest(entry.seal, _seal(entry, key if entry.keyed else None)):
                wrong.append(f"entry {number} was altered.")
            before, keyed = entry.seal, keyed or entry.keyed
        return wrong
