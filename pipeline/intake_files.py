"""The files of a case folder: what may be opened, and how, without leaving the folder or waiting on it."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

from pipeline.errors import BadInput, shown
from storage.fingerprint import sha256_of

# Names that the store has for itself, beside the cases.
RESERVED = ("nights", "audit")

_CASE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}")


def check_case_id(case_id: str) -> str:
    """The id itself; raises BadInput unless it can be a folder, a key and a link everywhere."""
    if case_id.lower() in RESERVED:
        raise BadInput(f"'{case_id}' is a name of the store's own; give the case's folder another.")
    if not _CASE_ID.fullmatch(case_id) or case_id.startswith("results.db"):
        raise BadInput(
            f"'{shown(case_id, 80)}' is no case id; name the folder with 1 to 64 of A-Z a-z 0-9 . _ - and no "
            "leading dot."
        )
    return case_id


def inside(case_dir: Path, file: str) -> Path:
    """The path of a file of the case; raises BadInput where it lies, or is linked, outside the folder."""
    problem = None
    if not file or not file.isprintable() or len(file) > 1000:
        problem = "is no file name"  # what cannot be shown would turn a report's or a terminal's line around
    elif PurePosixPath(file).is_absolute() or PureWindowsPath(file).drive or PureWindowsPath(file).root:
        problem = "is an absolute path"
    elif ".." in PurePosixPath(file).parts:
        problem = "leads out of the case folder"
    if problem is None:
        path = case_dir / file
        try:
            if path.resolve().is_relative_to(case_dir.resolve()):
                return path
            problem = "is a link to outside the case folder"
        except (OSError, RuntimeError, ValueError):
            problem = "cannot be resolved (a loop of links, or too long a name)"
    found = f"{case_dir}: the file '{shown(file, 200)}' {problem}"
    raise BadInput(f"{found}; put the image into the folder under a plain name.")


def sha256_slide(path: Path) -> str:
    """sha256 of a whole slide: of its file, and of those beside it where the slide is many files."""
    from storage.slides_companions import companions

    others = companions(path)
    if not others:
        return sha256_of(path)
    lines = [f"{sha256_of(p)} {p.relative_to(path.parent).as_posix()}" for p in (path, *others)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_regular_file(path: Path, max_bytes: int) -> bytes:
    """The bytes of a regular file; raises OSError for anything else, or anything larger."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
        found = os.fstat(stream.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError("it is not a file")
        if found.st_size > max_bytes:
            raise OSError(f"it has {found.st_size >> 20} MiB; hand it in as a whole-slide file")
        return stream.read()


def read_small(case_dir: Path, name: str, limit: int) -> bytes | None:
    """A small text file of the case folder, or None where there is none."""
    path = inside(case_dir, name)
    if not path.is_file():
        if path.exists():
            raise BadInput(f"{path} is not a file; replace it by one.")
        return None
    try:
        if path.stat().st_size > limit:
            raise BadInput(f"{path} is larger than {limit >> 10} kB; it is not what its name says.")
        return path.read_bytes()
    except OSError as error:
        raise BadInput(f"{path} cannot be read ({error.strerror}); check who may read it.") from error
