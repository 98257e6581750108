"""Patches centred on cells, at one physical scale.

A patch that reaches over the edge of the field is filled by the stated policy: `reflect` mirrors the
field about its edge, `background` continues the glass (the median of the field's brightest tenth).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.errors import BadInput

SAME_SCALE = 0.01  # a pixel size this close to the target's is taken as it is: no pixel is resampled


def crop_patches(
    image: npt.NDArray[np.uint8],
    centres: Sequence[tuple[float, float]],
    *,
    size_px: int,
    pixel_size_um: float,
    target_pixel_size_um: float,
    fill: str = "reflect",
) -> npt.NDArray[np.uint8]:
    """(N, size_px, size_px[, C]) uint8 patches of `image` (H, W[, C]) uint8 around `centres` (x, y) in px.

    The patch covers size_px * target_pixel_size_um; where the scales are the same the centre is rounded
    to a whole pixel and pixels are copied, else they are interpolated about the exact centre (area
    averaging when the field is finer than the target).  The centre lies at patch pixel size_px // 2.
    """
    if fill not in ("reflect", "background"):
        raise BadInput(f"border fill '{fill}' is not known; use 'reflect' or 'background'.")
    factor = target_pixel_size_um / pixel_size_um  # field pixels per patch pixel
    shape = (len(centres), size_px, size_px, *image.shape[2:])
    out = np.empty(shape, np.uint8)
    if not len(centres):
        return out
    glass = _glass(image) if fill == "background" else None
    if abs(factor - 1.0) <= SAME_SCALE:
        for patch, (x, y) in zip(out, centres, strict=True):
            left, top = round(x) - size_px // 2, round(y) - size_px // 2
            patch[...] = _window(image, left, top, size_px, size_px, glass)
        return out
    for patch, centre in zip(out, centres, strict=True):
        patch[...] = _resampled(image, centre, size_px, factor, glass)
    return out


def _resampled(
    image: npt.NDArray[np.uint8],
    centre: tuple[float, float],
    size_px: int,
    factor: float,
    glass: npt.NDArray[np.uint8] | None,
) -> npt.NDArray[np.uint8]:
    x, y = centre
    reach = size_px // 2 * factor
    margin = int(np.ceil(factor)) + 2
    left, top = int(np.floor(x - reach)) - margin, int(np.floor(y - reach)) - margin
    extent = int(np.ceil(size_px * factor)) + 2 * margin + 1
    window = _window(image, left, top, extent, extent, glass)
    if factor > 1.0:
        # Interpolation alone would skip pixels; a blur to the target's pixel keeps the light they carry.
        sigma = 0.5 * np.sqrt(factor**2 - 1.0)
        window = cv2.GaussianBlur(window, (0, 0), sigma)
    half = size_px // 2
    matrix = np.array([[factor, 0.0, x - left - half * factor], [0.0, factor, y - top - half * factor]])
    found: npt.NDArray[np.uint8] = cv2.warpAffine(
        window,
        matrix,
        (size_px, size_px),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    ).reshape(size_px, size_px, *image.shape[2:])
    return found


def _window(
    image: npt.NDArray[np.uint8],
    left: int,
    top: int,
    width: int,
    height: int,
    glass: npt.NDArray[np.uint8] | None,
) -> npt.NDArray[np.uint8]:
    """A window that may reach over the edge, filled as asked."""
    rows = np.arange(top, top + height)
    columns = np.arange(left, left + width)
    found: npt.NDArray[np.uint8] = image[_mirror(rows, image.shape[0])][:, _mirror(columns, image.shape[1])]
    if glass is not None:
        outside = ((rows < 0) | (rows >= image.shape[0]))[:, None] | (
            (columns < 0) | (columns >= image.shape[1])
        )[None, :]
        found = found.copy()
        found[outside] = glass
    return found


def _mirror(index: npt.NDArray[np.int_], length: int) -> npt.NDArray[np.int_]:
    """Indices reflected about the first and last pixel, however far outside they lie."""
    if length == 1:
        return np.zeros_like(index)
    period = 2 * (length - 1)
    folded = np.mod(index, period)
    return np.where(folded >= length, period - folded, folded)


def _glass(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The colour of empty glass: the median of the brightest tenth (the median itself for grey DIC)."""
    if image.ndim == 2 or image.shape[2] == 1:
        return np.asarray(np.median(image.reshape(-1)), np.uint8).reshape((1,) * (image.ndim - 2))
    flat = image.reshape(-1, image.shape[2])[:: max(1, image.shape[0] * image.shape[1] // 100_000)]
    bright = flat[flat.sum(1) >= np.percentile(flat.sum(1), 90)]
    return np.median(bright, axis=0).astype(np.uint8)
