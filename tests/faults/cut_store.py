"""A remote store whose connection can be cut: the folder behind `cut://` while no file `CUT` lies in it."""

from __future__ import annotations

import os
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

SWITCH = "CUT"
ROOT = "SMEARFLOW_CUT_ROOT"


class CutFileSystem(LocalFileSystem):
    """The local disk behind a line that can be cut; every operation goes over the line."""

    protocol = "cut"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        if isinstance(path, list):
            return [cls._strip_protocol(p) for p in path]
        return super()._strip_protocol(str(path).removeprefix("cut://"))

    def _line(self) -> None:
        folder = os.environ.get(ROOT)
        if folder and os.path.exists(os.path.join(folder, SWITCH)):
            raise ConnectionResetError("the connection to the store was cut")


def _over_the_line(name: str) -> Any:
    def operation(self: CutFileSystem, *args: Any, **kwargs: Any) -> Any:
        self._line()
        return getattr(super(CutFileSystem, self), name)(*args, **kwargs)

    return operation


for _name in (
    "info",
    "ls",
    "_open",
    "rm",
    "rm_file",
    "cat_file",
    "pipe_file",
    "exists",
    "modified",
    "mv",
    "mkdirs",
    "makedirs",
):
    setattr(CutFileSystem, _name, _over_the_line(_name))


def _pipe_file(self: CutFileSystem, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
    """An object store's put: whole or absent, folders are of no account."""
    self._line()
    target = self._strip_protocol(path)
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if mode == "create":
        with open(target, "xb") as stream:  # raises FileExistsError, as a conditional put does
            stream.write(value)
        return
    draft = f"{target}.{os.getpid()}.put"
    with open(draft, "wb") as stream:
        stream.write(value)
    os.replace(draft, target)


CutFileSystem.pipe_file = _pipe_file  # type: ignore[method-assign]


def register() -> None:
    fsspec.register_implementation("cut", CutFileSystem, clobber=True)
