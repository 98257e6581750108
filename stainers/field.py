"""Stain images of any size: a patch as one, a field in overlapping tiles that are blended.

A field has one background, one contrast and one shear, measured on the whole of it, so that its tiles
agree; neighbouring tiles overlap and are blended linearly, and only one row of tiles is held at a time.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.errors import BadInput
from stainers.dic_input import Scale, measure_scale, to_grey

Array = np.ndarray[Any, Any]

PATCH_LIMIT_PX = 400  # longer sides are tiled
TILE_PX = 256
OVERLAP_PX = 48
BACKGROUND_BLOCK_PX = 192


def level_background(grey: Array) -> Array:
    """A field (H, W) with its uneven illumination divided out: medians of blocks, smoothed."""
    height, width = grey.shape
    rows, columns = (max(1, round(n / BACKGROUND_BLOCK_PX)) for n in (height, width))
    if rows * columns == 1:
        return grey
    ys, xs = (np.linspace(0, n, k + 1).astype(int) for n, k in ((height, rows), (width, columns)))
    medians = np.asarray(
        [
            [np.median(grey[ys[r] : ys[r + 1] : 2, xs[c] : xs[c + 1] : 2]) for c in range(columns)]
            for r in range(rows)
        ]
    )
    padded = np.pad(medians, 1, mode="edge")
    smooth = np.median(
        [padded[r : r + rows, c : c + columns] for r in range(3) for c in range(3)], axis=0
    )  # one crowded block does not bend the background
    centre_y, centre_x = (ys[1:] + ys[:-1]) / 2, (xs[1:] + xs[:-1]) / 2
    across = np.stack([np.interp(np.arange(width), centre_x, line) for line in smooth])
    position = np.interp(np.arange(height), centre_y, np.arange(rows))
    low = np.minimum(position.astype(int), max(rows - 2, 0))
    part = (position - low).astype(np.float32)
    across = across.astype(np.float32)
    level = np.float32(np.median(medians))
    result = np.empty_like(grey, dtype=np.float32)
    for y in range(height):
        background = across[low[y]] * (1 - part[y]) + across[min(low[y] + 1, rows - 1)] * part[y]
        result[y] = grey[y] * (level / np.maximum(background, 1.0))
    return result


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Starts of tiles that cover a side, overlapping by at least `overlap`; one tile where it is short."""
    if length <= tile:
        return [0]
    count = -(-(length - overlap) // (tile - overlap))
    return [round(i * (length - tile) / (count - 1)) for i in range(count)]


def _ramp(length: int, overlap: int) -> Array:
    """Weights of a tile's pixels along one side: rising, one, falling; never zero."""
    distance = np.minimum(np.arange(length), np.arange(length)[::-1]) + 1.0
    return np.minimum(distance / (overlap + 1), 1.0).astype(np.float32)


def stain_field(
    stainer: Any,
    image: Array,
    target: str | None = None,
    *,
    shear_angle_deg: float | None = None,
    tile_px: int = TILE_PX,
    overlap_px: int = OVERLAP_PX,
) -> tuple[Array, Array, Array]:
    """Stain a field (H, W[, 1 or 3]) uint8 or uint16 at 0.1 µm a pixel.

    Returns ((H, W, 3) uint8, uncertainty (H, W) float32, confidence of each tile (rows, columns) float32).
    """
    from stainers.unet_film import to_uint8

    if tile_px <= 2 * overlap_px:
        raise ValueError("a tile must be longer than two overlaps")
    index = stainer.target_index(target)
    grey = level_background(to_grey(np.asarray(image)))
    scale: Scale = measure_scale(grey)
    angle = stainer.find_shear_deg(image) if shear_angle_deg is None else float(shear_angle_deg)
    height, width = grey.shape
    ys, xs = tile_starts(height, tile_px, overlap_px), tile_starts(width, tile_px, overlap_px)
    tile_h, tile_w = min(tile_px, height), min(tile_px, width)
    weight = _ramp(tile_h, overlap_px)[:, None] * _ramp(tile_w, overlap_px)[None, :]
    stained = np.empty((height, width, 3), np.uint8)
    uncertainty = np.empty((height, width), np.float32)
    confidence = np.empty((len(ys), len(xs)), np.float32)
    carried: Array | None = None  # rows that the next row of tiles still adds to
    for r, y in enumerate(ys):
        band = np.zeros((tile_h, width, 5), np.float32)
        if carried is not None:
            band[: len(carried)] = carried
        for c, x in enumerate(xs):
            part = grey[y : y + tile_h, x : x + tile_w]
            colour, doubt, row = stainer.stain_grey(part, index, angle, scale)
            confidence[r, c] = stainer.confidence(row[None])[0]
            place = band[:, x : x + tile_w]
            place[..., :3] += colour * weight[..., None]
            place[..., 3] += doubt * weight
            place[..., 4] += weight
        done = ys[r + 1] - y if r + 1 < len(ys) else tile_h
        total = band[:done, :, 4:]
        stained[y : y + done] = to_uint8(band[:done, :, :3] / total)
        uncertainty[y : y + done] = band[:done, :, 3] / total[..., 0]
        carried = band[done:].copy()
    return stained, uncertainty, confidence


def stain_image(
    stainer: Any, image: Array, target: str | None = None, *, shear_angle_deg: float | None = None
) -> tuple[Array, float, float, Array]:
    """Stain one image of any size, grey or RGB-stored grey, at 0.1 µm a pixel.

    Returns ((H, W, 3) uint8, confidence in [0, 1], mean uncertainty, uncertainty (H, W) float32).  The
    confidence of a field is the mean of its tiles'.  A stainer that only knows patches gets one patch.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[-1] not in (1, 3) or 0 in image.shape:
        raise BadInput(f"an image to stain is (H, W), (H, W, 1) or (H, W, 3), not {image.shape}.")
    if max(image.shape[:2]) > PATCH_LIMIT_PX and hasattr(stainer, "stain_grey"):
        stained, uncertainty, tiles = stain_field(stainer, image, target, shear_angle_deg=shear_angle_deg)
        return stained, float(tiles.mean()), float(uncertainty.mean()), uncertainty
    known = {} if shear_angle_deg is None else {"shear_angle_deg": [shear_angle_deg]}
    result = stainer.stain(image[None], target, **known)
    return (
        result.image[0],
        float(result.confidence[0]),
        float(result.uncertainty[0].mean()),
        result.uncertainty[0],
    )
