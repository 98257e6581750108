"""Whole-slide phantoms: tiled pyramidal TIFFs that OpenSlide reads, with known content."""

from __future__ import annotations

import json
from collections.abc import Mapping
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
