"""The scale of a smear read off its red cells, with thresholds alone."""

from __future__ import annotations

import cv2
import numpy as np

from detectors.segment_colour import background_colour, optical_density

# Optical densities at which red cells may stand out of the glass; light and stain decide which does.
THRESHOLDS = (0.05, 0.08, 0.12, 0.18, 0.26)


def red_cell_diameter_px(image: np.ndarray, minimum: int = 3) -> float | None:
    """Median diameter (px) of the whole round red cells of (H, W, 3) uint8, or None below `minimum` cells.

    A red cell is stained, round, filled, takes less red light away than green, and does not touch
    the image's edge.  Sizes are compared between cells, so platelets drop out.
    """
    longest = max(image.shape[:2])
    factor = min(1.0, 640 / longest)
    small = image
    if factor < 1:
        small = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    density = optical_density(small, background_colour(small))
    strength = cv2.GaussianBlur(density.max(axis=2), (0, 0), 1.0)
    best: list[float] = []
    for level in THRESHOLDS:
        diameters = _round_red_cells(strength > level, density)
        if len(diameters) > len(best):
            best = diameters
    found = np.array(best)
    if found.size < minimum:
        return None
    found = found[found > 0.55 * np.percentile(found, 90)]  # platelets beside red cells
    covered = float((np.pi / 4 * found**2).sum()) / strength.size
    # A few round specks are no red cells: those cover a good part of any smear worth reading.
    return float(np.median(found) / factor) if found.size >= minimum and covered > 0.01 else None


def _round_red_cells(stained: np.ndarray, density: np.ndarray) -> list[float]:
    """Equivalent diameters (px) of the round red cells of a mask (H, W) that lie whole in the image."""
    rows, columns = stained.shape
    diameters = []
    for contour in cv2.findContours(stained.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0]:
        area, length = cv2.contourArea(contour), cv2.arcLength(contour, True)
        x, y, w, h = cv2.boundingRect(contour)
        at_edge = x <= 1 or y <= 1 or x + w >= columns - 1 or y + h >= rows - 1
        if area < 60 or at_edge or max(w, h) > 1.4 * min(w, h):
            continue
        if 4 * np.pi * area / length**2 < 0.7 or area / cv2.contourArea(cv2.convexHull(contour)) < 0.92:
            continue
        mask = cv2.drawContours(np.zeros((h, w), np.uint8), [contour], -1, 1, cv2.FILLED, offset=(-x, -y)) > 0
        red, green = (float(np.median(density[y : y + h, x : x + w, c][mask])) for c in (0, 1))
        if red < 0.75 * green and red < 0.3:
            diameters.append(2 * float(np.sqrt(area / np.pi)))
    return diameters
