"""Boxes x0, y0, x1, y1: overlap, decoding of a YOLO head, suppression of doubles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

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
    # One table a side: a product over a last axis of two takes three times as long.
    wide = np.minimum(a[:, None, 2], b[None, :, 2]) - np.maximum(a[:, None, 0], b[None, :, 0])
    high = np.minimum(a[:, None, 3], b[None, :, 3]) - np.maximum(a[:, None, 1], b[None, :, 1])
    return np.maximum(wide, 0) * np.maximum(high, 0)


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


def voted(boxes: np.ndarray, scores: np.ndarray, kept: np.ndarray, min_iou: float) -> np.ndarray:
    """The boxes (K, 4) of the indices `kept`: means, weighted by score, of all that overlap one by `min_iou`.

    Several anchors look at the same object; suppression alone trusts the surest of them, whose sides are no
    better than its neighbours'.  Box voting: Gidaris & Komodakis 2015, section 4 (ICCV).
    """
    weights = iou_matrix(boxes[kept], boxes)
    weights = np.where(weights >= min_iou, scores[None], 0.0)
    weights[np.arange(len(kept)), kept] = scores[kept]  # a box without area overlaps not even itself
    return np.asarray((weights @ boxes) / weights.sum(1, keepdims=True), np.float32)


def fused(views: Sequence[tuple[np.ndarray, np.ndarray]], min_iou: float) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (K, 4) and scores (K,), float32, of one object each, from the boxes and scores of several views.

    A box is the mean, weighted by score, of what the views show there (at most one box each, overlapping the
    surest by `min_iou`); its score is their mean, a view that shows nothing counting as zero.  Weighted boxes
    fusion: Solovyev, Wang & Gabruseva 2021, section 3 (Image and Vision Computing 107).
    """
    boxes, scores = (np.concatenate([view[k] for view in views]).astype(np.float32) for k in (0, 1))
    anchors = boxes[thin_out(boxes, scores, min_iou)]
    sums, weights = np.zeros((len(anchors), 4)), np.zeros(len(anchors))
    for mine, score in views:
        overlap, anchor = np.full(len(mine), min_iou), np.full(len(mine), -1)
        for i, j, iou, _ in overlapping_pairs(anchors, mine):
            rising = np.argsort(iou, kind="stable")  # of several assignments the last one stays
            rising = rising[iou[rising] >= overlap[j[rising]]]
            overlap[j[rising]], anchor[j[rising]] = iou[rising], i[rising]
        rising = np.argsort(score, kind="stable")
        rising = rising[anchor[rising] >= 0]
        surest = np.full(len(anchors), -1)
        surest[anchor[rising]] = rising
        seen = surest >= 0
        sums[seen] += mine[surest[seen]] * score[surest[seen], None]
        weights[seen] += score[surest[seen]]
    seen = weights > 0  # a box without area overlaps not even itself
    mean = sums[seen] / weights[seen, None]
    return mean.astype(np.float32), (weights[seen] / len(views)).astype(np.float32)


def overlapping_pairs(
    a: np.ndarray, b: np.ndarray, block: int = 500_000
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Indices i, j of the boxes of `a` and `b` that overlap, their IoU, and the share of the smaller one.

    Only boxes that meet along x are compared, at most about `block` at a time, so that the hundred thousand
    boxes of a whole slide take neither the time nor the memory of a square table.
    """
    if not len(a) or not len(b):
        return
    a, b = a.astype(np.float32), b.astype(np.float32)
    area_a, area_b = _area(a), _area(b)
    order = np.argsort(b[:, 0], kind="stable")
    starts = b[order, 0]
    widest = float((b[:, 2] - b[:, 0]).max())
    first = np.searchsorted(starts, a[:, 0] - widest, side="left")
    counts = np.searchsorted(starts, a[:, 2], side="left") - first
    done = np.concatenate([[0], np.cumsum(counts)])
    at = 0
    while at < len(a):
        to = max(at + 1, int(np.searchsorted(done, done[at] + block, side="right")) - 1)
        n = counts[at:to]
        i = np.repeat(np.arange(at, to), n)
        j = order[
            np.arange(done[to] - done[at]) - np.repeat(done[at:to] - done[at], n) + np.repeat(first[at:to], n)
        ]
        low = np.maximum(a[i, :2], b[j, :2])
        high = np.minimum(a[i, 2:], b[j, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        keep = shared > 0
        i, j, shared = i[keep], j[keep], shared[keep]
        union = np.maximum(area_a[i] + area_b[j] - shared, 1e-9)
        yield i, j, shared / union, shared / np.maximum(np.minimum(area_a[i], area_b[j]), 1e-9)
        at = to


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
    better, worse = [], []
    for i, j, iou, inside in overlapping_pairs(boxes[order], boxes[order]):
        out = (i < j) & ((iou > max_iou) | (inside > max_inside if max_inside is not None else False))
        better.append(i[out])
        worse.append(j[out])
    winners, losers = np.concatenate(better), np.concatenate(worse)
    rank = np.argsort(winners, kind="stable")
    winners, losers = winners[rank], losers[rank]
    bounds = np.searchsorted(winners, np.arange(len(order) + 1))
    alive = np.ones(len(order), bool)
    for i in np.unique(winners):
        if alive[i]:
            alive[losers[bounds[i] : bounds[i + 1]]] = False
    return np.asarray(order[alive])
