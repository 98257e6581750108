"""What a detector and a segmenter are to everyone who uses one."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np

# Labels of a segmentation, thesis 4.4.4: one class a pixel.
BACKGROUND, RED_CELL, CYTOPLASM, NUCLEUS = 0, 1, 2, 3


@runtime_checkable
class Detector(Protocol):
    """Finds leukocytes in an image of any size."""

    name: str

    def detect(self, image: np.ndarray, pixel_size_um: float) -> tuple[np.ndarray, np.ndarray]:
        """Boxes (N, 4) float32 x0, y0, x1, y1 in pixels of `image`, and scores (N,) float32 in [0, 1].

        `image` is (H, W, 3) or (H, W) uint8, at any pixel size; the detector resamples to its own
        scale and tiles where it must.  Every box above a low score is returned, sorted by falling score.
        """
        ...


@runtime_checkable
class Segmenter(Protocol):
    """Labels the pixels of patches centred on a cell."""

    name: str

    def segment(self, patches: np.ndarray, pixel_size_um: float | None) -> np.ndarray:
        """Labels (N, H, W) uint8 of patches (N, H, W, 3) uint8; the same for any batch.

        Without a pixel size the scale is taken from the patch itself.
        """
        ...
