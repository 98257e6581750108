"""How good a detector is: average precision, precision and recall, pictures of both and of the errors."""

from __future__ import annotations

import numpy as np

from detectors.boxes import iou_matrix

IOUS = np.round(np.arange(0.5, 1.0, 0.05), 2)


def match(boxes: np.ndarray, scores: np.ndarray, truth: np.ndarray, iou: float) -> np.ndarray:
    """True for each box (in the order given) that finds a truth box no better-scored box has found."""
    hit = np.zeros(len(boxes), bool)
    if not len(boxes) or not len(truth):
        return hit
    overlap = iou_matrix(boxes, truth)
    for i in np.argsort(-scores, kind="stable"):
        j = int(overlap[i].argmax())
        if overlap[i, j] >= iou:
            hit[i] = True
            overlap[:, j] = -1
    return hit


def precision_recall(
    boxes: list[np.ndarray], scores: list[np.ndarray], truth: list[np.ndarray], iou: float = 0.5
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and score at every score, over all images together, falling scores first."""
    hits = [match(b, s, t, iou) for b, s, t in zip(boxes, scores, truth, strict=True)]
    flat = np.concatenate([*scores, np.zeros(0)])
    right = np.concatenate([*hits, np.zeros(0, bool)])
    order = np.argsort(-flat, kind="stable")
    found = np.cumsum(right[order])
    total = sum(len(t) for t in truth)
    precision = found / np.maximum(np.arange(1, len(found) + 1), 1)
    return precision, found / max(total, 1), flat[order]


def average_precision(
    boxes: list[np.ndarray], scores: list[np.ndarray], truth: list[np.ndarray]
) -> tuple[float, float, np.ndarray]:
    """AP50, AP50-95 and AP at each IoU of `IOUS`, interpolated at 101 recalls (COCO, Lin 2014)."""
    values = []
    for iou in IOUS:
        precision, recall, _ = precision_recall(boxes, scores, truth, float(iou))
        envelope = np.maximum.accumulate(precision[::-1])[::-1] if len(precision) else precision
        at = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
        values.append(float(np.mean([envelope[i] if i < len(envelope) else 0.0 for i in at])))
    return values[0], float(np.mean(values)), np.array(values)
