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


def suppress(
    boxes: np.ndarray, scores: np.ndarray, max_iou: float, max_inside: float | None = None
) -> np.ndarray:
    """Indices kept by greedy suppression, best score first.

    A box goes where it overlaps a better one by more than `max_iou`, or, with `max_inside`, where more
    than that share of the smaller of the two lies in the other (half a cell, say).
    """
    order = np.lexsort((boxes[:, 1], boxes[:, 0], -scores)) if len(boxes) else np.zeros(0, int)
    kept: list[int] = []
    alive = np.ones(len(boxes), bool)
    area = _area(boxes) if len(boxes) else np.zeros(0)
    for position, i in enumerate(order):
        if not alive[i]:
            continue
        kept.append(int(i))
        rest = order[position + 1 :]
        rest = rest[alive[rest]]
        if not len(rest):
            continue
        shared = _intersection(boxes[i : i + 1].astype(np.float64), boxes[rest].astype(np.float64))[0]
        out = shared / np.maximum(area[i] + area[rest] - shared, 1e-9) > max_iou
        if max_inside is not None:
            out |= shared / np.maximum(np.minimum(area[i], area[rest]), 1e-9) > max_inside
        alive[rest[out]] = False
    return np.array(kept, int)
