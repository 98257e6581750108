"""PNG and JPEG: headers read by hand before any decoder touches the file, and strict decoding."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from storage.images_info import ImageInfo, plausible_pixel_size, refuse

_MAX_HEADER_CHUNKS = 10_000
# Bits a sample that each colour type may have (PNG specification, 11.2.2).
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
ORIENTATION = 0x0112  # tag of EXIF
NOT_TURNED = "its EXIF orientation is not applied: it is read as its pixels are stored"
# A progressive JPEG has about ten scans, and each goes over every block: thousands of empty ones keep a
# small file decoding for minutes.
MAX_JPEG_SCANS = 100


def png_info(path: Path, stream: BinaryIO) -> ImageInfo:
    """The header of a PNG up to its first pixel data; pHYs gives the pixel size where it is plausible."""
    stream.seek(8)
    header: tuple[int, ...] | None = None
    size_um: float | None = None
    notes: tuple[str, ...] = ()
    turned: tuple[str, ...] = ()
    for _ in range(_MAX_HEADER_CHUNKS):
        head = stream.read(8)
        if len(head) < 8:
            raise refuse(path, "is truncated", "copy or export it again")
        length, name = struct.unpack(">I4s", head)
        if name == b"IDAT":
            break
        if length > 1 << 26:
            raise refuse(path, "has a damaged header", "copy or export it again")
        body = stream.read(length)
        stream.seek(4, 1)
        if name == b"IHDR" and length == 13:
            header = struct.unpack(">IIBBBBB", body)
        elif name == b"pHYs" and length == 9:
            per_x, per_y, unit = struct.unpack(">IIB", body)
            if unit == 1 and per_x and per_y:
                size_um, notes = plausible_pixel_size(1e6 / per_x, 1e6 / per_y)
        elif name == b"eXIf" and _is_turned(body):
            turned = (NOT_TURNED,)
        elif name == b"acTL":
            raise refuse(path, "is an animation", "hand in one frame as a PNG")
    if header is None:
        raise refuse(path, "has no header", "copy or export it again")
    width, height, depth, colour = header[:4]
    if depth not in _DEPTHS.get(colour, ()):
        raise refuse(path, "has a damaged header", "copy or export it again")
    channels, bits = 1 if colour in (0, 4) else 3, 16 if depth == 16 else 8
    return ImageInfo(width, height, channels, bits, size_um, notes + turned)


def _is_turned(exif: bytes) -> bool:
    """Whether EXIF, as a TIFF header and its first directory, holds an orientation that is not upright.

    Read by hand, a byte order and entries of twelve bytes, as nothing else of it is wanted.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 10:
        return False
    (at,) = struct.unpack_from(f"{order}I", exif, 4)
    if at + 2 > len(exif):
        return False
    (entries,) = struct.unpack_from(f"{order}H", exif, at)
    for start in range(at + 2, min(at + 2 + 12 * entries, len(exif) - 11), 12):
        tag, _kind, _count, value = struct.unpack_from(f"{order}HHIH", exif, start)
        if tag == ORIENTATION:
            return value not in (0, 1)
    return False


def _pixel_chunks(path: Path, data: bytes) -> bytes:
    """The PNG without texts, profiles and times: they may unpack to gigabytes, and are not needed.

    libpng is satisfied without the last chunk; a file cut before it was not written to its end.
    """
    kept, at = [data[:8]], 8
    while True:
        head = data[at : at + 8]
        if len(head) < 8:
            raise refuse(path, "is truncated", "copy or export it again")
        length, name = struct.unpack(">I4s", head)
        if name in _PIXEL_CHUNKS:
            kept.append(data[at : at + 12 + length])
        at += 12 + length
        if name == b"IEND":
            return b"".join(kept)


def png_decode(path: Path, data: bytes) -> np.ndarray:
    import imagecodecs

    pixels = imagecodecs.png_decode(_pixel_chunks(path, data))
    if pixels.ndim == 3:
        # 2 = grey + alpha, 4 = RGB + alpha.
        pixels = pixels[..., 0] if pixels.shape[2] <= 2 else pixels[..., :3]
    return pixels


def jpeg_info(path: Path, stream: BinaryIO) -> ImageInfo:
    """The header of a JPEG; its density gives the pixel size in the rare case that it is plausible."""
    from PIL import Image

    Image.MAX_IMAGE_PIXELS = None  # the limit is ours, and is checked before a pixel is decoded
    with Image.open(stream, formats=("JPEG", "MPO")) as image:
        if image.mode not in ("L", "RGB"):
            raise refuse(path, f"has the colour mode {image.mode}", "export it as RGB or grey")
        size_um: float | None = None
        notes: tuple[str, ...] = ()
        density, unit = image.info.get("jfif_density"), image.info.get("jfif_unit")
        per_unit_um = {1: 25_400.0, 2: 10_000.0}.get(unit or 0)
        if per_unit_um and density and all(density):
            size_um, notes = plausible_pixel_size(per_unit_um / density[0], per_unit_um / density[1])
        if image.getexif().get(ORIENTATION, 1) not in (0, 1):
            notes += (NOT_TURNED,)
        return ImageInfo(image.width, image.height, 1 if image.mode == "L" else 3, 8, size_um, notes)


def check_scans(path: Path, data: bytes) -> None:
    """Refuse JPEG data of more scans than any camera or program writes; in pixel data FF is never bare."""
    if data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        raise refuse(path, "has far too many scans", "export it again as a plain JPEG, PNG or TIFF")


def jpeg_decode(path: Path, data: bytes) -> np.ndarray:
    import io

    from PIL import Image, ImageFile

    check_scans(path, data)
    # Other libraries switch this on for the whole process; a half field would be counted as a whole one.
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    with Image.open(io.BytesIO(data), formats=("JPEG", "MPO")) as image:
        image.load()
        return np.asarray(image)
