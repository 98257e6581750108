"""The store: named documents and arrays under one root, a local folder or any fsspec URL.

Every write is whole or absent (a local file is written beside its place, synced and moved there; an
object store's put is atomic by itself), and no key leads outside the root.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput, SmearflowError
from storage.clock import stamp
from storage.store_lock import CaseBusy, ObjectLock, create, held
from storage.whole_files import DRAFT_PREFIX, draft_of, write_whole

__all__ = ["BadKey", "CaseBusy", "Store", "check_key", "local_folder"]

LOCK_ATTEMPTS, LOCK_PAUSE_S = 4, 0.05

DRAFTS = (f"{DRAFT_PREFIX}*", "*.partial")  # this store's, and those of Zarr's local store

_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\]")


class BadKey(SmearflowError, ValueError):
    """A key that would lead outside the store, or that no file system could hold."""


def check_key(key: str) -> str:
    """The key itself; raises BadKey unless it is a relative path of plain names."""
    parts = key.split("/")
    if not key or _UNSAFE.search(key) or any(p in ("", ".", "..") or len(p.encode()) > 255 for p in parts):
        raise BadKey(f"'{key}' is no key of a store; keys are relative paths without '..'.")
    return key


def local_folder(url: str | Path) -> Path | None:
    """The folder, absolute, of a store on this machine (a path or `file://…`); None for one elsewhere."""
    text = str(url)
    if "://" in text and not text.startswith("file://"):
        return None
    return Path(os.path.abspath(text.removeprefix("file://")))


class Store:
    """Documents by key under a root; small enough to be opened anew in every worker from its `url`."""

    def __init__(self, url: str | Path) -> None:
        text = str(url)
        self.folder = local_folder(url)
        self._leases: dict[str, ObjectLock] = {}  # by case that is being written, on an object store
        if self.folder is None:
            import fsspec

            self.url = text.rstrip("/")
            # Other processes write here too, so nothing that was listed once is believed later.
            try:
                self._fs, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
            except (ValueError, ImportError) as error:
                raise BadInput(
                    f"{text}: the store cannot be opened ({error}); give a folder or an fsspec URL such as s3://…"
                ) from error
            self._root = self._root.rstrip("/")
        else:
            self.url = str(self.folder)
            self._fs, self._root = None, ""
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise BadInput(
                    f"{self.folder}: the store cannot be made here ({error}); choose a folder."
                ) from error

    def __repr__(self) -> str:
        return f"Store({self.url!r})"

    def path(self, key: str) -> Path:
        """Where a key lies on this machine; raises BadKey for a remote store or a way out of the root."""
        if self.folder is None:
            raise BadKey(f"{self.url} is not a local store; read the key through the store.")
        path = self.folder / check_key(key)
        # A link inside the store could lead out of it.
        if not path.parent.resolve().is_relative_to(self.folder.resolve()) or path.is_symlink():
            raise BadKey(f"'{key}' leads outside the store {self.folder} through a link; remove the link.")
        return path

    def _remote(self, key: str) -> str:
        return f"{self._root}/{check_key(key)}"

    def url_of(self, key: str) -> str:
        """The address that a person can open: a path, or a URL."""
        return f"{self.url}/{check_key(key)}"

    def exists(self, key: str) -> bool:
        if self.folder is not None:
            return self.path(key).exists()
        return bool(self._fs.exists(self._remote(key)))

    def size(self, key: str) -> int | None:
        """Bytes of a document, None where there is none."""
        if self.folder is not None:
            try:
                return self.path(key).stat().st_size
            except FileNotFoundError:
                return None
        self._fs.invalidate_cache()
        try:
            return int(self._fs.info(self._remote(key))["size"])
        except FileNotFoundError:
            return None

    def read_bytes(self, key: str) -> bytes:
        """A document; raises FileNotFoundError."""
        if self.folder is not None:
            return self.path(key).read_bytes()
        return bytes(self._fs.cat_file(self._remote(key)))

    def write_bytes(self, key: str, data: bytes) -> None:
        """Write a document whole: a reader, and a run after a power cut, sees the old one or the new one."""
        if self.folder is None:
            self._check_lease(key)
            self._fs.pipe_file(self._remote(key), data)
            return
        path = self.path(key)
        with self.naming_a_full_disk():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.path(key)  # once more: the parent exists now, and may be a link that someone put there
            write_whole(path, data)

    def create_bytes(self, key: str, data: bytes) -> None:
        """Write a document that is not there yet, whole; raises FileExistsError where it is."""
        if self.folder is None:
            self._check_lease(key)
            create(self._fs, self._remote(key), data)
            return
        path = self.path(key)
        with self.naming_a_full_disk():
            path.parent.mkdir(parents=True, exist_ok=True)
            self.path(key)
            with draft_of(path, data) as draft:
                os.link(draft, path)  # unlike a rename, it fails where the name is taken

    @contextlib.contextmanager
    def naming_a_full_disk(self) -> Iterator[None]:
        """Have an OSError of a full disk name the store: the system's own words name no disk at all."""
        try:
            yield
        except OSError as error:
            if self.folder is None or error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            said = os.strerror(error.errno)
            raise OSError(
                error.errno, f"{said}: the disk that holds {self.folder} is full; make room on it"
            ) from error

    def _check_lease(self, key: str) -> None:
        """Raise CaseBusy where the case of a key was ours to write and another run has taken it over."""
        lock = self._leases.get(key.split("/", 1)[0])
        if lock is not None:
            lock.check()

    def read_text(self, key: str) -> str:
        return self.read_bytes(key).decode("utf-8")

    def write_text(self, key: str, text: str) -> None:
        self.write_bytes(key, text.encode("utf-8"))

    def read_json(self, key: str) -> Any:
        """A JSON document; raises FileNotFoundError, or ValueError where it is no JSON."""
        return json.loads(self.read_bytes(key))

    def write_json(self, key: str, value: Any) -> None:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
        self.write_bytes(key, (text + "\n").encode("utf-8"))

    def list(self, prefix: str = "") -> list[str]:
        """Names (files and folders) directly under a prefix, sorted; drafts of writes are not shown."""
        if self.folder is not None:
            folder = self.path(prefix) if prefix else self.folder
            if not folder.is_dir():
                return []
            return sorted(p.name for p in folder.iterdir() if not p.name.startswith(DRAFT_PREFIX))
        self._fs.invalidate_cache()
        root = self._remote(prefix) if prefix else self._root
        try:
            found = self._fs.ls(root, detail=False)
        except FileNotFoundError:
            return []
        return sorted({str(p).rstrip("/").rsplit("/", 1)[-1] for p in found if str(p).rstrip("/") != root})

    def delete(self, key: str) -> None:
        """Remove a document or everything under a prefix; no error where there is nothing."""
        if self.folder is not None:
            import shutil

            path = self.path(key)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            return
        self._check_lease(key)
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm(self._remote(key), recursive=True)

    def sweep(self, prefix: str) -> int:
        """Remove the drafts that writers killed in the middle left under a prefix; returns how many.

        To be called with the case's lock held.  A remote store keeps no drafts.
        """
        if self.folder is None or not self.path(prefix).is_dir():
            return 0
        drafts = [p for pattern in DRAFTS for p in self.path(prefix).rglob(pattern) if p.is_file()]
        for draft in drafts:
            draft.unlink(missing_ok=True)
        return len(drafts)

    def zarr_store(self, case_id: str) -> Any:
        """The Zarr store object of `<case>/case.zarr`."""
        key = f"{check_key(case_id)}/case.zarr"
        if self.folder is not None:
            from zarr.storage import LocalStore

            return LocalStore(self.path(key))
        from zarr.storage import FsspecStore

        return FsspecStore.from_url(self.url_of(key))

    @contextlib.contextmanager
    def writing(self, case_id: str) -> Iterator[None]:
        """Hold a case for writing; raises CaseBusy where another process holds it.

        On a local store the lock is the kernel's and ends with its process, however it dies; who holds it
        stands in the file for people to read.  On an object store it is a lease (`storage.store_lock`), free
        again two minutes after its process died.
        """
        if self.folder is None:
            with held(self._fs, self._remote(f"{case_id}/.lock"), case_id) as lock:
                self._leases[case_id] = lock
                try:
                    yield
                finally:
                    del self._leases[case_id]
            return
        import fcntl

        path = self.path(f"{case_id}/.lock")
        with self.naming_a_full_disk():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        # Unbuffered: what a full disk did not take would be tried again, and raised, when the file is closed.
        with path.open("a+b", buffering=0) as stream:
            for attempt in range(LOCK_ATTEMPTS):
                try:
                    fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError as error:
                    if attempt == LOCK_ATTEMPTS - 1:
                        raise CaseBusy(
                            f"{case_id}: another run is working on this case in {self.folder}; "
                            "wait for it to end."
                        ) from error
                    time.sleep(LOCK_PAUSE_S)  # it may have been only a look (`holder`)
            with contextlib.suppress(OSError):  # a full disk must not keep a case from being looked at
                stream.truncate(0)
                me = {"pid": os.getpid(), "host": socket.gethostname(), "since": stamp()}
                stream.write(json.dumps(me).encode())
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    stream.truncate(0)

    def holder(self, case_id: str) -> dict[str, Any] | None:
        """Who holds a case for writing now: {"pid", "host", "since"}, as far as known; None: nobody does.

        On an object store it may name a process that died within the last two minutes, and the store's clock
        is read by an object written and removed beside the lock.
        """
        if self.folder is None:
            return ObjectLock(self._fs, self._remote(f"{case_id}/.lock"), case_id).holder()
        import fcntl

        try:
            with self.path(f"{case_id}/.lock").open("r") as stream:
                try:
                    fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    return None
                except OSError:
                    text = stream.read()
        except OSError:
            return None
        try:
            found = json.loads(text)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}
