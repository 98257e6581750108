"""The fingerprint of what a result was computed from, and the hash of a file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

if TYPE_CHECKING:
    import numpy as np


def _plain(value: Any) -> Any:
    """A value as JSON knows it, with what JSON would blur kept apart.

    Models carry their class name, so that two specs of equal fields differ; floats and integers of
    one value are alike (a manifest's 1 and 1.0 are one pixel size).  What a model does not write
    (`exclude`) is no part of it.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, BaseModel):
        fields = {name: getattr(value, name) for name, f in type(value).model_fields.items() if not f.exclude}
        return {"__model__": type(value).__name__, **{k: _plain(v) for k, v in fields.items()}}
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            return {"__float__": repr(value)}
        return int(value) if value.is_integer() and abs(value) < 2**53 else value
    if isinstance(value, bytes):
        return {"__bytes__": hashlib.sha256(value).hexdigest()}
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, Mapping):
        if all(isinstance(k, str) for k in value):
            return {k: _plain(v) for k, v in value.items()}
        pairs = [[_plain(k), _plain(v)] for k, v in value.items()]
        return {"__pairs__": sorted(pairs, key=lambda p: json.dumps(p[0], sort_keys=True))}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, set | frozenset):
        return {"__set__": sorted((_plain(v) for v in value), key=lambda v: json.dumps(v, sort_keys=True))}
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return _plain(value.item())  # a NumPy scalar
    raise TypeError(
        f"a {type(value).__name__} has no stable fingerprint; pass a spec, its hash or its numbers"
    )


def fingerprint(*parts: Any) -> str:
    """sha256 (hex) of the canonical JSON of specs, settings, hashes, numbers and containers of them.

    The same in every process and on every machine; raises TypeError for anything without a stable
    form (arrays, functions, objects), rather than hash an address.
    """
    text = json.dumps([_plain(p) for p in parts], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def sha256_of(path: Path) -> str:
    """sha256 (hex) of a regular file; OSError for anything else, so that a pipe cannot block a night."""
    digest = hashlib.sha256()
    # O_NONBLOCK: opening a pipe without a writer must not wait for one.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise IsADirectoryError(f"{path} is not a file")
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def array_mark(values: np.ndarray[Any, Any]) -> str:
    """sha256 (hex) of an array's type, shape and content, for a `fingerprint` of what it belongs to."""
    digest = hashlib.sha256(f"{values.dtype.str} {values.shape}".encode("ascii"))
    digest.update(values.tobytes())
    return digest.hexdigest()
