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

    base = _unit(thumbnails)
    for flipped in (False, True) if turned else (False,):
        stack = thumbnails[:, :, ::-1] if flipped else thumbnails
        for quarter in range(4 if turned else 1):
            other = _unit(np.ascontiguousarray(np.rot90(stack, quarter, (1, 2))))
            for i, j in zip(*np.nonzero(np.triu(base @ other.T > threshold, 1)), strict=True):
                a, b = root(int(i)), root(int(j))
                parent[max(a, b)] = min(a, b)
    return np.array([root(i) for i in range(n)])
