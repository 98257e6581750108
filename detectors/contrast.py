"""Stained images of little contrast: haze, a camera's flat curve, a pale stain.

What a network has learned from is lost there, and levels alone do not tell it from a field without
leukocytes: stretched, the red cells of such a field would be leukocytes.  Red cells tell it, where the
detector sees some.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from detectors.datasets import RED_CELL, inner

FEW_LEVELS = 130  # from the 0.1th to the 99.9th percentile; with more the contrast is not looked into
CELL_LEVELS = 80  # of an image with a leukocyte in it; of 589 cells at hand the least has 154, of smears 95
FAINT = 20.0  # levels of a red cell below the glass; of 636 smears and fields at hand the least has 23
MIN_RED_CELLS, MIN_SCORE = 3, 0.25
LARGEST_PX = 1200  # of a side of the middle that is looked at


def levels_used(image: np.ndarray) -> float:
    """Levels from the 0.1th to the 99.9th percentile of an image (H, W[, 3]) uint8."""
    step = max(1, int(np.sqrt(image.shape[0] * image.shape[1] / 1e6)))
    low, high = np.percentile(np.asarray(image[::step, ::step]), [0.1, 99.9])
    return float(high - low)


def faint_red_cells(image: np.ndarray, pixel_size_um: float, detector: Any) -> float | None:
    """How many levels the red cells of a stained (H, W, 3) uint8 image are darker than its glass.

    None where they are not faint, or where fewer than three are seen; `detector` has `look`.
    """
    height, width = image.shape[:2]
    y0, x0 = max(0, (height - LARGEST_PX) // 2), max(0, (width - LARGEST_PX) // 2)
    part = np.asarray(image[y0 : y0 + LARGEST_PX, x0 : x0 + LARGEST_PX])
    if levels_used(part) >= FEW_LEVELS:
        return None
    found = detector.look(part, pixel_size_um)
    keep = (found.classes == RED_CELL) & (found.scores > MIN_SCORE)
    keep &= inner(found.boxes, part.shape[1], part.shape[0])
    if keep.sum() < MIN_RED_CELLS:
        return None
    grey = part.astype(np.float32).reshape(*part.shape[:2], -1).mean(-1)
    glass = float(np.percentile(grey, 95))
    bodies = []
    for left, top, right, bottom in found.boxes[keep].astype(int):
        dx, dy = (right - left) // 5, (bottom - top) // 5
        body = grey[top + dy : bottom - dy, left + dx : right - dx]
        if body.size:
            bodies.append(glass - float(np.percentile(body, 30)))  # not the pale middle of a disc
    contrast = float(np.median(bodies)) if bodies else FAINT
    return contrast if contrast < FAINT else None
