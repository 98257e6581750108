"""How fit a piece of a smear is for counting: one layer of red cells, apart, in focus.

A differential is read where red cells lie singly and show their central pallor; not where they pile up,
not at the feathered edge where they lie flat and far apart, not under dirt (ICSH 2015, Palmer et al.,
Int. J. Lab. Hematol. 37:287; CLSI H20).  Everything is measured in micrometres on optical density, so
that neither the objective nor the stain's strength matters much.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

PROBE_UM = 0.5  # the pixel size that everything is measured at: a red cell is 15 px
SHRINK_UM = 1.0  # cells that only touch come apart when their outlines shrink by this
SINGLE_UM2 = (6.0, 62.0)  # what is left of one red cell of 5 to 10.5 µm
NUCLEATED_UM2 = 260.0  # and at most of one leukocyte
SPECK_UM = 3.0  # precipitate and platelets are smaller than this, and denser than a layer of red cells
RED_CELL_UM2 = 50.0  # area of a red cell's image
HOLE_UM2 = 25.0  # of the central pallor where the ring is closed
NUCLEAR_DENSITY = 0.22  # of red light, which haemoglobin hardly absorbs


@dataclass(frozen=True)
class SmearQuality:
    """What a piece of a smear shows; shares in [0, 1].

    `sharpness` is the steepest part of the red cells' outlines, per pixel of 0.5 µm, relative to their
    density; it is compared among the pieces of one slide.
    """

    coverage: float  # of the area that is stained
    apart: float  # of the stained area that belongs to cells lying singly
    pallor: float  # of single red cells that are paler in the middle
    piled: float  # of the red cells' area that is twice as dense as one layer
    specks_per_cell: float  # small dense spots for each red cell's worth of stained area
    cells_per_mm2: float
    sharpness: float

    @property
    def layer(self) -> float:
        """The monolayer score in [0, 1], without focus."""
        return float(
            self.apart
            * ramp(self.coverage, 0.03, 0.14)
            * ramp(self.coverage, 0.85, 0.6)
            * (0.35 + 0.65 * ramp(self.pallor, 0.0, 0.35))
            * ramp(self.piled, 0.45, 0.1)
            * (0.15 + 0.85 * ramp(self.specks_per_cell, 1.2, 0.4))
        )


NOTHING = SmearQuality(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def ramp(value: float, low: float, high: float) -> float:
    """0 at `low`, 1 at `high`, straight between; falls where `low` is the greater."""
    return float(np.clip((value - low) / (high - low), 0.0, 1.0))


def monolayer_score(quality: SmearQuality, sharpest: float) -> float:
    """The score in [0, 1] with focus; `sharpest` is the sharpness that the slide reaches."""
    if sharpest <= 0:
        return 0.0
    return quality.layer * (0.05 + 0.95 * ramp(quality.sharpness / sharpest, 0.4, 0.8))


def smear_quality(image: Array, pixel_size_um: float, glass: Array) -> SmearQuality:
    """Quality of a piece of smear (H, W, 3) uint8; `glass` (3,) is the colour of the slide's empty glass."""
    import cv2

    from storage.slide_grid import optical_density

    factor = pixel_size_um / PROBE_UM
    if abs(factor - 1) > 0.02:
        size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR)
    pixels = np.ascontiguousarray(image)
    brightest = np.percentile(pixels.reshape(-1, 3), 98, axis=0)
    densities = optical_density(pixels, np.maximum(glass, brightest))
    density = densities.max(axis=2)
    # Plasma, uneven light and unclean glass lie under everything.
    density -= np.float32(np.clip(np.percentile(density, 4), 0.0, 0.08))
    smooth = cv2.GaussianBlur(density, (0, 0), 0.7)
    stained = _filled(smooth > _threshold(smooth, densities[..., 0]))
    coverage = float(stained.mean())
    if coverage < 0.005:
        return NOTHING
    return _measure(smooth, densities[..., 0], stained, coverage)


def _threshold(density: Array, red: Array) -> float:
    """Between glass and one layer of red cells: Otsu's, of what is no nucleus, which would draw it up."""
    import cv2

    nuclei = cv2.dilate((red > 0.6 * NUCLEAR_DENSITY).astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    plain = density[~nuclei] if nuclei.mean() < 0.5 else density
    scaled = np.clip(plain.reshape(1, -1) * (255.0 / 0.3), 0, 255).astype(np.uint8)
    otsu, _ = cv2.threshold(scaled, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    return float(np.clip(otsu * (0.3 / 255.0), 0.035, 0.14))


def _filled(mask: Array) -> Array:
    """The mask with its small holes closed: rings of red cells whose middle is as pale as glass."""
    import cv2

    _, labels, stats, _ = cv2.connectedComponentsWithStats((~mask).astype(np.uint8), connectivity=4)
    small = stats[:, cv2.CC_STAT_AREA] * PROBE_UM**2 < HOLE_UM2
    small[0] = False  # label 0 is the mask itself
    filled: Array = mask | small[labels]
    return filled


def _measure(density: Array, red: Array, stained: Array, coverage: float) -> SmearQuality:
    import cv2

    um2 = PROBE_UM**2
    binary = stained.astype(np.uint8)
    depth = cv2.distanceTransform(binary, cv2.DIST_L2, 3) * PROBE_UM
    n, labels, stats, _ = cv2.connectedComponentsWithStats(
        (depth > SHRINK_UM).astype(np.uint8), connectivity=4
    )
    area = stats[:, cv2.CC_STAT_AREA] * um2
    area[0] = 0.0
    flat = labels.ravel()
    nuclear = np.bincount(flat, (red > NUCLEAR_DENSITY).ravel(), n) / np.maximum(
        stats[:, cv2.CC_STAT_AREA], 1
    )
    nucleated = (nuclear > 0.2) & (area > SINGLE_UM2[0]) & (area < NUCLEATED_UM2)
    single = (area >= SINGLE_UM2[0]) & (area <= SINGLE_UM2[1]) & ~nucleated
    apart = float(area[single | nucleated].sum() / max(area.sum(), 1e-6))
    n_single = int(single.sum())
    if not n_single:
        return SmearQuality(coverage, apart, 0.0, 1.0, 0.0, 0.0, 0.0)

    # Rim against middle of each single cell: the rim's density is also one layer's.
    rim = _mean_of(flat, (depth < SHRINK_UM + 1.2).ravel(), density.ravel(), n)
    deep = np.zeros(n, np.float32)
    np.maximum.at(deep, flat, depth.ravel())
    middle = _mean_of(flat, (depth > 0.75 * deep[labels]).ravel(), density.ravel(), n)
    pallor = float((middle[single] < 0.93 * rim[single]).mean())
    layer = float(np.median(rim[single]))
    # Two layers, but no nucleus: those absorb red light as well.
    piled = float(((density > 1.7 * layer) & (red < NUCLEAR_DENSITY) & stained).sum() / stained.sum())
    return SmearQuality(
        coverage,
        apart,
        pallor,
        piled,
        _count_specks(density, red, layer) / (stained.sum() * um2 / RED_CELL_UM2),
        n_single / (density.size * um2 * 1e-6),
        _sharpness(density, depth, layer),
    )


def _count_specks(density: Array, red: Array, layer: float) -> int:
    """Small spots denser than one layer, on cells and beside them, but not in nuclei."""
    import cv2

    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (round(SPECK_UM / PROBE_UM) + 1,) * 2)
    spots = density - cv2.morphologyEx(density, cv2.MORPH_OPEN, disc) > layer
    bodies = cv2.morphologyEx((red > NUCLEAR_DENSITY).astype(np.uint8), cv2.MORPH_OPEN, disc)
    spots &= cv2.dilate(bodies, disc) == 0
    return int(cv2.connectedComponents(spots.astype(np.uint8), connectivity=8)[0]) - 1


def _mean_of(labels: Array, chosen: Array, values: Array, n: int) -> Array:
    """Mean of the chosen values of each label; 0 where a label has none."""
    picked = labels[chosen]
    counts = np.bincount(picked, minlength=n)
    return np.asarray(np.bincount(picked, values[chosen], n) / np.maximum(counts, 1))


def _sharpness(density: Array, depth: Array, layer: float) -> float:
    """Slope of the outlines, median over their pixels, relative to the density of one layer."""
    import cv2

    slope = np.hypot(
        cv2.Sobel(density, cv2.CV_32F, 1, 0, scale=1 / 8), cv2.Sobel(density, cv2.CV_32F, 0, 1, scale=1 / 8)
    )
    # The steepest place lies within a micrometre of where the threshold drew the outline.
    steepest = cv2.dilate(slope, np.ones((3, 3), np.uint8))
    outline = (depth > 0) & (depth <= PROBE_UM * 1.5)
    return float(np.median(steepest[outline]) / max(layer, 0.02)) if outline.any() else 0.0
