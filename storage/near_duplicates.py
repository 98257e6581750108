"""Near-duplicates among images: who must stay on one side of every split.

Public sets hold the same photograph twice, resized, turned or re-compressed; a model tested on a copy of
what it was trained on is flattered.  Two images are alike when their 24 x 24 px grey thumbnails correlate
above a threshold; likeness is passed on, so a chain of copies is one group.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

THUMBNAIL_PX = 24
MAX_PRODUCTS = 1 << 24  # correlations held at a time, 64 MiB of them


def thumbnail(image: Array) -> Array:
    """The thumbnail (THUMBNAIL_PX, THUMBNAIL_PX) uint8 of an image (H, W, 3) uint8, squashed to a square."""
    import cv2

    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    return np.asarray(cv2.resize(grey, (THUMBNAIL_PX, THUMBNAIL_PX), interpolation=cv2.INTER_AREA))


def _unit(thumbnails: Array) -> Array:
    """(N, p) float32 of zero mean and unit length, so that a product is a correlation."""
    flat = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    flat = flat - flat.mean(axis=1, keepdims=True)
    return np.asarray(flat / (np.linalg.norm(flat, axis=1, keepdims=True) + 1e-6))


def near_duplicate_groups(thumbnails: Array, threshold: float, *, turned: bool = True) -> Array:
    """The group of each thumbnail (N, h, w), h = w where `turned`: the smallest index in it, (N,) int64.

    `turned` compares all eight flips and quarter turns, so that an augmented copy is found.  The threshold is
    the correlation above which two are alike: cells centred on glass resemble each other more than fields
    do, so it is the caller's.
    """
    n = len(thumbnails)
    parent = np.arange(n)
    if n == 0:
        return parent

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = int(parent[i])
        return i

    rows = max(1, MAX_PRODUCTS // n)
    base = _unit(thumbnails)
    for flipped in (False, True) if turned else (False,):
        stack = thumbnails[:, :, ::-1] if flipped else thumbnails
        for quarter in range(4 if turned else 1):
            other = _unit(np.ascontiguousarray(np.rot90(stack, quarter, (1, 2))))
            for first in range(0, n, rows):
                # rows of the table of all pairs, and of those only what lies above its diagonal
                above = np.triu(base[first : first + rows] @ other[first:].T > threshold, 1)
                for i, j in zip(*np.nonzero(above), strict=True):
                    a, b = root(first + int(i)), root(first + int(j))
                    parent[max(a, b)] = min(a, b)
    return np.array([root(i) for i in range(n)])
