"""Where a leukocyte ends and a red cell that touches it begins, told by the colours of the image itself.

A network that has seen two stains takes parts of touching red cells for cytoplasm.  But each image shows
what its red cells look like, those that touch nothing, and what this cell's cytoplasm looks like, the rim
of its nucleus.  Both are described by a normal distribution of optical density, and a pixel of doubt is
decided by their likelihood ratio beside the network's log-odds (quadratic discriminant analysis, akin to
GrabCut, Rother et al. 2004).  An image without free red cells is left as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from detectors.base import CYTOPLASM, NUCLEUS, RED_CELL
from detectors.segment_colour import background_colour, optical_density

# Chosen on cells of the training part (docs/segmentation.md).
BLUR_UM = 0.15
FREE_UM = 1.0  # a red cell's pixels this far from any leukocyte are its colour alone
RIM_UM = (0.4, 1.5)  # cytoplasm this far from the nucleus is cytoplasm, not a neighbour
MIN_FREE_UM2, MIN_RIM_UM2 = 4.0, 2.0
MIN_PIXELS = 24  # fewer give no covariance worth the name
MIN_SEPARATION = 0.75  # of the two colours, in standard deviations; below it colour says nothing
NOISE_OD = 0.02
COLOUR_WEIGHT, MOST_COLOUR, MOST_NETWORK = 1.5, 8.0, 3.0
SMOOTH_UM, OPENING_UM = 0.2, 0.8
KEPT_UM = 0.6  # what lies this near to the nucleus is never taken from the cell
REACH_UM, GAIN = 3.0, 1.0  # a pixel so far from the cell joins it only against this score


@dataclass(frozen=True)
class Colour:
    """A normal distribution of optical density (3,)."""

    mean: np.ndarray
    precision: np.ndarray
    log_det: float

    @classmethod
    def of(cls, density: np.ndarray) -> Colour:
        """Fit to pixels (N, 3); noise keeps the covariance from collapsing."""
        covariance = np.cov(density.T) + np.eye(3) * NOISE_OD**2
        return cls(density.mean(0), np.linalg.inv(covariance), float(np.linalg.slogdet(covariance)[1]))

    def log_likelihood(self, density: np.ndarray) -> np.ndarray:
        """Up to a constant, of pixels (..., 3)."""
        d = density - self.mean
        return np.asarray(-0.5 * (((d @ self.precision) * d).sum(-1) + self.log_det))

    def separation(self, other: Colour) -> float:
        """Mahalanobis distance of the means under the mean of both covariances."""
        d = self.mean - other.mean
        pooled = (np.linalg.inv(self.precision) + np.linalg.inv(other.precision)) / 2
        return float(np.sqrt(d @ np.linalg.inv(pooled) @ d))


def part_touching_cells(
    labels: np.ndarray, log_odds: np.ndarray, image: np.ndarray, pixel_size_um: float
) -> np.ndarray:
    """Labels (H, W) with the border between each leukocyte and the red cells around it decided by colour.

    labels (H, W) uint8 as in detectors.base, log_odds (H, W) float of cytoplasm against red cell, image
    (H, W, 3) uint8.  Only cytoplasm and red cell change places; a piece that is cut off becomes red cell.
    """
    leukocyte = labels >= CYTOPLASM
    if not leukocyte.any() or not (labels == RED_CELL).any():
        return labels
    far = _distance_um(leukocyte, pixel_size_um)
    free = (labels == RED_CELL) & (far > FREE_UM)
    if free.sum() < max(MIN_PIXELS, MIN_FREE_UM2 / pixel_size_um**2):
        return labels
    density = optical_density(image, background_colour(image))
    density = cv2.GaussianBlur(density, (0, 0), max(0.5, BLUR_UM / pixel_size_um))
    red = Colour.of(density[free])
    out = labels.copy()
    count, parts, stats, _ = cv2.connectedComponentsWithStats(leukocyte.astype(np.uint8), connectivity=8)
    margin = round((REACH_UM + 1.0) / pixel_size_um)
    for part in range(1, count):
        x, y, w, h = stats[part, :4]
        box = (slice(max(0, y - margin), y + h + margin), slice(max(0, x - margin), x + w + margin))
        found = _parted(
            labels[box], parts[box] == part, log_odds[box], density[box], red, pixel_size_um
        )  # fmt: skip
        if found is not None:
            changed = found != labels[box]
            out[box][changed] = found[changed]
    return out


def _parted(
    labels: np.ndarray,
    cell: np.ndarray,
    log_odds: np.ndarray,
    density: np.ndarray,
    red: Colour,
    pixel_size_um: float,
) -> np.ndarray | None:
    """Labels of one leukocyte's surroundings, or None where colour cannot decide."""
    nucleus, cytoplasm = cell & (labels == NUCLEUS), cell & (labels == CYTOPLASM)
    if not nucleus.any():
        return None
    depth = _distance_um(nucleus, pixel_size_um)
    rim = cytoplasm & (depth > RIM_UM[0]) & (depth < RIM_UM[1])
    if rim.sum() < max(MIN_PIXELS, MIN_RIM_UM2 / pixel_size_um**2):
        return None
    own = Colour.of(density[rim])
    if own.separation(red) < MIN_SEPARATION:
        return None
    ratio = np.clip(own.log_likelihood(density) - red.log_likelihood(density), -MOST_COLOUR, MOST_COLOUR)
    score = np.clip(log_odds, -MOST_NETWORK, MOST_NETWORK) + COLOUR_WEIGHT * ratio
    score = cv2.GaussianBlur(score.astype(np.float32), (0, 0), max(0.5, SMOOTH_UM / pixel_size_um))
    lost = cytoplasm & (score < 0) & (depth > KEPT_UM)
    near = _distance_um(cell & ~lost, pixel_size_um) < REACH_UM
    won = (labels == RED_CELL) & (score > GAIN) & near
    whole = (cell & ~lost) | won
    size = 2 * (max(1, round(OPENING_UM / pixel_size_um)) // 2) + 1
    opened = cv2.morphologyEx(
        whole.astype(np.uint8), cv2.MORPH_OPEN, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))
    )
    # Splinters go, where this step made them: thin parts of the cell elsewhere are its own.
    beside = cv2.dilate(lost.astype(np.uint8), np.ones((size, size), np.uint8)) > 0
    whole &= (opened > 0) | nucleus | (cytoplasm & ~beside)
    _, pieces = cv2.connectedComponents(whole.astype(np.uint8), connectivity=8)
    whole &= np.isin(pieces, np.unique(pieces[nucleus]))
    out = labels.copy()
    out[cytoplasm & ~whole] = RED_CELL
    out[(labels == RED_CELL) & whole] = CYTOPLASM
    return out


def _distance_um(mask: np.ndarray, pixel_size_um: float) -> np.ndarray:
    """How far each pixel lies from a mask, 0 within it."""
    outside = cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 3)
    return np.asarray(outside * pixel_size_um)
