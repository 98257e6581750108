"""How good a detector is: average precision, precision and recall, pictures of both and of the errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from detectors.boxes import iou_matrix
from detectors.data_scale import scales_of
from detectors.datasets import LEUKOCYTE, Sample, read_yolo_folder
from pipeline.errors import BadInput
from storage.images import read_rgb
from storage.whole_files import write_json

IOUS = np.round(np.arange(0.5, 1.0, 0.05), 2)


def match(boxes: np.ndarray, scores: np.ndarray, truth: np.ndarray, iou: float) -> np.ndarray:
    """True for each box (in the order given) that finds a truth box no better-scored box has found."""
    return matches(boxes, scores, truth, (iou,))[:, 0]


def matches(
    boxes: np.ndarray, scores: np.ndarray, truth: np.ndarray, ious: Sequence[float] | np.ndarray
) -> np.ndarray:
    """`match` at each of some IoUs: (N, len(ious)) bool."""
    hit = np.zeros((len(boxes), len(ious)), bool)
    if not len(boxes) or not len(truth):
        return hit
    overlaps, order = iou_matrix(boxes, truth), np.argsort(-scores, kind="stable")
    for column, iou in enumerate(ious):
        overlap = overlaps.copy()
        for i in order:
            j = int(overlap[i].argmax())
            if overlap[i, j] >= iou:
                hit[i, column] = True
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
    hits = [matches(b, s, t, IOUS) for b, s, t in zip(boxes, scores, truth, strict=True)]
    return precision_of_matches(hits, scores, [len(t) for t in truth])


def precision_of_matches(
    hits: Sequence[np.ndarray], scores: Sequence[np.ndarray], n_truth: Sequence[int]
) -> tuple[float, float, np.ndarray]:
    """`average_precision` of images whose boxes are matched at `IOUS` already."""
    flat = np.concatenate([*scores, np.zeros(0)])
    right = np.concatenate([*hits, np.zeros((0, len(IOUS)), bool)])
    found = np.cumsum(right[np.argsort(-flat, kind="stable")], axis=0)
    precision = found / np.arange(1, len(found) + 1)[:, None]
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    beyond = np.vstack([envelope, np.zeros(len(IOUS))])  # a recall that is never reached
    recall = found / max(sum(n_truth), 1)
    steps = np.linspace(0, 1, 101)
    values = [
        float(np.mean(beyond[np.searchsorted(recall[:, k], steps, side="left"), k])) for k in range(len(IOUS))
    ]
    return values[0], float(np.mean(values)), np.array(values)


def detect_all(
    detector: Any,
    samples: list[Sample],
    look: Callable[[np.ndarray, float, np.random.Generator], np.ndarray] | None = None,
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Boxes and scores of every sample, each under a `look` of its own that is the same whenever asked."""
    boxes, scores = [], []
    for i, s in enumerate(samples):
        image = read_rgb(s.path)
        if look is not None:
            image = look(image, s.pixel_size_um, np.random.default_rng([7, i]))
        b, v = detector.detect(image, s.pixel_size_um)
        boxes.append(b)
        scores.append(v)
    return boxes, scores


def evaluate_detector(
    detector: Any,
    data_dir: Path | list[Sample],
    out_dir: Path | None = None,
    threshold: float = 0.4,
    pixel_size_um: float | None = None,
    look: Callable[[np.ndarray, float, np.random.Generator], np.ndarray] | None = None,
    part: str = "all images",
) -> dict[str, Any]:
    """AP50, AP50-95 (with a bootstrap interval over images), precision and recall at a threshold.

    `data_dir` is a YOLO-format folder or its samples.  The scale of an image is `pixel_size_um` where
    given, else what `read_yolo_folder` takes; the report says which it was (`pixel_size_from`), which `part`
    the samples are, and how many have no label file.  Writes
    `evaluation.json`, `precision_recall.png` and `errors.png` to `out_dir`.  The sources are images of
    one size.  AP is None where no leukocyte is labelled, an interval where there is one image.
    """
    samples = data_dir if isinstance(data_dir, list) else read_yolo_folder(Path(data_dir), pixel_size_um)
    boxes, scores = detect_all(detector, samples, look)
    truth = [s.of(LEUKOCYTE) for s in samples]
    report: dict[str, Any] = {"detector": detector.name, "threshold": threshold, "n_images": len(samples)}
    report |= {"part": part, "pixel_size_from": scales_of(samples)}
    report["n_without_label_file"] = sum(not s.label_file for s in samples)
    report["all"] = _figures(boxes, scores, truth, threshold)
    if not report["all"]["n_leukocytes"]:
        report["note"] = "No image has a labelled leukocyte (class 0), so there is no AP and no recall."
    report["sources"] = {}
    for source in sorted({s.source for s in samples}):
        index = [i for i, s in enumerate(samples) if s.source == source]
        pick = ([v[i] for i in index] for v in (boxes, scores, truth))
        report["sources"][source] = _figures(*pick, threshold)
    if out_dir is not None:
        out_dir = Path(out_dir)
        out_dir.mkdir(parents=True, exist_ok=True)
        from detectors.evaluation_pictures import draw_curve, draw_errors, find_errors

        errors = find_errors(samples, boxes, scores, truth, threshold)
        report["errors"] = [{k: v for k, v in e.items() if k != "index"} for e in errors]
        # The figures first: a disk that fills up while pictures are drawn must not cost them.
        write_json(out_dir / "evaluation.json", report)
        try:
            draw_curve(out_dir / "precision_recall.png", boxes, scores, truth, threshold)
            draw_errors(out_dir / "errors.png", errors, samples, boxes, scores, truth, threshold, look)
        except (OSError, BadInput) as error:
            raise BadInput(
                f"{out_dir}: the pictures cannot be written ({error}); the figures are in evaluation.json; "
                "for the pictures choose another folder."
            ) from error
    return report


def _figures(
    boxes: list[np.ndarray], scores: list[np.ndarray], truth: list[np.ndarray], threshold: float
) -> dict[str, Any]:
    """Figures of images together; None for AP without truth, and for an interval of one image."""
    found = [b[s >= threshold] for b, s in zip(boxes, scores, strict=True)]
    sure = [s[s >= threshold] for s in scores]
    right = sum(int(match(b, s, t, 0.5).sum()) for b, s, t in zip(found, sure, truth, strict=True))
    n_found, n_truth = sum(map(len, found)), sum(map(len, truth))
    rng = np.random.default_rng(0)
    ap: dict[str, Any] = {"ap50": None, "ap50_ci95": None, "ap50_95": None, "ap50_95_ci95": None}
    hits = [matches(b, s, t, IOUS) for b, s, t in zip(boxes, scores, truth, strict=True)]
    counts = [len(t) for t in truth]
    if n_truth:
        of_all = precision_of_matches(hits, scores, counts)
        for key, value in zip(("ap50", "ap50_95"), of_all, strict=False):
            ap[key] = round(float(value), 4)
    draws = []
    for _ in range(100 if len(boxes) > 1 else 0):  # images, not boxes: cells of one image are alike
        pick = rng.integers(0, len(boxes), len(boxes))
        if any(counts[i] for i in pick):  # without truth there is no AP, as above
            drawn = ([v[i] for i in pick] for v in (hits, scores))
            draws.append(precision_of_matches(*drawn, [counts[i] for i in pick])[:2])
    if draws:
        spread = np.percentile(draws, [2.5, 97.5], axis=0)
        for column, key in enumerate(("ap50_ci95", "ap50_95_ci95")):
            ap[key] = [round(float(v), 4) for v in spread[:, column]]
    return {
        "n_images": len(boxes),
        "n_leukocytes": n_truth,
        **ap,
        "precision": round(right / n_found, 4) if n_found else None,
        "recall": round(right / n_truth, 4) if n_truth else None,
        "n_found": n_found,
    }
