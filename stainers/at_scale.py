"""Stain an image of any pixel size: brought to the stainer's scale, painted there, and brought back."""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.errors import BadInput
from stainers.field import stain_image

Array = np.ndarray[Any, Any]

SAME_SCALE = 0.02  # a difference that no stainer was trained to see; such an image is not resampled
MIN_SIDE_PX, MAX_PIXELS = 16, 100_000_000  # at the stainer's scale


def size_at(width: int, height: int, pixel_size_um: float, model_um: float) -> tuple[int, int]:
    """Width and height of an image in pixels of `model_um`, at which it is painted.

    Raises BadInput where that is hardly a pixel, or more than fits in memory; a header is enough to ask.
    """
    factor = pixel_size_um / model_um
    wide, high = round(width * factor), round(height * factor)
    few = min(wide, high) < MIN_SIDE_PX
    if few or wide * high > MAX_PIXELS:
        fix = " if it is wrong, else cut the image into fields" if not few else ""
        raise BadInput(
            f"{width} x {height} pixels of {pixel_size_um:g} µm are {wide} x {high} at the stainer's "
            f"{model_um:g} µm, too {'few' if few else 'many'} to stain; correct the pixel size "
            f"(--pixel-size){fix}."
        )
    return wide, high


def stain_at(
    stainer: Any, image: Array, target: str | None, pixel_size_um: float, model_um: float
) -> tuple[Array, float, float, Array]:
    """Stain an image (H, W) or (H, W, 3) uint8 of `pixel_size_um` by a stainer that takes `model_um`.

    Returns what `stainers.field.stain_image` does, in the size of the image.  Raises BadInput where the image
    would have hardly a pixel, or more than fit in memory, at the stainer's scale.
    """
    height, width = image.shape[:2]
    wide, high = size_at(width, height, pixel_size_um, model_um)
    if abs(pixel_size_um / model_um - 1) <= SAME_SCALE:
        return stain_image(stainer, image, target)
    stained, confidence, uncertainty, doubt = stain_image(stainer, _to(image, wide, high), target)
    return _to(stained, width, height), confidence, uncertainty, _to(doubt, width, height)


def _to(image: Array, width: int, height: int) -> Array:
    import cv2

    smaller = width < image.shape[1]
    how = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC if image.dtype == np.uint8 else cv2.INTER_LINEAR
    return np.ascontiguousarray(cv2.resize(np.ascontiguousarray(image), (width, height), interpolation=how))
