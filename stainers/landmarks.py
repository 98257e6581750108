"""Stain transfer by landmarks: the colours of empty glass, of nuclei and of what lies around them.

Statistics of a whole image (Reinhard, Macenko) mix the amount of each structure with its colour: an image
with one large cell is not like one with red cells all round.  Here the structures are found first, and one
linear map of optical density takes the nuclei of one stain to those of the other and the cytoplasm to the
cytoplasm.  The map is that of the stain, fitted to many images; only the glass is each image's own, so that a
pale cytoplasm stays paler than a dark one.  A nucleus is what lies above Otsu's threshold of the stained
pixels (IEEE Trans. SMC 9, 1979), its surroundings a ring around it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stainers.data import glass_and_red_cell

Array = np.ndarray[Any, Any]

SIZE = 9  # glass, nucleus, surroundings
STAINED_TOTAL = 0.12  # of the three channels' density; below it a pixel is glass
LEAST_DENSITY = 0.02  # of a landmark in its densest channel
FEWEST_PIXELS = 20
DARKER = 1.4  # a nucleus than what is around it
RING = 0.2  # width, in roots of the largest nucleus's area
# How far the map may leave a gain for each channel, against how well it meets the landmarks: two landmarks
# do not fix three directions.  Larger values were worse on cells of the training and validation parts.
RIDGE = 3e-4


def glass_of(rgb: Array) -> Array:
    """(3,): the colour of an image's empty glass, 0 to 255, never so dark that densities lose their sense."""
    return np.clip(np.asarray(glass_and_red_cell(rgb)[0]), 8.0, 255.0)


def density(rgb: Array, glass: Array) -> Array:
    """Optical density (..., 3), base 10, of colours (..., 3) of 0 to 255 against the glass (3,)."""
    return np.asarray(-np.log10((rgb.astype(np.float64) + 1.0) / (glass + 1.0)))


def landmarks_measure(rgb: Array) -> Array:
    """(9,): the glass's RGB, and the median densities of nuclei and of what surrounds them.

    Of an image (H, W, 3) uint8.  Densities are NaN where nothing is stained; where all that is stained is of
    one density it is taken for nuclei, and what surrounds them is NaN.
    """
    import cv2

    glass = glass_of(rgb)
    found = np.concatenate([glass, np.full(6, np.nan)])
    dense = density(rgb, glass)
    total = dense.sum(axis=-1)
    stained = total > STAINED_TOTAL
    if stained.sum() < FEWEST_PIXELS:
        return found
    square = np.ones((3, 3), np.uint8)
    dark = cv2.morphologyEx(_darker(total, stained).astype(np.uint8), cv2.MORPH_OPEN, square)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(dark)
    if count < 2:
        return found
    areas = stats[1:, cv2.CC_STAT_AREA]
    # Platelets and precipitate are dense, too, but small.
    nuclei = np.isin(parts, 1 + np.flatnonzero(areas > 0.3 * areas.max())).astype(np.uint8)
    found[3:6] = np.median(dense[nuclei > 0], axis=0)
    width = max(2, int(RING * np.sqrt(areas.max())))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    around = (cv2.dilate(nuclei, disc) > 0) & (cv2.dilate(nuclei, square) == 0) & stained & (dark == 0)
    if around.sum() >= FEWEST_PIXELS:
        found[6:] = np.median(dense[around], axis=0)
    return found


def _darker(total: Array, stained: Array) -> Array:
    """(H, W) bool: the darker of two kinds of stained pixels, or all of them where there is one kind."""
    from skimage.filters import threshold_otsu

    values = total[stained]
    darker: Array = stained & (total > threshold_otsu(values)) if np.ptp(values) > 1e-6 else stained
    rest = stained & ~darker
    if not darker.any() or (rest.any() and total[darker].mean() < DARKER * total[rest].mean()):
        return stained
    return darker


def landmark_map(source: Array, target: Array) -> Array:
    """(3, 3): densities of the source, as rows, times this are those of the target.

    Near a gain for each channel that meets the nuclei, moved by ridge regression to meet both landmarks.
    Where one of the stains shows no surroundings the gains are the map; without nuclei a source keeps its
    densities.
    """
    theirs, mine = source[3:].reshape(2, 3), target[3:].reshape(2, 3)
    seen = [np.isfinite([a, b]).all() and a.max() >= LEAST_DENSITY for a, b in zip(theirs, mine, strict=True)]
    if not seen[0]:
        return np.eye(3)
    gains = np.diag(mine[0] / np.maximum(theirs[0], LEAST_DENSITY))
    if not seen[1]:
        return gains
    missed = mine - theirs @ gains
    return np.asarray(gains + np.linalg.solve(theirs.T @ theirs + RIDGE * np.eye(3), theirs.T @ missed))


def landmarks_apply(rgb: Array, source: Array, target: Array) -> Array:
    """(H, W, 3) uint8 -> colour (H, W, 3) in [0, 1] without a limit.

    `source`: the image's own glass and the densities of its stain.
    """
    mapped = density(rgb, source[:3]).reshape(-1, 3) @ landmark_map(source, target)
    return np.asarray(target[:3] / 255.0 * 10.0 ** -np.clip(mapped, -0.2, 2.6)).reshape(rgb.shape)
