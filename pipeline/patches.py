"""Patches around cells: a square of fixed physical size with the cell in its middle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from storage.mirroring import mirrored

# Below this difference of scale a patch is cut, not resampled: 1 % is under 2 px at a patch's edge.
SAME_SCALE = 0.01


def patch_centres(boxes: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """(N, 2) float64 centres (x, y) of boxes (N, 4) x0, y0, x1, y1, in the boxes' pixels."""
    found = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    return np.stack([(found[:, 0] + found[:, 2]) / 2, (found[:, 1] + found[:, 3]) / 2], axis=1)


def crop_patches(
    image: np.ndarray,
    centres: Sequence[Sequence[float]] | np.ndarray,
    *,
    size_px: int,
    pixel_size_um: float,
    target_pixel_size_um: float,
    fill: Literal["reflect", "background"] = "reflect",
) -> np.ndarray:
    """Patches (N, size_px, size_px, C) uint8 of an image (H, W) or (H, W, C) uint8 around centres (N, 2).

    A centre (x, y) is in pixels of the image with (0, 0) at the upper left corner of the first pixel,
    as boxes are, and falls on the middle of its patch, (size_px / 2, size_px / 2).  Where the image's
    pixel size is within 1 % of the target the patch is the image's own pixels, the centre moved by at
    most half a pixel, so nothing is blurred; else it is resampled at sub-pixel positions, after a
    Gaussian where it is made smaller, so that nothing aliases.

    Beyond the image's edge stands, with `reflect`, its mirror image about the edge; with
    `background`, the median colour of the image.  Both keep a cell at the border in the middle of its
    patch.  The same centre gives the same patch whatever else is cut.
    """
    import cv2

    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise TypeError(f"crop_patches takes (H, W) or (H, W, C) uint8, not {image.shape} {image.dtype}")
    if min(size_px, pixel_size_um, target_pixel_size_um) <= 0:
        raise ValueError("patch size and pixel sizes must be positive")
    points = np.asarray(centres, dtype=np.float64).reshape(-1, 2)
    if not np.isfinite(points).all():
        raise ValueError("a patch centre is not a number")
    channels = 1 if image.ndim == 2 else image.shape[2]
    source = image.reshape(*image.shape[:2], channels)
    background = _background(source) if fill == "background" else None
    step = target_pixel_size_um / pixel_size_um  # image pixels per patch pixel
    exact = abs(step - 1.0) <= SAME_SCALE
    out = np.empty((len(points), size_px, size_px, channels), np.uint8)
    for i, (x, y) in enumerate(points):
        if exact:
            left, top = (int(np.floor(v - size_px / 2 + 0.5)) for v in (x, y))
            out[i] = _window(source, left, top, size_px, size_px, background)
            continue
        half = size_px * step / 2
        margin = int(np.ceil(3 * step)) + 2
        left, top = int(np.floor(x - half)) - margin, int(np.floor(y - half)) - margin
        side = int(np.ceil(2 * half)) + 2 * margin + 2
        block = _window(source, left, top, side, side, background)
        if step > 1.25:
            # A pixel of the patch stands for `step` pixels of the image; this is close to their mean.
            block = cv2.GaussianBlur(block, (0, 0), 0.4 * step, borderType=cv2.BORDER_REFLECT)
        # Patch pixel (u, v) has its centre at centre + (u + 0.5 - size / 2) * step.
        shift_x = x - left + (0.5 - size_px / 2) * step - 0.5
        shift_y = y - top + (0.5 - size_px / 2) * step - 0.5
        matrix = np.array([[step, 0, shift_x], [0, step, shift_y]])
        flags = cv2.WARP_INVERSE_MAP | (cv2.INTER_CUBIC if step < 0.8 else cv2.INTER_LINEAR)
        warped = cv2.warpAffine(block, matrix, (size_px, size_px), flags=flags, borderMode=cv2.BORDER_REFLECT)
        out[i] = warped.reshape(size_px, size_px, channels)
    return out


def _background(image: np.ndarray) -> np.ndarray:
    step = max(1, int(np.sqrt(image.shape[0] * image.shape[1] / 100_000)))
    median = np.median(image[::step, ::step].reshape(-1, image.shape[2]), axis=0)
    return np.asarray(np.rint(median).astype(np.uint8))


def _window(
    image: np.ndarray, left: int, top: int, width: int, height: int, background: np.ndarray | None
) -> np.ndarray:
    """A rectangle of the image that may reach beyond it, as far as it likes."""
    xs, ys = np.arange(left, left + width), np.arange(top, top + height)
    if background is None:
        return image[mirrored(ys, image.shape[0])[:, None], mirrored(xs, image.shape[1])[None, :]]
    out = np.empty((height, width, image.shape[2]), np.uint8)
    out[:] = background
    inside_x = (xs >= 0) & (xs < image.shape[1])
    inside_y = (ys >= 0) & (ys < image.shape[0])
    if inside_x.any() and inside_y.any():
        out[np.ix_(inside_y, inside_x)] = image[ys[inside_y][:, None], xs[inside_x][None, :]]
    return out
