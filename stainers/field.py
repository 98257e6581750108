"""Stain images of any size: a patch as one, a field in overlapping tiles that are blended.

A field has one background, one contrast and one shear, measured on the whole of it, so that its tiles
agree; neighbouring tiles overlap and are blended linearly, and only one row of tiles is held at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from pipeline.errors import BadInput
from stainers.patch_stainer import OpenField, PaintableField, to_uint8

Array = np.ndarray[Any, Any]

PATCH_LIMIT_PX = 400  # longer sides are tiled
TILE_PX = 256
PAINTED_TILE_PX = 512  # without copies under noise a larger tile fits, and less is painted twice
OVERLAP_PX = 48


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """Starts of tiles that cover a side, overlapping by at least `overlap`; one tile where it is short.

    As `detectors.windows.starts`, but rounded otherwise where a start falls half way between two pixels.
    """
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
    """Stain a field (H, W[, 1 or 3]) uint8 or uint16 at the scale that the stainer's card states.

    Returns ((H, W, 3) uint8, uncertainty (H, W) float32, confidence of each tile (rows, columns) float32).
    """
    known = {} if shear_angle_deg is None else {"shear_angle_deg": shear_angle_deg}
    field: OpenField = stainer.open_field(image, target, **known)
    height, width = field.shape
    stained = np.empty((height, width, 3), np.uint8)
    uncertainty = np.empty((height, width), np.float32)
    starts = [tile_starts(side, tile_px, overlap_px) for side in field.shape]
    rows: list[Array] = []

    def tile(y: int, x: int, high: int, wide: int) -> Array:
        colour, doubt, row = field.tile(y, x, high, wide)
        rows.append(row)
        return np.concatenate([colour, doubt[..., None]], axis=2)

    for y, band in _blended(field.shape, 4, tile, tile_px, overlap_px):
        stained[y : y + len(band)] = to_uint8(band[..., :3])
        uncertainty[y : y + len(band)] = band[..., 3]
    confidence = np.array([stainer.confidence(row[None])[0] for row in rows], np.float32)
    return *field.finish(stained, uncertainty), confidence.reshape([len(s) for s in starts])


def paint_field(
    field: PaintableField, *, tile_px: int = PAINTED_TILE_PX, overlap_px: int = OVERLAP_PX
) -> Array:
    """The picture alone of an opened field, (H, W, 3) uint8: no noise, so three times as fast."""
    painted = np.empty((*field.shape, 3), np.uint8)
    for y, band in _blended(field.shape, 3, field.colours, tile_px, overlap_px):
        painted[y : y + len(band)] = to_uint8(band)
    return painted


def _blended(
    shape: tuple[int, int],
    channels: int,
    tile: Callable[[int, int, int, int], Array],
    tile_px: int,
    overlap_px: int,
) -> Iterator[tuple[int, Array]]:
    """Rows of a field, top to bottom: where they start, and (h, W, channels) blended of the tiles
    `tile(y, x, height, width)`."""
    if tile_px <= 2 * overlap_px:
        raise ValueError("a tile must be longer than two overlaps")
    height, width = shape
    ys, xs = tile_starts(height, tile_px, overlap_px), tile_starts(width, tile_px, overlap_px)
    tile_h, tile_w = min(tile_px, height), min(tile_px, width)
    weight = (_ramp(tile_h, overlap_px)[:, None] * _ramp(tile_w, overlap_px)[None, :])[..., None]
    carried: Array | None = None  # rows that the next row of tiles still adds to
    for r, y in enumerate(ys):
        band = np.zeros((tile_h, width, channels + 1), np.float32)
        if carried is not None:
            band[: len(carried)] = carried
        for x in xs:
            place = band[:, x : x + tile_w]
            place[..., :channels] += tile(y, x, tile_h, tile_w) * weight
            place[..., channels:] += weight
        done = ys[r + 1] - y if r + 1 < len(ys) else tile_h
        yield y, band[:done, :, :channels] / band[:done, :, channels:]
        carried = band[done:].copy()


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
    if max(image.shape[:2]) > PATCH_LIMIT_PX and hasattr(stainer, "open_field"):
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
