"""Boxes that no leukocyte can have: of lines of text, scale bars, the dark outside a round field."""

from __future__ import annotations

import numpy as np

LONGEST = 2.2  # a side over the other, away from the image's edges; of 1,175 true leukocytes one is over it
EDGE_PX = 2.0
BLACK = 25  # of 255, in every channel; a nucleus keeps its blue
LEAST_BLACK_UM2 = 10.0  # of black that touches the edge; rims of the smears at hand have 4 or less
MOST_IN_BLACK = 0.3  # of a box; false ones in the corners of a round field have 0.31 to 0.72


def can_be_cells(
    image: np.ndarray, boxes: np.ndarray, pixel_size_um: float, *, stained: bool = True
) -> np.ndarray:
    """A mask (N,) of the boxes (N, 4) that a leukocyte of an image (H, W, 3) uint8 can have.

    The shape of a box tells lines of text and bars in a stained image alone: in DIC a flank of a leukocyte
    is longer than that.  What gives its pixels only by slices (a slide, a painted image) is not searched
    for black.
    """
    height, width = image.shape[:2]
    fits = np.ones(len(boxes), bool)
    if stained:
        x0, y0, x1, y1 = boxes.T
        inner = (x0 > EDGE_PX) & (y0 > EDGE_PX) & (x1 < width - EDGE_PX) & (y1 < height - EDGE_PX)
        sides = np.sort(np.stack([x1 - x0, y1 - y0]), axis=0)
        fits &= ~(inner & (sides[1] > LONGEST * sides[0]))
    if isinstance(image, np.ndarray) and len(boxes):
        outside = _outside(image, pixel_size_um)
        if outside is not None:
            fits &= _share(outside, boxes) <= MOST_IN_BLACK
    return fits


def _outside(image: np.ndarray, pixel_size_um: float) -> np.ndarray | None:
    """Where (H, W) an image is black from its edge on; None where it is nowhere."""
    import cv2

    rim = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    if not (rim < BLACK).all(axis=-1).any():  # most images: nothing more is looked at
        return None
    black = cv2.inRange(np.ascontiguousarray(image), np.zeros(3), np.full(3, BLACK - 1.0))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(black, connectivity=4)
    height, width = black.shape
    touches = (stats[:, :2] == 0).any(axis=1)
    touches |= (stats[:, 0] + stats[:, 2] == width) | (stats[:, 1] + stats[:, 3] == height)
    far = touches & (stats[:, 4] * pixel_size_um**2 > LEAST_BLACK_UM2)
    far[0] = False  # what is not black
    return np.asarray(far[labels]) if far.any() else None


def _share(mask: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """The share (N,) of each box that lies in a mask (H, W)."""
    found = np.zeros(len(boxes))
    for i, (x0, y0, x1, y1) in enumerate(np.rint(boxes).astype(int)):
        part = mask[max(0, y0) : y1, max(0, x0) : x1]
        found[i] = part.mean() if part.size else 0.0
    return found
