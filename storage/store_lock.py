"""The lock of a case on an object store, where no kernel keeps one.

`<case>/.lock` is made by a conditional put (`If-None-Match: *`), which one of many writers wins.  Its
owner writes it again every quarter of the lease; one that was not written for a whole lease belongs to
a process that died, and is taken over by a put that is conditional on its version (`If-Match`), which
again one writer wins.  Its age is read off the store's own clock, never off that of a machine.

Source of the conditions: RFC 9110, sections 13.1.1 and 13.1.2; S3 and MinIO honour both.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from pipeline.errors import BadInput, SmearflowError
from storage.clock import stamp

log = logging.getLogger("smearflow")

LEASE_S = 120.0
# Endpoints of this process that were seen to honour conditions.
_honest: set[str] = set()


class CaseBusy(SmearflowError, RuntimeError):
    """Another process is writing this case."""


def create(fs: Any, path: str, data: bytes) -> None:
    """Write an object that is not there yet; raises FileExistsError where it is."""
    try:
        fs.pipe_file(path, data, mode="create")
    except FileExistsError:
        raise
    except OSError as error:
        # 412 and 409 come as plain OSError.
        fs.invalidate_cache()
        try:
            there = bytes(fs.cat_file(path))
        except FileNotFoundError:
            raise error from None
        if there != data:  # ours is there where a put was repeated after its answer was lost
            raise FileExistsError(path) from error


class ObjectLock:
    """The lock object of one case; `fs` is an fsspec file system and `path` where the object lies."""

    def __init__(self, fs: Any, path: str, case_id: str, lease_s: float = LEASE_S) -> None:
        self._fs, self._path, self._case_id, self.lease_s = fs, path, case_id, lease_s
        self._owner = uuid.uuid4().hex
        self._since = stamp()
        self._conditional = "s3" in (fs.protocol if isinstance(fs.protocol, tuple | list) else (fs.protocol,))
        self._etag: str | None = None
        self._confirmed = time.monotonic()
        self._turn = threading.Lock()  # the beat and a writer may renew at once
        self.lost = False

    def _content(self) -> bytes:
        document = {
            "owner": self._owner,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": self._since,
            "renewed": stamp(),
            "lease_s": self.lease_s,
        }
        return json.dumps(document).encode()

    def _info(self) -> dict[str, Any] | None:
        self._fs.invalidate_cache()
        try:
            found: dict[str, Any] = self._fs.info(self._path)
        except FileNotFoundError:
            return None
        return found

    def _stored(self) -> bytes | None:
        try:
            return bytes(self._fs.cat_file(self._path))
        except FileNotFoundError:
            return None

    def read(self) -> dict[str, Any] | None:
        """What stands in the lock, {} where it is unreadable, None where there is none."""
        data = self._stored()
        if data is None:
            return None
        try:
            found = json.loads(data)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _put(self, **condition: Any) -> bool:
        """Write the lock under a condition; False where the condition does not hold (any more)."""
        data = self._content()
        try:
            answer = self._fs.pipe_file(self._path, data, **condition)
        except FileExistsError:
            return False
        except OSError:
            # 412 and 409 come as plain OSError, and a put that was repeated after its answer was lost fails
            # on itself; what stands there now tells them from a broken store.
            found = self._stored()
            if found == data:
                self._etag = (self._info() or {}).get("ETag")
                self._confirmed = time.monotonic()
                return True
            if found is None or (self.read() or {}).get("owner") == self._owner:
                raise
            return False
        if isinstance(answer, dict):
            self._etag = answer.get("ETag")
        self._confirmed = time.monotonic()
        return True

    def _age_s(self) -> float | None:
        """Seconds since the lock was last written, by the store's clock; None where it is gone."""
        probe = f"{self._path}-clock-{self._owner}"
        self._fs.pipe_file(probe, b"")
        try:
            self._fs.invalidate_cache()
            now = self._fs.modified(probe)
            info = self._info()
            return None if info is None else float((now - self._fs.modified(self._path)).total_seconds())
        finally:
            with contextlib.suppress(OSError):
                self._fs.rm_file(probe)

    def holder(self) -> dict[str, Any] | None:
        """What the living owner wrote into the lock; None where there is no lock, or its lease has run out.

        Where the age cannot be asked for (who may only read the store) a lock counts as held.
        """
        document = self.read()
        if document is None:
            return None
        try:
            age = self._age_s()
        except OSError:
            return document
        return None if age is None or age > self._lease_of(document) else document

    def _lease_of(self, document: dict[str, Any]) -> float:
        return float(document.get("lease_s") or self.lease_s)

    def acquire(self) -> None:
        """Take the lock; raises CaseBusy where a living process holds it."""
        for _ in range(3):
            if self._put(mode="create"):
                self._check_honest()
                return
            held = self._info()
            if held is None:
                continue  # it was given back between the two
            document = self.read() or {}
            lease = self._lease_of(document)
            age = self._age_s()
            if age is None:
                continue
            if age <= lease:
                who, where, since = (document.get(k, "unknown") for k in ("pid", "host", "since"))
                raise CaseBusy(
                    f"{self._case_id}: another run is working on this case (process {who} on {where}, since "
                    f"{since}); wait for it to end, or {lease:g} s if it has died."
                )
            log.warning("%s: taking over the lock of a run that died (%s)", self._case_id, document)
            if self._put(**({"IfMatch": held["ETag"]} if self._conditional and "ETag" in held else {})):
                self._check_honest()
                return
        raise CaseBusy(f"{self._case_id}: other runs are taking this case at the same time; try again.")

    def _check_honest(self) -> None:
        """Refuse a store that ignores conditions: there, two runs of a case would both believe to own it."""
        place = f"{id(type(self._fs))} {getattr(self._fs, 'endpoint_url', '')} {self._path.split('/')[0]}"
        if place in _honest:
            return
        other = ObjectLock(self._fs, self._path, self._case_id, self.lease_s)
        if other._put(mode="create"):
            self._fs.rm_file(self._path)
            raise BadInput(
                f"{self._case_id}: the store ignores conditional writes (If-None-Match), so a case cannot be "
                "locked in it; use S3, MinIO of 2024 or later, or a folder."
            )
        _honest.add(place)

    def check(self) -> None:
        """Raise CaseBusy where the case is another's by now; asks the store where no beat came through."""
        if not self.lost and time.monotonic() - self._confirmed > self.lease_s / 2:
            with self._turn:
                self.renew()
        if self.lost:
            raise self.taken_over()

    def taken_over(self) -> CaseBusy:
        return CaseBusy(
            f"{self._case_id}: another run took this case over, since nothing was heard of this one for "
            f"{self.lease_s:g} s; the result is the other's, wait for it."
        )

    def beat(self) -> None:
        with self._turn:
            if not self.lost:
                self.renew()

    def renew(self) -> None:
        """Show that the owner lives; notes where the lock was taken over meanwhile."""
        condition = {"IfMatch": self._etag} if self._conditional and self._etag else {}
        try:
            if not condition and (self.read() or {}).get("owner") != self._owner:
                self.lost = True
            else:
                self.lost = not self._put(**condition)
        # Errors of the network share no root among its libraries; the next beat tries again.
        except Exception as error:
            log.warning("%s: the lock could not be renewed: %s", self._case_id, error)
        if self.lost:
            log.error("%s: the lock was taken over by another run", self._case_id)

    def release(self) -> None:
        """Give the lock back, if it is still ours; notes where another run holds it by now."""
        try:
            owner = (self.read() or {}).get("owner")
            if owner == self._owner:
                self._fs.rm_file(self._path)
            elif owner is not None:
                self.lost = True
        except Exception as error:  # as above; a lock that is not given back runs out
            log.warning("%s: the lock could not be given back: %s", self._case_id, error)


@contextlib.contextmanager
def held(fs: Any, path: str, case_id: str, lease_s: float = LEASE_S) -> Iterator[ObjectLock]:
    """Hold the lock while the body runs, which asks it before each write (`ObjectLock.check`).

    Raises CaseBusy, at the end too where the lock was lost meanwhile.
    """
    lock = ObjectLock(fs, path, case_id, lease_s)
    lock.acquire()
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(lease_s / 4) and not lock.lost:
            lock.beat()

    thread = threading.Thread(target=beat, name=f"lock of {case_id}", daemon=True)
    thread.start()
    try:
        yield lock
    finally:
        stop.set()
        thread.join()
        lock.release()
    if lock.lost:
        raise lock.taken_over()
