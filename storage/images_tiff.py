"""TIFF and OME-TIFF field images: one plane, or one plane a channel.

Pages are read from the one stream that is handed in, never through a reader that follows the file
names in OME-XML, so that nothing outside the case folder is opened.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pipeline.errors import UnreadableImage
from storage.images_info import ImageInfo, damaged, plausible_pixel_size, refuse
from storage.images_png_jpeg import check_scans

_EXPORT = "export one focal plane as a plain 8- or 16-bit TIFF"
_MAX_PAGES = 4096
_UNIT_UM = {
    "": 1.0, "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0,
    "micrometre": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "m": 1e6, "å": 1e-4, "inch": 25_400.0,
    "in": 25_400.0,
}  # fmt: skip
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _YCBCR = 0, 1, 2, 3, 6
_JPEG = (6, 7)


@contextmanager
def _planes(path: Path, stream: BinaryIO) -> Iterator[tuple[Any, list[Any]]]:
    """The opened file and the page of each channel (one page where it holds all channels)."""
    import tifffile

    # What it finds odd in a damaged file ends in our one sentence; its own lines would stand beside it.
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    with tifffile.TiffFile(stream, name=path.name, _multifile=False) as tif:
        if len(tif.pages) > _MAX_PAGES:
            raise refuse(path, f"holds {len(tif.pages)} pages", _EXPORT)
        # Reduced images (pyramid levels, thumbnails) are no planes of the field.
        pages = [p for p in (tif.pages[i] for i in range(len(tif.pages))) if not p.subfiletype & 1]
        pages = pages or [tif.pages[0]]
        first = max(pages, key=lambda p: p.imagewidth * p.imagelength)
        same = [p for p in pages if (p.imagewidth, p.imagelength) == (first.imagewidth, first.imagelength)]
        if len(same) > 1 and not _are_channels(path, tif, same):
            raise refuse(path, f"holds {len(same)} planes (a stack, a series or several images)", _EXPORT)
        yield tif, same


def _are_channels(path: Path, tif: Any, pages: list[Any]) -> bool:
    """Whether several pages are the colours of one plane: exactly three grey ones, and the file says so."""
    grey = all(p.samplesperpixel == 1 for p in pages)
    ome = _ome_pixels(tif)
    if ome is not None:
        stack = [f"{k[4:]}={ome[k]}" for k in ("SizeZ", "SizeT") if ome.get(k, "1") != "1"]
        if stack:
            raise refuse(path, f"is a stack ({', '.join(stack)})", _EXPORT)
        return grey and len(pages) == 3 and ome.get("SizeC") == "3"
    imagej = tif.imagej_metadata or {}
    return grey and len(pages) == 3 and imagej.get("channels") == 3 and "slices" not in imagej


def _ome_pixels(tif: Any) -> dict[str, str] | None:
    """The attributes of the first <Pixels> of the OME-XML, or None.

    Read with a regular expression: the five attributes needed do not warrant an XML parser on
    untrusted input.
    """
    text = tif.pages[0].description or ""
    if "<OME" not in text[:4000] and ":OME" not in text[:4000]:
        return None
    tag = re.search(r"<(?:\w+:)?Pixels\b([^>]{0,4000})>", text)
    if tag is None:
        return None
    return {k: v for k, _, v in re.findall(r"(\w+)\s*=\s*([\"'])(.*?)\2", tag.group(1))}


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else None
    except ValueError:
        return None
    return value if value is not None and np.isfinite(value) and value > 0 else None


def _unescape(text: str) -> str:
    import html

    return html.unescape(text).strip().lower()


def _pixel_size(tif: Any, page: Any) -> tuple[float | None, tuple[str, ...]]:
    ome = _ome_pixels(tif)
    if ome is not None and "PhysicalSizeX" in ome:
        sizes: list[float | None] = []
        for axis in "XY":
            value = _number(ome.get(f"PhysicalSize{axis}"))
            factor = _UNIT_UM.get(_unescape(ome.get(f"PhysicalSize{axis}Unit", "µm")))
            sizes.append(None if value is None or factor is None else value * factor)
        return plausible_pixel_size(sizes[0], sizes[1])
    per_x, per_y = (_ratio(page.tags.get(name)) for name in ("XResolution", "YResolution"))
    unit_tag = page.tags.get("ResolutionUnit")
    unit_um = {2: 25_400.0, 3: 10_000.0}.get(int(unit_tag.value) if unit_tag is not None else 2)
    imagej = tif.imagej_metadata if tif.is_imagej else None
    if imagej and imagej.get("unit"):
        unit_um = _UNIT_UM.get(_unescape(str(imagej["unit"]).replace("\\u00B5", "µ")), unit_um)
    if per_x is None or unit_um is None:
        aperio = re.search(r"\bMPP\s*=\s*([0-9.]+)", page.description or "")
        return plausible_pixel_size(_number(aperio.group(1)) if aperio else None)
    return plausible_pixel_size(unit_um / per_x, None if per_y is None else unit_um / per_y)


def _ratio(tag: Any) -> float | None:
    if tag is None:
        return None
    try:
        numerator, denominator = tag.value
    except (TypeError, ValueError):
        return None
    return numerator / denominator if numerator and denominator else None


def _channels(path: Path, page: Any) -> int:
    """1 or 3; refuses sample types and photometric interpretations that are no plain picture."""
    photometric, samples = int(page.photometric), page.samplesperpixel
    if page.dtype is None or page.dtype.kind != "u" or page.bitspersample not in (8, 10, 12, 14, 16):
        kinds = {1: "unsigned integers", 2: "signed integers", 3: "floating-point numbers"}
        what = kinds.get(int(page.sampleformat), "samples of an unknown kind")
        raise refuse(path, f"holds {page.bitspersample}-bit {what}", _EXPORT)
    if page.imagedepth > 1:
        raise refuse(path, "holds a volume", _EXPORT)
    if photometric == _PALETTE and samples == 1:
        return 3
    if photometric in (_WHITE_IS_ZERO, _BLACK_IS_ZERO) and samples - len(page.extrasamples) == 1:
        return 1
    if photometric == _RGB and samples in (3, 4):
        return 3
    if photometric == _YCBCR and samples == 3 and int(page.compression) in _JPEG:
        return 3
    raise refuse(path, f"has {samples} channels of the kind {page.photometric!s}", "export it as RGB or grey")


def info(path: Path, stream: BinaryIO) -> ImageInfo:
    """The header of a TIFF."""
    with _planes(path, stream) as (tif, pages):
        page = pages[0]
        channels = 3 if len(pages) == 3 else _channels(path, page)
        if len(pages) == 3:
            for one in pages:
                _channels(path, one)
        bits = 8 if page.bitspersample == 8 else 16
        size_um, notes = _pixel_size(tif, page)
        orientation = page.tags.get("Orientation")
        if orientation is not None and orientation.value not in (0, 1):
            notes += ("its orientation tag is not applied: it is read as its pixels are stored",)
        camera_bits = None if bits == 8 else _camera_bits(tif, page)
        return ImageInfo(page.imagewidth, page.imagelength, channels, bits, size_um, notes, camera_bits)


def _camera_bits(tif: Any, page: Any) -> int | None:
    """Bits that the camera fills of 16: those that are packed, else OME's SignificantBits."""
    stated = int(page.bitspersample)
    significant = (_ome_pixels(tif) or {}).get("SignificantBits", "")
    if stated == 16 and re.fullmatch(r"\d{1,2}", significant):
        stated = int(significant)
    return stated if 8 <= stated < 16 else None


def has_levels(path: Path) -> bool:
    """Whether a TIFF holds its image in reduced sizes as well: flagged so or not, or in SubIFDs.

    False where it cannot be read.
    """
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)
    try:
        with damaged(path), tifffile.TiffFile(path, _multifile=False) as tif:
            first = tif.pages[0]
            if first.subifds:
                return True
            others = (tif.pages[i] for i in range(1, min(len(tif.pages), 64)))
            shrunk = ((p.imagewidth / first.imagewidth, p.imagelength / first.imagelength) for p in others)
            return any(x < 0.9 and abs(x / y - 1) < 0.05 for x, y in shrunk)
    except UnreadableImage:
        return False


def decode(path: Path, stream: BinaryIO, max_pixels: int) -> np.ndarray:
    """The pixels of a TIFF whose header `info` accepted."""
    file_bytes = stream.seek(0, 2)
    stream.seek(0)
    with _planes(path, stream) as (_, pages):
        for page in pages:
            _check_segments(path, page, file_bytes, max_pixels)
            if int(page.compression) in _JPEG:
                for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                    stream.seek(offset)
                    check_scans(path, stream.read(count))
        planes = [_plane(page) for page in pages]
    return planes[0] if len(planes) == 1 else np.stack(planes, axis=2)


def _check_segments(path: Path, page: Any, file_bytes: int, max_pixels: int) -> None:
    """Every strip or tile must lie in the file and decode to no more than the image could need.

    Decoders fill a missing strip with zeros and some half-read JPEG strips with grey, without a word.
    """
    cut = refuse(path, "is truncated", "copy or export it again")
    offsets, counts = page.dataoffsets, page.databytecounts
    if not offsets or len(offsets) != len(counts):
        raise cut
    segment = page.tilewidth * page.tilelength if page.is_tiled else page.imagewidth * page.rowsperstrip
    if page.is_tiled and (
        segment > max_pixels
        or page.tilewidth > 16 * page.imagewidth + 4096
        or page.tilelength > 16 * page.imagelength + 4096
    ):
        raise refuse(path, f"has tiles of {page.tilewidth} x {page.tilelength} pixels", "export it again")
    expected = int(np.prod(page.chunked)) if page.chunked else 1
    if len(offsets) < expected:
        raise cut
    for offset, count in zip(offsets, counts, strict=True):
        if count <= 0 or offset <= 0 or offset + count > file_bytes:
            raise cut
    if int(page.compression) == 1:
        needed = page.imagewidth * page.imagelength * page.samplesperpixel * page.bitspersample // 8
        if sum(counts) < needed:
            raise cut
    # No codec here packs tighter than deflate's 1032:1 (JPEG: 64 pixels in a few bits).
    if segment > 2000 * max(counts) * 8 and segment > 1 << 24:
        raise refuse(path, "claims far more pixels than its data can hold", "export it again")


def _plane(page: Any) -> np.ndarray:
    pixels: np.ndarray = page.asarray()
    if pixels.ndim == 3 and page.planarconfig == 2:
        pixels = np.moveaxis(pixels, 0, 2)
    if int(page.photometric) == _PALETTE:
        colours = np.asarray(page.colormap)  # (3, 2**bits) uint16
        expanded = np.moveaxis(colours[:, pixels], 0, 2)
        # Some writers keep 8-bit values in the 16-bit map.
        return (expanded >> 8 if colours.max() > 255 else expanded).astype(np.uint8)
    if pixels.ndim == 3:
        pixels = pixels[..., 0] if pixels.shape[2] < 3 else pixels[..., :3]
    if int(page.photometric) == _WHITE_IS_ZERO:
        pixels = np.array((2**page.bitspersample - 1) - pixels.astype(np.int32)).astype(pixels.dtype)
    return pixels
