"""Little contrast is told by the red cells, and never by an empty field."""

from __future__ import annotations

import numpy as np
import pytest

from detectors.contrast import faint_red_cells
from detectors.datasets import RED_CELL
from detectors.yolo_onnx import Found

BOXES = np.array([[20 + 60 * i, 20, 60 + 60 * i, 60] for i in range(4)], np.float32)


class Seer:
    """Sees red cells at the boxes, as many as it is told."""

    def __init__(self, n: int) -> None:
        self.n = n

    def look(self, image: np.ndarray, pixel_size_um: float) -> Found:
        return Found(BOXES[: self.n], np.full(self.n, 0.9, np.float32), np.full(self.n, RED_CELL))


def field(levels: int, nucleus: int = 0) -> np.ndarray:
    """Glass at 200, red cells so many levels darker, and a dark spot."""
    image = np.full((120, 280, 3), 200, np.uint8)
    for x0, y0, x1, y1 in BOXES.astype(int):
        image[y0:y1, x0:x1] -= np.uint8(levels)
    image[90:110, 20:40] -= np.uint8(nucleus)
    return image


@pytest.mark.parametrize(("levels", "said"), [(12, 12.0), (40, None)])
def test_only_faint_red_cells_are_said(levels: int, said: float | None) -> None:
    assert faint_red_cells(field(levels), 0.2, Seer(4)) == (said and pytest.approx(said))


def test_an_image_without_red_cells_or_with_the_contrast_of_a_nucleus_is_not_called_faint() -> None:
    assert faint_red_cells(field(12), 0.2, Seer(2)) is None
    assert faint_red_cells(field(12, nucleus=160), 0.2, Seer(4)) is None
