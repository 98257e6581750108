"""How a side of an image is covered by windows that overlap."""

from __future__ import annotations

import numpy as np


def spread(length: int, window: int, count: int) -> list[int]:
    """Starts of `count` windows, evenly over a side: the first at its beginning, the last at its end."""
    return [int(v) for v in np.linspace(0, length - window, count).round()]


def starts(length: int, window: int, overlap: int) -> list[int]:
    """Starts of as few windows as cover a side with at least `overlap`; one where the window is as long."""
    if length <= window:
        return [0]
    return spread(length, window, -(-(length - overlap) // (window - overlap)))
