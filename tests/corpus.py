"""A corpus of damaged, lying and hostile image files, made anew from fixed seeds; no file is shipped.

`corpus(folder)` writes it and says of each file what may become of it: `refused` (one sentence),
`read` (a picture that must come out) or `either`.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import imagecodecs
import numpy as np
import tifffile
from PIL import Image

Fate = Literal["refused", "read", "either"]


@dataclass(frozen=True)
class Damaged:
    """One file of the corpus."""

    name: str
    data: bytes
    fate: Fate = "either"


def field(height: int = 120, width: int = 160) -> np.ndarray:
    """(H, W, 3) uint8: a stained disc on glass with noise, large enough to pass intake."""
    rng = np.random.default_rng(3)
    image = np.full((height, width, 3), (228, 222, 226), np.uint8)
    image[30:80, 40:100] = (120, 70, 160)
    return np.clip(image + rng.integers(-9, 10, image.shape), 0, 255).astype(np.uint8)


def tiff(pixels: np.ndarray, **how: Any) -> bytes:
    stream = io.BytesIO()
    how.setdefault("photometric", "rgb" if pixels.ndim == 3 else "minisblack")
    tifffile.imwrite(stream, pixels, **how)
    return stream.getvalue()


def pillow(pixels: np.ndarray, kind: str, mode: str | None = None, **how: Any) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(stream, kind, **how)
    return stream.getvalue()


def svs(height: int = 600, width: int = 800) -> bytes:
    """An Aperio-like pyramid with label and macro images."""
    big = np.tile(field(), (height // 120, width // 160, 1))
    text = f"Aperio Image Library v11.2.1\r\n{width}x{height} [0,0 {width}x{height}] (240x240) Q=70"
    how: dict[str, Any] = {"photometric": "rgb", "tile": (240, 240), "compression": "zlib", "metadata": None}
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        writer.write(big, description=text + "|AppMag = 20|MPP = 0.5", **how)
        writer.write(big[::4, ::4], photometric="rgb", metadata=None)
        writer.write(big[::2, ::2], description=text, **how)
        writer.write(field(100, 100), photometric="rgb", description="label 100x100", subfiletype=1)
        writer.write(field(90, 200), photometric="rgb", description="macro 200x90", subfiletype=9)
    return stream.getvalue()


def wholes() -> dict[str, bytes]:
    """Sound files, one of each kind; the damaged ones are made of these."""
    colour, grey = field(), field()[..., 1]
    return {
        "plain.tif": tiff(colour),
        "lzw.tif": tiff(colour, compression="lzw", rowsperstrip=16, predictor=True),
        "deflate.tif": tiff(colour, compression="zlib"),
        "jpeg.tif": tiff(colour, compression="jpeg"),
        "tiled.tif": tiff(colour, tile=(32, 48), compression="lzw"),
        "big.tif": tiff(colour, bigtiff=True),
        "motorola.tif": tiff(grey.astype(np.uint16) * 16, byteorder=">"),
        "ome.tif": tiff(colour, ome=True, metadata={"PhysicalSizeX": 0.1, "PhysicalSizeY": 0.1}),
        "rgb.png": imagecodecs.png_encode(colour),
        "grey16.png": imagecodecs.png_encode(grey.astype(np.uint16) * 16),
        "rgb.jpg": pillow(colour, "JPEG", quality=90),
        "progressive.jpg": pillow(colour, "JPEG", quality=90, progressive=True),
        "bitmap.bmp": pillow(colour, "BMP"),
        "slide.svs": svs(),
    }


def truncated(name: str, data: bytes) -> Iterator[Damaged]:
    """Cut at every depth; a PNG or slide may lack its last bytes and still be told apart from a whole one."""
    places = [0, 1, 3, 8, 12, 20, 40, 100, 300, *(int(len(data) * s) for s in (0.1, 0.3, 0.6, 0.9)), -200, -1]
    stem, suffix = name.rsplit(".", 1)
    for place in places:
        cut = data[:place]
        yield Damaged(f"cut-{stem}-{len(cut)}.{suffix}", cut)


def flipped(name: str, data: bytes, count: int) -> Iterator[Damaged]:
    """Bits flipped, half of them in the first kilobyte, where the structure is."""
    stem, suffix = name.rsplit(".", 1)
    rng = np.random.default_rng(sum(map(ord, name)))
    # The tables of a slide or a TIFF may stand at its end.
    for number in range(count):
        changed = bytearray(data)
        for _ in range(int(rng.integers(1, 12))):
            zone = (0, min(1024, len(data))) if rng.random() < 0.5 else (0, len(data))
            zone = (max(0, len(data) - 1500), len(data)) if rng.random() < 0.2 else zone
            changed[int(rng.integers(*zone))] ^= 1 << int(rng.integers(8))
        yield Damaged(f"flip-{stem}-{number}.{suffix}", bytes(changed))


def with_tag(data: bytes, name: str, value: int | None, *, count: int | None = None) -> bytes:
    """A TIFF whose first page states another value (or number of values) for a tag."""
    changed = bytearray(data)
    with tifffile.TiffFile(io.BytesIO(data)) as tif:
        tag = tif.pages.first.tags[name]
        order = tif.byteorder
        if count is not None:
            struct.pack_into(f"{order}I", changed, tag.offset + 4, count)
        if value is not None:
            kind = {1: "B", 3: "H", 4: "I", 16: "Q"}[int(tag.dtype)]
            value &= (1 << 8 * struct.calcsize(kind)) - 1
            struct.pack_into(f"{order}{kind}", changed, tag.valueoffset, value)
    return bytes(changed)


def _wide(pixels: np.ndarray, **how: Any) -> bytes:
    """A TIFF whose sizes are written in 32 bits, so that any lie fits."""
    data = bytearray(tiff(pixels, **how))
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as tif:
        for name in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            tag = tif.pages.first.tags.get(name)
            if tag is not None and tag.count == 1:
                struct.pack_into("<HII", data, tag.offset + 2, 4, 1, int(tag.value))
    return bytes(data)


def lying_tiffs() -> Iterator[Damaged]:
    data = _wide(field())
    sizes = (0, 2**16, 2**31 - 1, 2**31, 2**32 - 1)
    for tag in ("ImageWidth", "ImageLength"):
        for size in sizes:
            yield Damaged(f"lie-{tag}-{size}.tif", with_tag(data, tag, size), "refused")
    both = with_tag(with_tag(data, "ImageWidth", 2**31), "ImageLength", 2**31)
    yield Damaged("lie-2e31-both.tif", both, "refused")
    none = with_tag(with_tag(data, "ImageWidth", 0), "ImageLength", 0)
    yield Damaged("lie-no-pixels.tif", none, "refused")
    for size in (0, 2**31, 2**32 - 1):
        yield Damaged(f"lie-rows-{size}.tif", with_tag(data, "RowsPerStrip", size))
        yield Damaged(f"lie-strip-at-{size}.tif", with_tag(data, "StripOffsets", size))
    for samples in (0, 2, 5, 65535):
        lie = with_tag(data, "SamplesPerPixel", samples)
        yield Damaged(f"lie-samples-{samples}.tif", lie, "refused")
    for tag in ("BitsPerSample", "StripOffsets", "StripByteCounts", "ImageWidth"):
        for count in (0, 2**31, 2**32 - 1):
            yield Damaged(f"lie-count-{tag}-{count}.tif", with_tag(data, tag, None, count=count))
    for code in (2, 5, 7, 8, 6, 9, 32773, 34712, 50001, 60000):
        yield Damaged(f"lie-compression-{code}.tif", with_tag(data, "Compression", code))
    for kind in (3, 5, 8, 32803, 65535):
        yield Damaged(f"lie-photometric-{kind}.tif", with_tag(data, "PhotometricInterpretation", kind))
    tiles = tiff(field(), tile=(32, 48), compression="lzw")
    for tag in ("TileWidth", "TileLength"):
        for size in (0, 1, 2**15, 2**31):
            yield Damaged(f"lie-{tag}-{size}.tif", with_tag(tiles, tag, size))
    changed = bytearray(tiff(field()))
    first = struct.unpack_from("<I", changed, 4)[0]
    entries = struct.unpack_from("<H", changed, first)[0]
    struct.pack_into("<I", changed, first + 2 + 12 * entries, first)
    yield Damaged("lie-pages-in-a-ring.tif", bytes(changed))
    struct.pack_into("<H", changed, first, 65535)
    yield Damaged("lie-65535-tags.tif", bytes(changed))


def lying_pngs() -> Iterator[Damaged]:
    def png(width: int, height: int, depth: int = 8, colour: int = 2, data: bytes = b"\0" * 5000) -> bytes:
        body = b"IHDR" + struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
        return _chunks(body, b"IDAT" + zlib.compress(data), b"IEND")

    for width, height in ((0, 0), (0, 9), (2**31 - 1, 2**31 - 1), (2**31, 2**31), (2**32 - 1, 1)):
        yield Damaged(f"lie-{width}x{height}.png", png(width, height), "refused")
    yield Damaged("lie-more-rows.png", png(160, 30_000), "refused")
    for depth, colour in ((3, 2), (0, 0), (255, 0), (8, 1), (8, 7), (1, 2), (2, 6)):
        yield Damaged(f"lie-depth-{depth}-colour-{colour}.png", png(20, 20, depth, colour), "refused")
    yield Damaged("lie-palette-without.png", png(20, 20, 8, 3))
    whole = imagecodecs.png_encode(field())
    yield Damaged("lie-checksum.png", whole[:29] + b"\0\0\0\0" + whole[33:])
    bomb = b"zTXt" + b"Comment\0\0" + zlib.compress(b"\0" * (100 << 20), 9)
    profile = b"iCCP" + b"p\0\0" + zlib.compress(b"\0" * (100 << 20), 9)
    for name, chunk in (("text", bomb), ("profile", profile)):
        yield Damaged(f"bomb-{name}.png", whole[:33] + _chunk(chunk) + whole[33:])
    size = 30_000  # 2.7 GB of black, in 2.6 MB
    rows = zlib.compressobj(9)
    line = b"\0" * (1 + 3 * size)
    packed = b"".join(rows.compress(line) for _ in range(400)) + rows.flush()
    header = b"IHDR" + struct.pack(">IIBBBBB", size, size, 8, 2, 0, 0, 0)
    yield Damaged("bomb-pixels.png", _chunks(header, b"IDAT" + packed, b"IEND"), "refused")


def lying_slides() -> Iterator[Damaged]:
    """Slides whose first level states other sizes, tiles, places and scales than it has."""
    data = bytearray(svs())
    with tifffile.TiffFile(io.BytesIO(bytes(data))) as tif:
        for name in ("ImageWidth", "ImageLength", "TileWidth", "TileLength"):
            tag = tif.pages.first.tags[name]
            struct.pack_into("<HII", data, tag.offset + 2, 4, 1, int(tag.value))
    whole = bytes(data)
    for tag in ("ImageWidth", "ImageLength"):
        for size in (0, 1, 20_000, 2**31 - 1, 2**31, 2**32 - 1):
            yield Damaged(f"lie-{tag}-{size}.svs", with_tag(whole, tag, size))
    vast = with_tag(with_tag(whole, "ImageWidth", 2**31 - 1), "ImageLength", 2**31 - 1)
    yield Damaged("lie-2e31-both.svs", vast, "refused")
    for tag in ("TileWidth", "TileLength"):
        for size in (0, 1, 2**16, 2**31):
            yield Damaged(f"lie-{tag}-{size}.svs", with_tag(whole, tag, size))
    for tag in ("TileOffsets", "TileByteCounts"):
        for count in (0, 1, 2**31):
            yield Damaged(f"lie-count-{tag}-{count}.svs", with_tag(whole, tag, None, count=count))
    for code in (1, 7, 33003, 33005, 34712, 60000):
        yield Damaged(f"lie-compression-{code}.svs", with_tag(whole, "Compression", code))
    for text in (b"|MPP = 0.0", b"|MPP = 1e9", b"|MPP = -.5", b"|MPP = nan"):
        yield Damaged(
            f"lie{text[7:].decode()}.svs".replace(" ", "-"), whole.replace(b"|MPP = 0.5", text[:10])
        )


def _chunk(body: bytes) -> bytes:
    return struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))


def _chunks(*bodies: bytes) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, bodies))


def lying_jpegs() -> Iterator[Damaged]:
    data = pillow(field(), "JPEG")
    at = data.index(b"\xff\xc0")
    for width, height in ((0, 0), (65535, 65535), (65535, 1), (160, 0), (161, 121)):
        lie = data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]
        yield Damaged(f"lie-{width}x{height}.jpg", lie)
    for channels in (0, 2, 4, 255):
        yield Damaged(f"lie-channels-{channels}.jpg", data[: at + 9] + bytes([channels]) + data[at + 10 :])
    wave = pillow(np.tile(field(), (25, 20, 1)), "JPEG", progressive=True, quality=30)
    scan = wave.index(b"\xff\xda")
    second = wave.index(b"\xff\xda", scan + 2)
    # Each scan of a progressive JPEG goes over every block of the picture.
    again = wave[:scan] + wave[scan:second] * 3000 + wave[second:]
    yield Damaged("bomb-scans.jpg", again, "refused")


def lying_bmps() -> Iterator[Damaged]:
    """Headers of a BMP that claim more than the file holds, or what is not read."""
    whole = pillow(field(), "BMP")

    def with_field(at: int, kind: str, value: int) -> bytes:
        return whole[:at] + struct.pack(kind, value) + whole[at + struct.calcsize(kind) :]

    yield Damaged("lie-wide.bmp", with_field(18, "<i", 19_000), "refused")
    yield Damaged("lie-high.bmp", with_field(22, "<i", 1_000_000), "refused")
    yield Damaged("lie-huge.bmp", with_field(18, "<i", 2**31 - 1), "refused")
    yield Damaged("lie-offset.bmp", with_field(10, "<I", 2**31), "refused")
    yield Damaged("lie-run-lengths.bmp", with_field(30, "<I", 1), "refused")
    yield Damaged("lie-jpeg-inside.bmp", with_field(30, "<I", 4), "refused")
    yield Damaged("lie-bits.bmp", with_field(28, "<H", 7), "refused")


def odd_kinds() -> Iterator[Damaged]:
    """Sound files of kinds that a smear is not photographed in, and what only claims to be an image."""
    colour, grey = field(), field()[..., 1]
    four = np.dstack([colour, grey])
    yield Damaged("kind-float.tif", tiff(colour.astype(np.float32) / 255), "refused")
    yield Damaged("kind-half.tif", tiff(grey.astype(np.float16)), "refused")
    yield Damaged("kind-int32.tif", tiff(grey.astype(np.int32)), "refused")
    yield Damaged("kind-complex.tif", tiff(grey.astype(np.complex64)), "refused")
    yield Damaged("kind-1-bit.tif", pillow(grey, "TIFF", "1"), "refused")
    yield Damaged("kind-cmyk.tif", tiff(four, photometric="separated"), "refused")
    yield Damaged("kind-cielab.tif", tiff(colour, photometric="cielab"), "refused")
    yield Damaged("kind-2-channels.tif", tiff(four[..., :2], photometric="minisblack", planarconfig="contig"))
    yield Damaged("kind-5-channels.tif", tiff(np.dstack([four, grey]), photometric="rgb"), "refused")
    yield Damaged("kind-stack.tif", tiff(np.stack([grey] * 4), photometric="minisblack"), "refused")
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as writer:
        for _ in range(5000):
            writer.write(grey[:2, :2], contiguous=False, metadata=None)
    yield Damaged("kind-5000-pages.tif", stream.getvalue(), "refused")
    yield Damaged("kind-rgb16.tif", tiff(colour.astype(np.uint16) * 256), "read")
    yield Damaged("kind-alpha.tif", tiff(four, extrasamples=["unassalpha"]), "read")
    yield Damaged("kind-palette.png", pillow(colour, "PNG", "P"), "read")
    yield Damaged("kind-1-bit.png", pillow(grey, "PNG", "1"), "read")
    yield Damaged("kind-grey-alpha.png", pillow(colour, "PNG", "LA"), "read")
    yield Damaged("kind-rgb16.png", imagecodecs.png_encode(colour.astype(np.uint16) * 256), "read")
    yield Damaged("kind-cmyk.jpg", pillow(colour, "JPEG", "CMYK"), "refused")
    yield Damaged("kind-grey.jpg", pillow(grey, "JPEG"), "read")
    yield Damaged("kind-one-pixel.png", imagecodecs.png_encode(colour[:1, :1]), "read")
    yield Damaged("kind-grey.bmp", pillow(grey, "BMP"), "read")
    yield Damaged("kind-1-bit.bmp", pillow(grey, "BMP", "1"), "read")
    yield Damaged("kind-palette.bmp", pillow(colour, "BMP", "P"), "read")
    for kind in ("GIF", "WEBP", "PPM", "ICO"):
        yield Damaged(f"kind-{kind.lower()}.png", pillow(colour, kind), "refused")
    frames = [Image.fromarray(colour), Image.fromarray(255 - colour)]
    moving = io.BytesIO()
    frames[0].save(moving, "PNG", save_all=True, append_images=frames[1:])
    yield Damaged("kind-animated.png", moving.getvalue(), "refused")
    texts = {
        "zeros.tif": b"\0" * 4096,
        "empty.tif": b"",
        "page.jpg": b"<html><script>alert(1)</script></html>",
        "archive.tif": b"PK\x03\x04" + b"\0" * 500,
        "script.png": b"#!/bin/sh\nrm -rf /\n",
        "drawing.png": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "pickle.tif": b"\x80\x04\x95\x1b\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.",
        "magic-only.tif": b"II*\0",
        "magic-only.png": b"\x89PNG\r\n\x1a\n",
        "magic-only.jpg": b"\xff\xd8\xff",
        "magic-only.svs": b"II*\0\x08\0\0\0",
        "text.ndpi": b"no slide at all",
        "text.mrxs": b"no slide at all",
    }
    yield from (Damaged(f"kind-{name}", data, "refused") for name, data in texts.items())


def bomb_tiff() -> Iterator[Damaged]:
    """Headers that are true, and pixels that come out of almost nothing."""
    black = np.zeros((20_001, 20_000), np.uint8)
    yield Damaged("bomb-deflate.tif", tiff(black, compression="zlib", rowsperstrip=20_001), "refused")
    text = "<?xml version='1.0'?><!DOCTYPE l [<!ENTITY a 'ha'>" + "".join(
        f"<!ENTITY {chr(98 + n)} '{f'&{chr(97 + n)};' * 10}'>" for n in range(9)
    )
    ome = text + "]><OME><Image><Pixels SizeX='160' SizeY='120'>&j;</Pixels></Image></OME>"
    yield Damaged("bomb-entities.tif", tiff(field(), description=ome, metadata=None))


def corpus(*, flips: int = 12) -> Iterator[Damaged]:
    """Every damaged file, in a fixed order."""
    for name, data in wholes().items():
        yield Damaged(f"whole-{name}", data, "read")
        yield from truncated(name, data)
        yield from flipped(name, data, flips)
    yield from lying_tiffs()
    yield from lying_pngs()
    yield from lying_slides()
    yield from lying_jpegs()
    yield from lying_bmps()
    yield from odd_kinds()
    yield from bomb_tiff()


def write_corpus(folder: Path, *, flips: int = 12) -> list[tuple[Path, Fate]]:
    """Write the corpus into a folder; returns each file with what may become of it."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for item in corpus(flips=flips):
        path = folder / item.name
        path.write_bytes(item.data)
        written.append((path, item.fate))
    return written
