"""Colour of a stained smear against its own background, numpy alone."""

from __future__ import annotations

import numpy as np

from storage.smear_colour import bright_median


def background_colour(image: np.ndarray) -> np.ndarray:
    """Colour (3,) float32 of the empty glass of (H, W, 3) uint8: the median of its bright pixels.

    Bright is the 80th to 99th percentile of the mean of the channels.  Where no glass shows, this is the
    palest thing there is.
    """
    step = max(1, int(np.sqrt(image.shape[0] * image.shape[1] / 40_000)))
    pixels = image[::step, ::step].reshape(-1, 3).astype(np.float32)
    return bright_median(pixels, 80).astype(np.float32)


def transmission(image: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Light let through, (H, W, 3) float32 in [0, 1.2]: the image over its background."""
    return np.minimum(image.astype(np.float32) / background, 1.2)


def optical_density(image: np.ndarray, background: np.ndarray) -> np.ndarray:
    """-log10 of the transmission, (H, W, 3) float32, not below 0 (Beer-Lambert).

    What is brighter than the glass has no stain here, as the segmenter and its thresholds were set.
    """
    ratio = np.maximum(image.astype(np.float32), 1.0) / background
    return np.maximum(-np.log10(np.minimum(ratio, 1.0)), 0.0)
