"""What a stained picture shows, found by density and place alone: glass, nuclei, red cells, sharpness.

For transfers that are fitted and not trained (stainers.landmarks).  A nucleus is what lies above Otsu's
threshold of the stained pixels (IEEE Trans. SMC 9, 1979).  Lengths are in roots: a root is the square root
of the area of a cell's nucleus, so that nothing depends on the size of a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stainers.data import glass_and_red_cell

Array = np.ndarray[Any, Any]

STAINED_TOTAL = 0.12  # of the three channels' density; below it a pixel is glass
FAINT_TOTAL = 0.06  # likewise once noise is smoothed away
FEWEST_PIXELS = 20
DARKER = 1.4  # a nucleus than what is around it
LOBES = 0.25  # nuclei so near each other, in roots of the largest, are lobes of one
# A leukocyte's own stain lies within NEAR of its nucleus, other cells' beyond FAR; between them colour
# decides, helped by the distance (log odds of DISTANCE a root, none at HALFWAY), as set on training cells.
NEAR, FAR, HALFWAY, DISTANCE = 0.10, 0.55, 0.4, 8.0
FEWEST_OTHERS = 0.01  # of an image; below it no cell but the leukocyte is to be seen
SMOOTHED, SMALLEST = 0.02, 0.08  # roots
REBLUR, RIM, STEEPEST = 0.05, 0.06, 0.7  # roots, roots, and which part of the rim has an edge


def glass_of(rgb: Array) -> Array:
    """(3,): the colour of an image's empty glass, 0 to 255, never so dark that densities lose their sense."""
    return np.clip(np.asarray(glass_and_red_cell(rgb)[0]), 8.0, 255.0)


def density(rgb: Array, glass: Array) -> Array:
    """Optical density (..., 3), base 10, of colours (..., 3) of 0 to 255 against the glass (3,).

    Not cut off, unlike `storage.slide_grid.optical_density`, and in float64: transfers were fitted on it.
    """
    return np.asarray(-np.log10((rgb.astype(np.float64) + 1.0) / (glass + 1.0)))


@dataclass(frozen=True)
class Structures:
    """Of an image (H, W, 3): `dense` (H, W, 3) against its `glass`, which pixels are `stained`, which of them
    are `dark`, and the `nuclei` among the dark ones, each (H, W) bool; `root` in pixels."""

    glass: Array
    dense: Array
    stained: Array
    dark: Array
    nuclei: Array
    root: float


def find_structures(rgb: Array) -> Structures | None:
    """The structures of an image (H, W, 3) uint8; None where nothing dark enough is stained."""
    import cv2

    glass = glass_of(rgb)
    dense = density(rgb, glass)
    total = dense.sum(axis=-1)
    stained = total > STAINED_TOTAL
    if stained.sum() < FEWEST_PIXELS:
        return None
    dark = cv2.morphologyEx(
        _darker(total, stained).astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8)
    )
    count, parts, stats, _ = cv2.connectedComponentsWithStats(dark)
    if count < 2:
        return None
    areas = stats[1:, cv2.CC_STAT_AREA]
    # Platelets and precipitate are dense, too, but small.
    nuclei = np.isin(parts, 1 + np.flatnonzero(areas > 0.3 * areas.max()))
    return Structures(glass, dense, stained, dark > 0, nuclei, _root(parts, areas))


def _darker(total: Array, stained: Array) -> Array:
    """(H, W) bool: the darker of two kinds of stained pixels, or all of them where there is one kind."""
    from skimage.filters import threshold_otsu

    values = total[stained]
    darker: Array = stained & (total > threshold_otsu(values)) if np.ptp(values) > 1e-6 else stained
    rest = stained & ~darker
    if not darker.any() or (rest.any() and total[darker].mean() < DARKER * total[rest].mean()):
        return stained
    return darker


def _root(parts: Array, areas: Array) -> float:
    """Square root of the median nuclear area of a cell, in pixels; lobes count together."""
    import cv2

    lobes = np.isin(parts, 1 + np.flatnonzero(areas > 0.1 * areas.max()))
    count, cells = cv2.connectedComponents(_grown(lobes, LOBES * float(np.sqrt(areas.max()))))
    whole = np.bincount(cells[lobes], minlength=count)[1:]
    return float(np.sqrt(np.median(whole[whole > 0.3 * whole.max()])))


def _disc(radius: float) -> Array:
    import cv2

    width = 2 * max(1, round(radius)) + 1
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width)))


def _grown(mask: Array, radius: float) -> Array:
    """(H, W) uint8: a mask dilated by so many pixels, one at least."""
    import cv2

    return np.asarray(cv2.dilate(mask.astype(np.uint8), _disc(radius)))


def surroundings_of(found: Structures, width: float) -> Array:
    """(H, W) bool: stained pixels that are not dark, around the nuclei, at most `width` roots away."""
    import cv2

    near = _grown(found.nuclei, width * found.root) > 0
    own = cv2.dilate(found.nuclei.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    return np.asarray(near & ~own & found.stained & ~found.dark)


def other_cells(found: Structures) -> Array:
    """(H, W) bool: what is stained and belongs to no cell with a nucleus: red cells, platelets.

    Two colours are measured, beside the nuclei and far from them; a pixel goes to the nearer one (linear
    discriminant), distance from the nucleus helping.  A leukocyte is what is left and hangs together with a
    nucleus.  Where next to nothing is stained far from the nuclei, no pixel is another cell's.
    """
    import cv2
    from scipy import ndimage

    root = found.root
    nothing = np.zeros(found.stained.shape, bool)
    away = cv2.distanceTransform((~found.nuclei).astype(np.uint8), cv2.DIST_L2, 5) / root
    smooth = cv2.GaussianBlur(found.dense, (0, 0), max(0.5, SMOOTHED * root))
    faint = smooth.sum(axis=-1) > FAINT_TOTAL
    beside = found.stained & ~found.nuclei & (away > 0.03) & (away < NEAR)
    apart = found.stained & (away > FAR)
    if apart.sum() < FEWEST_OTHERS * apart.size or beside.sum() < FEWEST_PIXELS:
        return nothing
    own, theirs = smooth[beside], smooth[apart]
    spread = (np.cov(own.T) + np.cov(theirs.T)) / 2 + 1e-4 * np.eye(3)
    axis = np.linalg.solve(spread, theirs.mean(axis=0) - own.mean(axis=0))
    odds = (smooth - (own.mean(axis=0) + theirs.mean(axis=0)) / 2) @ axis
    odds += np.clip((away - HALFWAY) * DISTANCE, -4, 6)
    cell = ((faint & (odds < 0)) | found.nuclei) & (away < 1)
    disc = _disc(SMALLEST * root / 2)
    cell = (cv2.morphologyEx(cell.astype(np.uint8), cv2.MORPH_OPEN, disc) > 0) | found.nuclei
    cell = cv2.morphologyEx(cell.astype(np.uint8), cv2.MORPH_CLOSE, disc) > 0
    parts, _ = ndimage.label(cell)
    cell = ndimage.binary_fill_holes(np.isin(parts, np.unique(parts[found.nuclei])) & (parts > 0))
    return np.asarray(faint & ~cell)


def softness(found: Structures) -> float:
    """Width of the blur on the edges of nuclei, roots (standard deviation of a Gaussian); NaN without edges.

    From how much the gradient falls when the picture is blurred once more (Zhuo & Sim, Pattern Recognition
    44, 2011, equation 5), in the median over the steeper part of the nuclei's rims.
    """
    import cv2

    total = found.dense.sum(axis=-1).astype(np.float32)
    more = max(0.5, REBLUR * found.root)

    def steepness(image: Array) -> Array:
        across, down = (cv2.Sobel(image, cv2.CV_32F, *d, ksize=3) for d in ((1, 0), (0, 1)))
        return np.asarray(np.hypot(across, down))

    # The least blur, against noise, is in both, so that it does not pass for sharpness.
    sharp = steepness(cv2.GaussianBlur(total, (0, 0), 0.7))
    soft = steepness(cv2.GaussianBlur(total, (0, 0), float(np.hypot(0.7, more))))
    nuclei = found.nuclei.astype(np.uint8)
    disc = _disc(RIM * found.root)
    rim = (cv2.dilate(nuclei, disc) > 0) & (cv2.erode(nuclei, disc) == 0)
    edge = rim & (sharp >= np.quantile(sharp[rim], STEEPEST)) & (sharp > 0) if rim.any() else rim
    if not edge.any():
        return float("nan")
    fall = float(np.median(sharp[edge] / np.maximum(soft[edge], 1e-6)))
    return more / float(np.sqrt(max(fall**2 - 1, 1e-2))) / found.root
