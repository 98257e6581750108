"""Drawn smears for the detector tests: simple, exact, and at any pixel size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np


def smear(
    shape_um: tuple[float, float],
    leukocytes_um: list[tuple[float, float]],
    pixel_size_um: float = 0.1,
    red_cells: bool = True,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """An RGB smear (H, W, 3) uint8 and the boxes of its leukocytes in pixels; centres are (x, y) in µm."""
    import cv2

    rng = np.random.default_rng(seed)
    draw_um = 0.1  # drawn finely, then averaged to the pixel size that is asked for
    height, width = (round(v / draw_um) for v in shape_um)
    image = np.full((height, width, 3), (232, 226, 218), np.uint8)

    def disc(x: float, y: float, radius_um: float, colour: tuple[int, int, int]) -> None:
        centre = (round(x / draw_um * 16), round(y / draw_um * 16))
        cv2.circle(image, centre, round(radius_um / draw_um * 16), colour, -1, cv2.LINE_AA, 4)

    if red_cells:
        for y in np.arange(5, shape_um[0] - 3, 10.0):
            for x in np.arange(5, shape_um[1] - 3, 10.0):
                cx, cy = x + rng.uniform(-1, 1), y + rng.uniform(-1, 1)
                if all((cx - a) ** 2 + (cy - b) ** 2 > 12**2 for a, b in leukocytes_um):
                    disc(cx, cy, 3.75, (205, 160, 165))
                    disc(cx, cy, 1.3, (222, 190, 190))
    boxes = []
    for x, y in leukocytes_um:
        disc(x, y, 6.5, (196, 178, 214))
        for dx, dy in ((-1.8, -1.2), (1.9, -0.8), (0.2, 2.0)):
            disc(x + dx, y + dy, 2.5, (92, 52, 138))
        boxes.append((x - 6.5, y - 6.5, x + 6.5, y + 6.5))
    image = cv2.GaussianBlur(image, (0, 0), 2.0)
    image = np.clip(image + rng.normal(0, 2.0, image.shape), 0, 255).astype(np.uint8)
    size = (round(shape_um[1] / pixel_size_um), round(shape_um[0] / pixel_size_um))
    if size != (width, height):
        how = cv2.INTER_AREA if size[0] < width else cv2.INTER_LINEAR
        image = cv2.resize(image, size, interpolation=how)
    return image, np.array(boxes, np.float32).reshape(-1, 4) / pixel_size_um


def drawn_dic(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A drawn DIC field of 30 leukocytes, two in three of them lymphocytes: image, boxes in px, classes."""
    from phantoms.cases import simulate_case
    from storage.images import read_rgb

    case = simulate_case(
        folder,
        case_id="drawn",
        seed=515151,  # training's seeds are 7000 and on
        n_fields=1,
        modalities=("dic",),
        composition={"lymphocyte": 2.0, "neutrophil_segmented": 1.0},
        n_leukocytes_per_field=30,
    )
    (truth,) = json.loads((case / "truth.json").read_text())["fields"].values()
    boxes, classes = np.array(truth["leukocytes_dic_xyxy"]), np.array(truth["classes"])
    return read_rgb(next(case.glob("*_DIC.tif"))), boxes, classes
