"""Prussian blue and nuclear fast red taken apart, patch by patch.

Optical density is log10, as everywhere in smearflow.  The prior directions are medians over stained
pixels of 102 Prussian-blue photographs (EIPH_WSI, MIT); they are bent towards what a patch shows only
within a few degrees, so that one odd patch cannot turn pink into blue.
"""

from __future__ import annotations

import numpy as np

from storage.smear_colour import bright_median

IRON = np.array((0.83, 0.49, 0.26))  # red, green, blue absorption of Prussian blue, unit length
FAST_RED = np.array((0.22, 0.83, 0.51))  # of nuclear fast red
MAX_BEND_DEG = 12.0
MIN_PIXELS = 60


def glass_colour(image: np.ndarray) -> np.ndarray:
    """Colour (3,) of the empty glass of (H, W, 3) uint8: median of its 85th to 99th brightness percentile."""
    return bright_median(image.reshape(-1, 3).astype(np.float64), 85)


def optical_density(image: np.ndarray, glass: np.ndarray) -> np.ndarray:
    """(H, W, 3) float64; slightly negative where a pixel is brighter than the glass, so noise stays even.

    Faint iron is told from noise, which the densities of other rooms, cut off at 0, would make one-sided.
    """
    levels = -np.log10(np.maximum(np.arange(256.0), 1.0))[:, None] + np.log10(glass)
    return np.stack([levels[image[..., c], c] for c in range(3)], axis=-1)


def stain_directions(density: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors of iron and of nuclear fast red for one patch's density (H, W, 3).

    Pixels that lie clearly on one side give the median direction of that side (after Macenko 2009,
    with medians for extremes).  Fewer than MIN_PIXELS, or a direction further than MAX_BEND_DEG from
    the prior, leave or clip the prior.
    """
    flat = density.reshape(-1, 3)
    strength = np.linalg.norm(flat, axis=1)
    strong = flat[strength > 0.18]
    unit = strong / np.maximum(np.linalg.norm(strong, axis=1, keepdims=True), 1e-9)
    blue = unit[unit[:, 0] > 1.35 * unit[:, 1]]
    pink = unit[unit[:, 1] > 2.0 * unit[:, 0]]
    return _bend(IRON, blue), _bend(FAST_RED, pink)


def _bend(prior: np.ndarray, seen: np.ndarray) -> np.ndarray:
    prior = prior / np.linalg.norm(prior)
    if len(seen) < MIN_PIXELS:
        return prior
    found = np.maximum(np.median(seen, axis=0), 0.01)
    found = found / np.linalg.norm(found)
    angle = float(np.degrees(np.arccos(np.clip(prior @ found, -1, 1))))
    if angle > MAX_BEND_DEG:
        found = prior + (found - prior) * (MAX_BEND_DEG / angle)
        found = found / np.linalg.norm(found)
    return found


def unmix(density: np.ndarray, iron: np.ndarray, fast_red: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Amounts (H, W) of iron and nuclear fast red, least squares with neither below 0.

    A third direction, perpendicular to both, takes up what is neither dye.
    """
    neither = np.cross(iron, fast_red)
    basis = np.stack([iron, fast_red, neither / np.linalg.norm(neither)])
    amounts = density.reshape(-1, 3) @ np.linalg.inv(basis)
    pink_alone = density.reshape(-1, 3) @ fast_red
    blue_alone = density.reshape(-1, 3) @ iron
    blue = np.where(amounts[:, 1] < 0, blue_alone, amounts[:, 0])
    pink = np.where(amounts[:, 0] < 0, pink_alone, amounts[:, 1])
    shape = density.shape[:2]
    return np.maximum(blue, 0).reshape(shape), np.maximum(pink, 0).reshape(shape)
