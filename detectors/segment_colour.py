"""Colour of a stained smear against its own background, numpy alone."""

from __future__ import annotations

import numpy as np


def background_colour(image: np.ndarray) -> np.ndarray:
    """Colour (3,) float32 of the empty glass of (H, W, 3) uint8: the median of its bright pixels.

    Bright is the 80th to 99th percentile of the mean of the channels; glints and saturated specks
    above it do not count.  Where no glass shows, this is the palest thing there is.
    """
    step = max(1, int(np.sqrt(image.shape[0] * image.shape[1] / 40_000)))
    pixels = image[::step, ::step].reshape(-1, 3).astype(np.float32)
    grey = pixels.mean(axis=1)
    low, high = np.percentile(grey, (80, 99))
    bright = pixels[(grey >= low) & (grey <= high)]
    return np.maximum(np.median(bright, axis=0), 20.0).astype(np.float32)


def transmission(image: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Light let through, (H, W, 3) float32 in [0, 1.2]: the image over its background."""
    return np.minimum(image.astype(np.float32) / background, 1.2)


def optical_density(image: np.ndarray, background: np.ndarray) -> np.ndarray:
    """-log10 of the transmission, (H, W, 3) float32, not below 0 (Beer-Lambert)."""
    ratio = np.maximum(image.astype(np.float32), 1.0) / background
    return np.maximum(-np.log10(np.minimum(ratio, 1.0)), 0.0)
