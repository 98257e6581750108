"""Stain transfer by landmarks: the colours of empty glass, of nuclei and of what lies around them.

Statistics of a whole image (Reinhard, Macenko) mix the amount of each structure with its colour: an image
with one large cell is not like one with red cells all round.  Here the structures are found first, and one
linear map of optical density takes the nuclei of one stain to those of the other and the cytoplasm to the
cytoplasm.  The map is that of the stain, fitted to many images; only the glass is each image's own, so that a
pale cytoplasm stays paler than a dark one.

Two things that colour cannot bring over are done before: where the target hardly shows red cells, because
its stain lyses them, those of the source are cleared; where its pictures are softer, the source is blurred
by the difference.  Nothing is drawn that a source does not show: no red cells, no sharpness.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stainers.cell_structures import (
    density,
    find_structures,
    glass_of,
    other_cells,
    softness,
    surroundings_of,
)

Array = np.ndarray[Any, Any]

OTHERS, SOFTNESS, SIZE = 9, 10, 11  # after the densities of glass, nucleus and surroundings
LEAST_DENSITY = 0.02  # of a landmark in its densest channel
FEWEST_PIXELS = 20
RING = 0.2  # width, roots
CLEARED = 0.5  # of the source's share of other cells; a target with less hardly shows any
FEATHER = 0.02  # roots over which a cleared cell fades
LARGEST = 1 << 18  # pixels of a picture in which structures are looked for
# How far the map may leave a gain for each channel, against how well it meets the landmarks: two landmarks
# do not fix three directions.  Larger values were worse on cells of the training and validation parts.
RIDGE = 3e-4


def landmarks_measure(rgb: Array) -> Array:
    """(11,): the glass's RGB, the median densities of nuclei and of what surrounds them, the share of the
    image that other cells' stain covers, and the softness (roots; see stainers.cell_structures).

    Of an image (H, W, 3) uint8.  All but the glass are NaN where nothing is stained; where all that is
    stained is of one density it is taken for nuclei, and what surrounds them is NaN.
    """
    found = find_structures(rgb)
    measured = np.full(SIZE, np.nan)
    if found is None:
        measured[:3] = glass_of(rgb)
        return measured
    measured[:3] = found.glass
    measured[3:6] = np.median(found.dense[found.nuclei], axis=0)
    around = surroundings_of(found, RING)
    if around.sum() >= FEWEST_PIXELS:
        measured[6:9] = np.median(found.dense[around], axis=0)
    measured[OTHERS] = (other_cells(found) & found.stained).mean()
    measured[SOFTNESS] = softness(found)
    return measured


def landmark_map(source: Array, target: Array) -> Array:
    """(3, 3): densities of the source, as rows, times this are those of the target.

    Near a gain for each channel that meets the nuclei, moved by ridge regression to meet both landmarks.
    Where one of the stains shows no surroundings the gains are the map; without nuclei a source keeps its
    densities.
    """
    theirs, mine = source[3:9].reshape(2, 3), target[3:9].reshape(2, 3)
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


def landmarks_prepare(rgb: Array, source: Array, target: Array) -> Array:
    """The picture (H, W, 3) uint8 with what the target does not show taken out, in its own colours."""
    import cv2

    clear = target[OTHERS] < CLEARED * source[OTHERS]
    blur = float(np.sqrt(max(0.0, target[SOFTNESS] ** 2 - source[SOFTNESS] ** 2)))
    step = max(1, int(np.ceil(np.sqrt(rgb.shape[0] * rgb.shape[1] / LARGEST))))
    found = find_structures(rgb[::step, ::step]) if clear or blur > 0 else None
    if found is None:
        return rgb
    root = found.root * step
    out = rgb
    if clear:
        mask = cv2.resize(
            other_cells(found).astype(np.float32), rgb.shape[1::-1], interpolation=cv2.INTER_LINEAR
        )
        mask = cv2.GaussianBlur(mask, (0, 0), max(0.5, FEATHER * root))[..., None]
        out = np.rint(out * (1 - mask) + source[:3].astype(np.float32) * mask).astype(np.uint8)
    if blur * root > 0.3:  # less is none
        out = cv2.GaussianBlur(out, (0, 0), blur * root)
    return np.asarray(out)
