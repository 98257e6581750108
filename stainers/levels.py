"""The uneven light of a field."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

BACKGROUND_BLOCK_PX = 192


def level_background(grey: Array) -> Array:
    """A field (H, W) with its uneven illumination divided out: medians of blocks, smoothed."""
    height, width = grey.shape
    rows, columns = (max(1, round(n / BACKGROUND_BLOCK_PX)) for n in (height, width))
    if rows * columns == 1:
        return grey
    ys, xs = (np.linspace(0, n, k + 1).astype(int) for n, k in ((height, rows), (width, columns)))
    medians = np.asarray(
        [
            [np.median(grey[ys[r] : ys[r + 1] : 2, xs[c] : xs[c + 1] : 2]) for c in range(columns)]
            for r in range(rows)
        ]
    )
    padded = np.pad(medians, 1, mode="edge")
    smooth = np.median(
        [padded[r : r + rows, c : c + columns] for r in range(3) for c in range(3)], axis=0
    )  # one crowded block does not bend the background
    centre_y, centre_x = (ys[1:] + ys[:-1]) / 2, (xs[1:] + xs[:-1]) / 2
    across = np.stack([np.interp(np.arange(width), centre_x, line) for line in smooth])
    position = np.interp(np.arange(height), centre_y, np.arange(rows))
    low = np.minimum(position.astype(int), max(rows - 2, 0))
    part = (position - low).astype(np.float32)
    across = across.astype(np.float32)
    level = np.float32(np.median(medians))
    result = np.empty_like(grey, dtype=np.float32)
    for y in range(height):
        background = across[low[y]] * (1 - part[y]) + across[min(low[y] + 1, rows - 1)] * part[y]
        result[y] = grey[y] * (level / np.maximum(background, 1.0))
    return result
