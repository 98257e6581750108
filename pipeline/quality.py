"""Acquisition quality of one image: focus, illumination, saturation (CLINICAL.md, last section).

Values are to be compared with others of the same scanner, stain and modality, not with absolutes.
Focus: variance and normalised variance ranked best on smears (Santos et al. 1997, J. Microscopy 188,
functions F10 and F11); the variance of the Laplacian is reported beside them (Pech-Pacheco et al.
2000, ICPR, section 3).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.errors import BadInput
from pipeline.types import FocusQuality, Modality

Array = np.ndarray[Any, np.dtype[Any]]

BACKGROUND_PERCENTILE = {"brightfield": 90.0, "dic": 50.0}  # empty glass is brightest, or in the middle


def focus_quality(image: Array, modality: Modality, *, at_least_bits: int | None = None) -> FocusQuality:
    """Quality of an image (H, W) or (H, W, 3), uint8 or uint16; BadInput for anything else.

    `at_least_bits` are those of the camera by the other images that it took (`storage.images.camera_bits`):
    a dim field alone would pass for one of a shallower camera, and its figures would not compare.  Focus
    figures are of grey levels in [0, 1]; the Laplacian is taken at full resolution, on the middle of the
    image where that holds more than a megapixel.
    """
    import cv2

    from storage.images import camera_bits

    if not isinstance(image, np.ndarray) or image.dtype not in (np.uint8, np.uint16):
        raise BadInput(
            f"Quality is read from uint8 or uint16 images, not {getattr(image, 'dtype', type(image))}."
        )
    if image.ndim not in (2, 3) or 0 in image.shape or (image.ndim == 3 and image.shape[2] not in (1, 3)):
        raise BadInput(f"Quality is read from (H, W) or (H, W, 3) images, not from shape {image.shape}.")
    top = 2.0 ** camera_bits(image, at_least_bits) - 1  # upper end of the camera's range
    if image.ndim == 3 and image.shape[2] == 3:
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    else:
        grey = np.ascontiguousarray(image.reshape(image.shape[:2]))
    saturated = float((grey >= top).mean()) if image.ndim == 2 else _saturated(image, top)

    mean, spread = (float(v[0, 0]) / top for v in cv2.meanStdDev(grey))
    variance = spread**2
    h, w = grey.shape
    crop = grey[max(0, h // 2 - 512) : h // 2 + 512, max(0, w // 2 - 512) : w // 2 + 512]
    laplacian = cv2.Laplacian(crop.astype(np.float32) / np.float32(top), cv2.CV_32F, ksize=1)
    return FocusQuality(
        variance=variance,
        normalised_variance=variance / mean if mean > 0 else 0.0,
        laplacian_variance=float(laplacian.var()),
        illumination_ratio=_illumination(grey, modality),
        saturation_pct=100.0 * saturated,
    )


def _saturated(image: Array, top: float) -> float:
    """Share of pixels with any channel at the top, from every second row and column."""
    return float((image[::2, ::2] >= top).any(axis=-1).mean())


def _illumination(grey: Array, modality: Modality) -> float:
    """Background of the darkest corner over that of the centre, each a seventh of the field wide."""
    h, w = grey.shape
    a, b = max(1, h // 7), max(1, w // 7)
    q = BACKGROUND_PERCENTILE[modality]

    def background(y: int, x: int) -> float:
        return float(np.percentile(grey[y : y + a : 2, x : x + b : 2], q))

    centre = background((h - a) // 2, (w - b) // 2)
    corners = [background(y, x) for y in (0, h - a) for x in (0, w - b)]
    return min(corners) / centre if centre > 0 else 0.0
