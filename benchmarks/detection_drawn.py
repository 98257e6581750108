"""Fields of drawn DIC with boxes, for the training of the DIC detector.

    python -m benchmarks.detection_drawn OUT [--fields 360] [--seed 7000]

DIC computed from stained photographs knows thickness through the stain alone.  A phantom's thickness is
drawn: a red cell has its pallor and a small lymphocyte is a smooth dome, whatever either stains like.  The
fields are small, rich in lymphocytes, half of them under a well-set microscope, half under any
(`phantoms.optics`).  OUT is a YOLO-format folder at 0.1 µm a pixel.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from detectors.datasets import Sample

PIXEL_SIZE_UM = 0.1
SIDE_PX = 512
COMPOSITION = {
    "lymphocyte": 0.45,
    "neutrophil_segmented": 0.25,
    "neutrophil_band": 0.04,
    "monocyte": 0.12,
    "eosinophil": 0.09,
    "basophil": 0.05,
}


def drawn_field(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A DIC field (S, S) uint8, boxes (N, 4) in its pixels and their classes (N,)."""
    from detectors.datasets import LEUKOCYTE, PLATELET, RED_CELL
    from phantoms.cases import calm_optics
    from phantoms.fields import lay_fields, populate, render_field
    from phantoms.optics import random_optics, render_dic
    from phantoms.stains import random_style

    rng = np.random.default_rng([seed, 0])
    view = lay_fields(1, SIDE_PX, SIDE_PX, PIXEL_SIZE_UM)[0]
    cells = populate(
        [view],
        PIXEL_SIZE_UM,
        rng,
        composition=COMPOSITION,
        n_leukocytes=int(rng.integers(3, 8)),
        red_cell_cover=float(rng.uniform(0.15, 0.45)),
        cut_cells=bool(rng.random() < 0.5),
    )
    layers = render_field(cells, view, PIXEL_SIZE_UM, random_style(rng, spread=1.0), margin_px=8)
    optics = calm_optics(rng) if rng.random() < 0.5 else random_optics(rng)
    image = render_dic(layers.path, PIXEL_SIZE_UM, optics, rng, density=layers.density[..., 1])
    boxes, classes = [], []
    for cell in cells:
        if cell.kind in ("red_cell", "platelet"):
            half = cell.diameter_um / 2
            box = np.array([cell.x_um - half, cell.y_um - half, cell.x_um + half, cell.y_um + half])
            box = box / PIXEL_SIZE_UM - np.tile([view.left_px, view.top_px], 2)
            seen = np.clip(box, 0, SIDE_PX)
            if np.prod(seen[2:] - seen[:2]) > 0.3 * np.prod(box[2:] - box[:2]):
                boxes.append(seen)
                classes.append(RED_CELL if cell.kind == "red_cell" else PLATELET)
    for _, tight, _, _ in layers.seen:
        boxes.append(np.array(tight, np.float64))
        classes.append(LEUKOCYTE)
    inside = slice(layers.margin_px, layers.margin_px + SIDE_PX)
    return image[inside, inside], np.array(boxes).reshape(-1, 4), np.array(classes, int)


def write_fields(out: Path, fields: int, seed: int) -> None:
    """Draw the fields that OUT lacks; each follows from its number and the seed alone."""
    import cv2

    for part in ("images", "labels"):
        (out / part / "train").mkdir(parents=True, exist_ok=True)
    for number in range(fields):
        image_path = out / "images" / "train" / f"drawn-{seed + number}.png"
        if image_path.is_file():
            continue
        image, boxes, classes = drawn_field(seed + number)
        middle, size = (boxes[:, :2] + boxes[:, 2:]) / 2 / SIDE_PX, (boxes[:, 2:] - boxes[:, :2]) / SIDE_PX
        rows = np.column_stack([middle, size]).reshape(-1, 4)
        lines = [f"{c} " + " ".join(f"{v:.5f}" for v in row) for c, row in zip(classes, rows, strict=True)]
        label_path = out / "labels" / "train" / f"{image_path.stem}.txt"
        label_path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        cv2.imwrite(str(image_path), image)


def drawn_samples(folder: Path) -> list[Sample]:
    """The written fields as training samples that are DIC already."""
    from detectors.datasets import read_yolo_folder
    from detectors.packing import ALREADY_DIC

    return [replace(s, tags=(ALREADY_DIC,)) for s in read_yolo_folder(folder, PIXEL_SIZE_UM)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--fields", type=int, default=360)
    parser.add_argument("--seed", type=int, default=7000)
    arguments = parser.parse_args()
    write_fields(arguments.out, arguments.fields, arguments.seed)


if __name__ == "__main__":
    main()
