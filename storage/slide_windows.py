"""A whole slide as an image that is read where it is looked at, so that it takes no memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from storage.slides import SlideReader


class SlideWindows:
    """An opened slide at full resolution, (H, W, 3) uint8: it has `shape`, `dtype`, and parts by slices.

    `height_px` takes its top alone; `seen` is told how many pixels each part has, for a bar of progress.
    Reading a part raises UnreadableImage where it cannot be decoded.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self,
        reader: SlideReader,
        *,
        height_px: int | None = None,
        seen: Callable[[int], object] = lambda n_pixels: None,
    ) -> None:
        height = reader.height_px if height_px is None else min(height_px, reader.height_px)
        self._reader, self._seen = reader, seen
        self.shape = (height, reader.width_px, 3)

    def __getitem__(self, where: tuple[slice, slice]) -> np.ndarray:
        (y0, y1, _), (x0, x1, _) = (s.indices(n) for s, n in zip(where, self.shape, strict=False))
        part = self._reader.read_region_px(x0, y0, x1 - x0, y1 - y0, x1 - x0, y1 - y0)
        self._seen((x1 - x0) * (y1 - y0))
        return part
