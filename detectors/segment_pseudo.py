"""Pseudo-labels from boxes: a trained segmenter labels cells whose boxes a person has drawn.

Two stains with masks are few; fields with boxes are many and come from other laboratories.  A cell is
taken only where the segmenter, without having seen the box, fills it, and where it says the same of
turned and rescaled views.  Boxes of red cells correct the usual mistake, a touching red cell taken for
cytoplasm.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from detectors.base import CYTOPLASM, NUCLEUS, Segmenter
from detectors.datasets import LEUKOCYTE, RED_CELL, Sample, read_yolo_folder
from detectors.segment import central_cell
from detectors.segment_data import IGNORE, LabelledCell, labels_of
from detectors.segment_evaluation import dice
from storage.images import read_rgb

CONTEXT = 2.3  # side of a crop in sides of its box
MIN_BOX_IOU, MIN_AGREEMENT = 0.85, 0.93
MIN_NUCLEUS_SHARE = 0.1


def pseudo_labelled_cells(
    teacher: Segmenter, boxes_dir: Path, per_source: int = 150, seed: int = 1
) -> list[LabelledCell]:
    """Up to `per_source` cells of each source of a folder of boxes (YOLO format, `read_yolo_folder`).

    Only images of the `train` part are read where the folder has parts.
    """
    samples = [s for s in read_yolo_folder(boxes_dir) if not {"val", "test"} & set(s.tags)]
    rng = np.random.default_rng(seed)
    by_source: dict[str, list[Sample]] = {}
    for sample in samples:
        by_source.setdefault(_family(sample), []).append(sample)
    kept: list[LabelledCell] = []
    for source in sorted(by_source):
        pool = by_source[source]
        found = 0
        for index in rng.permutation(len(pool)):
            if found >= per_source:
                break
            for cell in _cells_of(teacher, pool[int(index)], source):
                kept.append(cell)
                found += 1
    return kept


def _family(sample: Sample) -> str:
    """Fields of nearly one size are of one laboratory."""
    return f"boxes-{round(max(sample.width_px, sample.height_px) / 32) * 32}"


def _cells_of(teacher: Segmenter, sample: Sample, source: str) -> Iterator[LabelledCell]:
    image = read_rgb(sample.path)
    for box in sample.of(LEUKOCYTE):
        x0, y0, x1, y1 = box
        if x0 < 2 or y0 < 2 or x1 > sample.width_px - 2 or y1 > sample.height_px - 2:
            continue
        half = CONTEXT / 2 * max(x1 - x0, y1 - y0)
        cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
        left, top = max(0, int(cx - half)), max(0, int(cy - half))
        crop = image[top : int(cy + half) + 1, left : int(cx + half) + 1]
        shift = np.array((left, top, left, top), np.float32)
        labels = label_by_box(teacher, crop, box - shift, sample.of(RED_CELL) - shift, sample.pixel_size_um)
        if labels is not None:
            for other in sample.of(LEUKOCYTE):
                if not np.array_equal(other, box):
                    _forget(labels, other - shift)
            yield LabelledCell(sample.path.name, source, -1, sample.pixel_size_um, crop, labels)


def label_by_box(
    teacher: Segmenter, crop: np.ndarray, box: np.ndarray, red_boxes: np.ndarray, pixel_size_um: float
) -> np.ndarray | None:
    """Labels (H, W) of a crop whose cell has a box (4,) in its pixels, or None where not to be trusted."""
    first = teacher.segment(crop[None], pixel_size_um)[0]
    turned = np.ascontiguousarray(np.rot90(crop, 2))
    second = np.rot90(teacher.segment(turned[None], pixel_size_um * 0.8)[0], 2)
    votes = [_corrected(labels, box, red_boxes) for labels in (first, second)]
    whole = [v >= CYTOPLASM for v in votes]
    core = [v == NUCLEUS for v in votes]
    if dice(whole[0], whole[1]) < MIN_AGREEMENT or dice(core[0], core[1]) < MIN_AGREEMENT:
        return None
    if not whole[0].any() or core[0].sum() < MIN_NUCLEUS_SHARE * whole[0].sum():
        return None
    rows, columns = np.nonzero(whole[0].any(axis=1))[0], np.nonzero(whole[0].any(axis=0))[0]
    reached = np.array((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1), np.float64)
    if _iou(reached, box) < MIN_BOX_IOU:
        return None
    mask = np.where(core[0], 255, np.where(whole[0], 128, 0)).astype(np.uint8)
    labels = labels_of(crop, mask, pixel_size_um)
    labels[(whole[0] != whole[1]) | (core[0] != core[1])] = IGNORE
    return labels


def _corrected(labels: np.ndarray, box: np.ndarray, red_boxes: np.ndarray) -> np.ndarray:
    """The central cell alone, inside its box and outside the ellipses of boxed red cells."""
    grid_y, grid_x = np.mgrid[: labels.shape[0], : labels.shape[1]] + 0.5
    margin = 0.04 * max(box[2] - box[0], box[3] - box[1])
    allowed = (
        (grid_x > box[0] - margin)
        & (grid_x < box[2] + margin)
        & (grid_y > box[1] - margin)
        & (grid_y < box[3] + margin)
    )
    for x0, y0, x1, y1 in red_boxes:
        inside = ((2 * grid_x - x0 - x1) / (x1 - x0)) ** 2 + ((2 * grid_y - y0 - y1) / (y1 - y0)) ** 2
        allowed &= (inside > 0.9) | (labels == NUCLEUS)
    kept = np.where(allowed & (labels >= CYTOPLASM), labels, 0)
    cell = central_cell(kept)
    filled = cv2.morphologyEx(cell.astype(np.uint8), cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)) > 0
    return np.where(filled, np.maximum(kept, CYTOPLASM), 0)


def _forget(labels: np.ndarray, box: np.ndarray) -> None:
    """Nothing is claimed of what lies in another leukocyte's box, the cell itself excepted."""
    x0, y0, x1, y1 = (max(0, int(v)) for v in np.round(box))
    part = labels[y0:y1, x0:x1]
    part[part < CYTOPLASM] = IGNORE


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(0.0, float(width)) * max(0.0, float(height))
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return shared / (float(areas) - shared)
