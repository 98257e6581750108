"""Files that are whole or absent: written beside their place, synced, and moved there."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import BadInput
from storage.json_text import json_text

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
    write_output(path, data.tobytes())


def write_figure(path: Path, figure: Any) -> None:
    """Write a matplotlib figure as PNG as `write_output` does."""
    data = io.BytesIO()
    figure.savefig(data, format="png")
    write_output(path, data.getvalue())


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 as `write_output` does."""
    write_output(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON (`storage.json_text`) as `write_output` does."""
    write_text(path, json_text(value) + "\n")


def write_output(path: Path, data: bytes) -> None:
    """Write what was asked for, whole or not at all; raises BadInput naming the file where it cannot be."""
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
