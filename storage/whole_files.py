"""Files that are whole or absent: written beside their place, synced, and moved there."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.errors import BadInput

DRAFT_PREFIX = ".writing-"


@contextlib.contextmanager
def draft_of(path: Path, data: bytes) -> Iterator[str]:
    """Yield the path of a synced file beside `path` that holds `data`; it is gone afterwards unless moved."""
    handle, draft = tempfile.mkstemp(prefix=DRAFT_PREFIX, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(draft, 0o644 & ~_umask())
        yield draft
    finally:
        with contextlib.suppress(OSError):
            os.unlink(draft)
    _sync_folder(path.parent)


def write_whole(path: Path, data: bytes) -> None:
    """Write a file: a reader, and a run after a power cut, sees the old one or the new one.

    Raises OSError.
    """
    with draft_of(path, data) as draft:
        os.replace(draft, path)


def write_png(path: Path, image: np.ndarray) -> None:
    """Write an image (H, W), or (H, W, 3) RGB, uint8 or uint16 as PNG, whole or not at all.

    Raises BadInput naming the file where it cannot be written; OpenCV's own writer only returns False.
    """
    import cv2

    pixels = image if image.ndim == 2 else image[..., ::-1]
    done, data = cv2.imencode(".png", np.ascontiguousarray(pixels))
    if not done:
        raise BadInput(f"{path}: cannot be written (its {image.shape} {image.dtype} pixels fit no PNG).")
    write_picture(path, data.tobytes())


def write_picture(path: Path, data: bytes) -> None:
    """Write an encoded picture, whole or not at all; raises BadInput naming the file where it cannot be."""
    try:
        write_whole(path, data)
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be written ({error.strerror or error}); make room for it there, or choose "
            "another folder."
        ) from error


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _sync_folder(folder: Path) -> None:
    """Make the new name durable; some file systems cannot, which costs no more than the last write."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
