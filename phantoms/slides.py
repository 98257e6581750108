"""Whole-slide phantoms: tiled pyramidal TIFFs that OpenSlide reads, with known content."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from phantoms.blood import TrueCell
from phantoms.fields import NORMAL_BLOOD, FieldView, populate, render_field
from phantoms.stains import StainStyle, develop, random_style
from pipeline.errors import BadInput

Array = np.ndarray[Any, Any]
Vendor = Literal["aperio", "generic"]


def write_pyramid(
    path: Path,
    image: Array,
    pixel_size_um: float | None,
    levels: int = 3,
    *,
    downsample: int = 4,
    tile_px: int = 256,
    vendor: Vendor = "aperio",
    compression: str = "zlib",
) -> Path:
    """Write an image (H, W, 3) uint8 as a tiled pyramid; each level is `downsample` smaller than the last.

    `aperio` states the pixel size as MPP in the description, as an .svs does; `generic` in the TIFF's
    resolution.  `pixel_size_um` None leaves it out of both.  Levels that would be smaller than one tile
    are refused (BadInput).
    """
    import cv2
    import tifffile

    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise BadInput(f"a slide image is (H, W, 3) uint8, not {image.shape} {image.dtype}.")
    if levels < 1 or min(image.shape[:2]) // downsample ** (levels - 1) < 1:
        raise BadInput(f"an image of {image.shape[1]} x {image.shape[0]} px has no {levels} levels.")
    stack = [image]
    for _ in range(levels - 1):
        h, w = stack[-1].shape[:2]
        stack.append(cv2.resize(stack[-1], (w // downsample, h // downsample), interpolation=cv2.INTER_AREA))
    more: dict[str, Any] = {}
    if pixel_size_um is not None and vendor == "generic":
        more = {"resolution": (1e4 / pixel_size_um, 1e4 / pixel_size_um), "resolutionunit": "CENTIMETER"}
    path = Path(path)
    with tifffile.TiffWriter(path, bigtiff=False) as out:
        for i, level in enumerate(stack):
            h, w = level.shape[:2]
            text = None
            if vendor == "aperio":
                text = f"Aperio Image Library v1\r\n{w}x{h} [0,0 {w}x{h}] ({tile_px}x{tile_px})"
                if i == 0 and pixel_size_um is not None:
                    text += f"|AppMag = {round(10 / pixel_size_um)}|MPP = {pixel_size_um:g}"
            out.write(
                level,
                tile=(tile_px, tile_px),
                photometric="rgb",
                compression=compression,
                description=text,
                subfiletype=0 if i == 0 or vendor == "aperio" else 1,
                metadata=None,
                **(more if i == 0 else {}),
            )
    return path


def simulate_slide(
    path: Path,
    *,
    seed: int,
    width_px: int = 3000,
    height_px: int = 2000,
    pixel_size_um: float = 0.25,
    n_leukocytes: int = 24,
    composition: Mapping[str, float] = NORMAL_BLOOD,
    levels: int = 3,
    thick: bool = True,
    vendor: Vendor = "aperio",
    state_pixel_size: bool = True,
    style: StainStyle | None = None,
) -> dict[str, Any]:
    """Write a whole-slide phantom of a smear and `<path>.truth.json`; returns that truth.

    From left to right: a thick part where red cells pile up (unless `thick` is off), the monolayer with
    the leukocytes, and bare glass.  The truth names the three regions as (x0, y0, x1, y1) in level-0
    pixels, and the leukocytes' boxes and classes.
    """
    rng = np.random.default_rng([seed, 9])
    style = style or random_style(rng, spread=0.5)
    edge = round(14.0 / pixel_size_um)
    first, second = (round(0.25 * width_px), round(0.65 * width_px)) if thick else (0, round(0.65 * width_px))
    mono = (first, 0, second, height_px)
    cells: list[TrueCell] = populate(
        [_view(mono, edge)],
        pixel_size_um,
        rng,
        composition=composition,
        n_leukocytes=n_leukocytes,
        red_cell_cover=0.38,
    )
    if thick:
        piled = populate(
            [_view((0, 0, first, height_px), edge)],
            pixel_size_um,
            rng,
            composition=composition,
            n_leukocytes=0,
            red_cell_cover=1.2,
            platelets_per_red_cell=0.0,
            red_cells_pile=True,
        )
        cells += piled
    whole = FieldView("slide", 0, 0, width_px, height_px)
    layers = render_field(cells, whole, pixel_size_um, style)
    image = develop(layers.density, pixel_size_um, style, rng)
    write_pyramid(path, image, pixel_size_um if state_pixel_size else None, levels, vendor=vendor)
    truth = {
        "phantom": True,
        "seed": seed,
        "pixel_size_um": pixel_size_um,
        "regions": {
            "thick": [0, 0, first, height_px] if thick else None,
            "monolayer": list(mono),
            "glass": [second, 0, width_px, height_px],
        },
        "leukocytes_xyxy": [list(map(float, s[1])) for s in layers.seen],
        "classes": [s[0].kind for s in layers.seen],
    }
    Path(f"{path}.truth.json").write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
    return truth


def _view(region: tuple[int, int, int, int], edge: int) -> FieldView:
    """A region less its edge, so that what is drawn around it stays inside."""
    x0, y0, x1, y1 = region
    return FieldView("region", x0 + edge, y0 + edge, x1 - x0 - 2 * edge, y1 - y0 - 2 * edge)


def write_repeated_pyramid(
    path: Path,
    pattern: Array | Sequence[tuple[float, Array]],
    side_px: int,
    pixel_size_um: float,
    *,
    height_px: int | None = None,
    levels: int = 3,
    downsample: int = 4,
    tile_px: int = 256,
    quality: int = 80,
) -> Path:
    """Write a slide of `side_px` squared that repeats a pattern (H, W, 3) uint8, in a file no larger than it.

    Several patterns, all of one shape, stand side by side as (share of the width, pattern); `height_px` makes
    a slide that is no square.

    Every tile of a TIFF has its own offset, and here those of equal tiles are the same: 40,000 x 40,000 px
    take a few megabytes and a second to write, while a reader decodes every tile as of any other slide
    (Aperio-like, JPEG-compressed tiles, TIFF 6.0 section 15 and Technical Note 2).  The pattern's sides are
    multiples of `tile_px * downsample ** (levels - 1)`, so that it repeats on every level; else BadInput.
    """
    import cv2

    parts = [(1.0, pattern)] if isinstance(pattern, np.ndarray) else list(pattern)
    shape = parts[0][1].shape
    high_px = height_px or side_px
    period = tile_px * downsample ** (levels - 1)
    same = all(p.shape == shape for _, p in parts)
    if not same or shape[0] % period or shape[1] % period or min(side_px, high_px) < period:
        raise BadInput(f"a repeated pattern has sides that are multiples of {period} px, not {shape[:2]}.")
    ends = np.cumsum([share for share, _ in parts]) / sum(share for share, _ in parts)
    data = bytearray(struct.pack("<2sHI", b"II", 42, 0))
    link = 4  # where the offset of the next directory is to be written
    for level in range(levels):
        side, high = side_px // downsample**level, high_px // downsample**level
        size = (shape[1] // downsample**level, shape[0] // downsample**level)
        across, down = size[0] // tile_px, size[1] // tile_px
        places = np.empty((len(parts), down, across), np.uint32)
        lengths = np.empty((len(parts), down, across), np.uint32)
        for k, (_, part) in enumerate(parts):
            image = cv2.resize(part, size, interpolation=cv2.INTER_AREA) if level else part
            for y in range(down):
                for x in range(across):
                    tile = image[y * tile_px : (y + 1) * tile_px, x * tile_px : (x + 1) * tile_px, ::-1]
                    _, jpeg = cv2.imencode(".jpg", tile, [cv2.IMWRITE_JPEG_QUALITY, quality])
                    places[k, y, x], lengths[k, y, x] = len(data), len(jpeg)
                    data += jpeg.tobytes() + b"\0" * (len(jpeg) % 2)
        columns = np.arange(-(-side // tile_px))
        which = np.searchsorted(ends, np.minimum((columns + 0.5) * tile_px / side, 1.0))
        rows = np.arange(-(-high // tile_px))[:, None] % down
        text = (
            f"Aperio Image Library v1\r\n{side}x{high} [0,0 {side}x{high}] ({tile_px}x{tile_px}) Q={quality}"
        )
        if level == 0:
            text += f"|AppMag = {round(10 / pixel_size_um)}|MPP = {pixel_size_um:g}"
        link = _directory(
            data,
            link,
            [
                (254, 4, [0]),
                (256, 4, [side]),
                (257, 4, [high]),
                (258, 3, [8, 8, 8]),
                (259, 3, [7]),
                (262, 3, [6]),
                (270, 2, text.encode("ascii") + b"\0"),
                (277, 3, [3]),
                (284, 3, [1]),
                (322, 4, [tile_px]),
                (323, 4, [tile_px]),
                (324, 4, places[which, rows, columns % across].ravel()),
                (325, 4, lengths[which, rows, columns % across].ravel()),
                (530, 3, [2, 2]),
            ],
        )
    Path(path).write_bytes(data)
    return Path(path)


def _directory(data: bytearray, link: int, tags: list[tuple[int, int, Any]]) -> int:
    """Append a TIFF directory (tag, type, values), linked from `link`; returns where the next link goes."""
    entries = b""
    for tag, kind, values in tags:
        if kind == 2:
            raw, count = bytes(values), len(values)
        else:
            array = np.asarray(values, np.dtype({3: "<u2", 4: "<u4"}[kind]))
            raw, count = array.tobytes(), array.size
        if len(raw) > 4:
            place = len(data)
            data += raw + b"\0" * (len(raw) % 2)
            raw = struct.pack("<I", place)
        entries += struct.pack("<HHI4s", tag, kind, count, raw.ljust(4, b"\0"))
    struct.pack_into("<I", data, link, len(data))
    data += struct.pack("<H", len(tags)) + entries
    data += struct.pack("<I", 0)
    return len(data) - 4
