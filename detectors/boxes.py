"""Boxes x0, y0, x1, y1: overlap, decoding of a YOLO head, suppression of doubles."""

from __future__ import annotations

import numpy as np


def iou_matrix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union (len(a), len(b)) of boxes (N, 4)."""
    a, b = np.asarray(a, np.float64).reshape(-1, 4), np.asarray(b, np.float64).reshape(-1, 4)
    shared = _intersection(a, b)
    union = _area(a)[:, None] + _area(b)[None] - shared
    return shared / np.maximum(union, 1e-9)


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0)


def _intersection(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    return np.prod(np.maximum(high - low, 0), axis=2)


def decode(raw: np.ndarray, minimum: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A YOLO head's (4 + classes, anchors): centre, size and class scores -> boxes, scores, classes.

    Each anchor speaks for its best class alone.
    """
    classes = raw[4:].argmax(0)
    scores = raw[4:].max(0)
    keep = scores > minimum
    x, y, w, h = raw[:4, keep]
    boxes = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1)
    return boxes.astype(np.float32), scores[keep].astype(np.float32), classes[keep]


def thin_out(boxes: np.ndarray, scores: np.ndarray, max_iou: float) -> np.ndarray:
    """Indices kept by plain greedy suppression, in compiled code: for the thousands a network emits."""
    import cv2

    if not len(boxes):
        return np.zeros(0, int)
    order = np.lexsort((boxes[:, 1], boxes[:, 0], -scores))
    sides = np.concatenate([boxes[order, :2], boxes[order, 2:] - boxes[order, :2]], 1).astype(np.float64)
    kept = cv2.dnn.NMSBoxes(sides, scores[order].astype(np.float32), 0.0, max_iou)
    return order[np.sort(np.asarray(kept, int).ravel())]


def suppress(
    boxes: np.ndarray, scores: np.ndarray, max_iou: float, max_inside: float | None = None
) -> np.ndarray:
    """Indices kept by greedy suppression, best score first.

    A box goes where it overlaps a better one by more than `max_iou`, or, with `max_inside`, where more
    than that share of the smaller of the two lies in the other (half a cell, say).
    """
    if not len(boxes):
        return np.zeros(0, int)
    order = np.lexsort((boxes[:, 1], boxes[:, 0], -scores))
    b = boxes[order].astype(np.float32)
    area = _area(b)
    alive = np.ones(len(b), bool)
    kept: list[int] = []
    # Rows are worked out block by block: whole-array steps are quick, and memory stays bounded.
    block = max(1, 4_000_000 // len(b))
    for start in range(0, len(b), block):
        rows = slice(start, min(start + block, len(b)))
        w = np.minimum(b[rows, None, 2], b[None, :, 2]) - np.maximum(b[rows, None, 0], b[None, :, 0])
        h = np.minimum(b[rows, None, 3], b[None, :, 3]) - np.maximum(b[rows, None, 1], b[None, :, 1])
        shared = np.maximum(w, 0) * np.maximum(h, 0)
        out = shared > max_iou * np.maximum(area[rows, None] + area[None] - shared, 1e-9)
        if max_inside is not None:
            out |= shared > max_inside * np.maximum(np.minimum(area[rows, None], area[None]), 1e-9)
        for i in range(rows.start, rows.stop):
            if alive[i]:
                kept.append(i)
                alive[i + 1 :] &= ~out[i - start, i + 1 :]
    return order[kept]
