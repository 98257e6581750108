"""The light of a smear, read off the picture itself.

Rooms ask for it in different ways on purpose: their models and thresholds were set on what they got.  What is
the same stands here; each of the others says what it does otherwise (`storage.slide_grid.glass_colour`,
`stainers.data.glass_and_red_cell`, `detectors.classical`).
"""

from __future__ import annotations

import numpy as np


def bright_median(pixels: np.ndarray, low: float) -> np.ndarray:
    """Median colour (3,) of pixels (N, 3) float from the percentile `low` to the 99th of their brightness.

    Glints and saturated specks above it do not count.  Never under 20, so that densities keep their sense.
    Reckoned in the precision of the pixels.
    """
    grey = pixels.mean(axis=1)
    least, most = np.percentile(grey, (low, 99))
    bright = pixels[(grey >= least) & (grey <= most)]
    return np.asarray(np.maximum(np.median(bright, axis=0), 20.0))


def brightest(image: np.ndarray) -> np.ndarray:
    """The brightest colour (3,) of an image (H, W, 3) uint8: the 98th percentile of each channel, thinned."""
    step = max(1, min(image.shape[:2]) // 128)
    return np.asarray(np.percentile(image[::step, ::step].reshape(-1, 3), 98, axis=0))
