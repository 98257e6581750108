"""BMP: what older microscope programs write, and sets of single cells as they are downloaded."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from storage.images_info import ImageInfo, plausible_pixel_size, refuse

if TYPE_CHECKING:
    from PIL import Image

_HEADER_BYTES = (12, 40, 52, 56, 64, 108, 124)  # OS/2 1 and 2, Windows versions 3 to 5
_RAW, _BITFIELDS = 0, 3


def is_bmp(head: bytes) -> bool:
    """Whether a file that begins so is a BMP: two letters alone are too little to tell."""
    return head[:2] == b"BM" and len(head) >= 18 and struct.unpack("<I", head[14:18])[0] in _HEADER_BYTES


def _opened(path: Path, stream: BinaryIO) -> Image.Image:
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # the limit is ours, and is checked before a pixel is decoded
    image = Image.open(stream, formats=("BMP",))
    # Run lengths that end early decode to a picture with a black rest.
    if image.info.get("compression", _RAW) not in (_RAW, _BITFIELDS):
        raise refuse(path, "is a compressed BMP", "export it as PNG or TIFF")
    return image


def bmp_info(path: Path, stream: BinaryIO) -> ImageInfo:
    """The header of a BMP; its pixels a metre give the pixel size where it is plausible."""
    with _opened(path, stream) as image:
        size_um: float | None = None
        notes: tuple[str, ...] = ()
        per_inch = image.info.get("dpi")
        if per_inch and all(per_inch):
            size_um, notes = plausible_pixel_size(25_400.0 / per_inch[0], 25_400.0 / per_inch[1])
        return ImageInfo(image.width, image.height, 1 if image.mode in ("1", "L") else 3, 8, size_um, notes)


def bmp_decode(path: Path, data: bytes) -> np.ndarray:
    """(H, W) or (H, W, 3) uint8; palettes are expanded, alpha is dropped."""
    with _opened(path, io.BytesIO(data)) as image:
        # Rows are stored as they are, so a header that claims more of them than there are takes no memory.
        _, _, start, (_, row_bytes, _) = image.tile[0]
        if len(data) < start + row_bytes * image.height:
            raise refuse(path, "is truncated", "copy or export it again")
        return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
