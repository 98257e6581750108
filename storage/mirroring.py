"""What lies beyond the edges of an image: itself, mirrored, as often as needed."""

from __future__ import annotations

import numpy as np


def mirrored(index: np.ndarray, length: int) -> np.ndarray:
    """Indices that may leave an axis of `length`, folded back into it at its edges (…1 0 | 0 1 2…)."""
    folded = np.mod(index, 2 * length)
    return np.asarray(np.where(folded < length, folded, 2 * length - 1 - folded))


def mirrored_once(index: np.ndarray, length: int) -> np.ndarray:
    """As `mirrored`, at the middle of the outermost pixels, which stand once (…2 1 | 0 1 2…).

    What the stainers were trained with.
    """
    period = max(2 * length - 2, 1)
    folded = np.abs(index) % period
    return np.asarray(np.where(folded >= length, period - folded, folded))
