"""Pictures of an evaluation: the precision-recall curve, and a gallery of what went wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from detectors.boxes import iou_matrix
from detectors.datasets import Sample
from storage.images import read_rgb
from storage.whole_files import write_figure, write_png

TILE = 192
PER_ROW = 6
MAX_TILES = 48


def draw_curve(
    path: Path, boxes: list[np.ndarray], scores: list[np.ndarray], truth: list[np.ndarray], threshold: float
) -> None:
    """Precision over recall at IoU 0.5 and 0.75, with the point of the threshold, as PNG.

    Raises BadInput where it cannot be written.
    """
    from matplotlib.figure import Figure

    from detectors.evaluation import precision_recall

    figure = Figure(figsize=(5, 4.4), dpi=110)
    axes = figure.add_subplot()
    for iou, colour in ((0.5, "#1f5fa8"), (0.75, "#c2662d")):
        precision, recall, score = precision_recall(boxes, scores, truth, iou)
        axes.plot(recall, precision, color=colour, label=f"IoU {iou}")
        at = int((score >= threshold).sum()) - 1
        if at >= 0:
            axes.plot(recall[at], precision[at], "o", color=colour)
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.01))
    axes.set_title(f"leukocytes; points: score {threshold:g}", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.tight_layout()
    write_figure(path, figure)


def find_errors(
    samples: list[Sample],
    boxes: list[np.ndarray],
    scores: list[np.ndarray],
    truth: list[np.ndarray],
    threshold: float,
) -> list[dict[str, Any]]:
    """All errors, worst first, each with the `index` of its sample.

    Kinds: `missed` (a labelled leukocyte that no box above the threshold finds), `false` (a box that
    meets no label), `loose` (a box that meets one at an IoU of 0.1 to 0.5).
    """
    errors: list[dict[str, Any]] = []
    for i, (s, b, v, t) in enumerate(zip(samples, boxes, scores, truth, strict=True)):
        sure = v >= threshold
        overlap = iou_matrix(b[sure], t)
        best_box = overlap.max(1) if len(t) else np.zeros(int(sure.sum()))
        best_truth = overlap.max(0) if sure.any() else np.zeros(len(t))
        for box, score, iou in zip(b[sure], v[sure], best_box, strict=True):
            if iou < 0.5:
                kind = "loose" if iou >= 0.1 else "false"
                errors.append(_error(i, s, kind, box, float(score), float(iou)))
        for box, iou in zip(t, best_truth, strict=True):
            if iou < 0.1:
                errors.append(_error(i, s, "missed", box, 0.0, float(iou)))
    errors.sort(key=lambda e: (-e["score"] if e["kind"] != "missed" else -0.9, e["file"]))
    return errors


def draw_errors(
    path: Path,
    errors: list[dict[str, Any]],
    samples: list[Sample],
    boxes: list[np.ndarray],
    scores: list[np.ndarray],
    truth: list[np.ndarray],
    threshold: float,
    look: Callable[[np.ndarray, float, np.random.Generator], np.ndarray] | None = None,
) -> None:
    """A gallery of the first errors (`find_errors`): truth green, boxes red with their score.

    Raises BadInput where the picture cannot be written.
    """
    import cv2

    tiles = []
    for e in errors[:MAX_TILES]:
        s = samples[e["index"]]
        image = read_rgb(s.path)
        if look is not None:
            image = look(image, s.pixel_size_um, np.random.default_rng([7, e["index"]]))
        image = np.ascontiguousarray(image)
        for box in truth[e["index"]]:
            _rectangle(image, box, (0, 160, 0))
        sure = scores[e["index"]] >= threshold
        for box in boxes[e["index"]][sure]:
            _rectangle(image, box, (220, 0, 0))
        tile = cv2.resize(_around(image, np.array(e["box"])), (TILE, TILE), interpolation=cv2.INTER_AREA)
        text = f"{e['kind']} {e['score']:.2f} {s.path.stem[:8]}"
        cv2.rectangle(tile, (0, 0), (TILE, 15), (255, 255, 255), -1)
        cv2.putText(tile, text, (3, 11), cv2.FONT_HERSHEY_SIMPLEX, 0.38, (0, 0, 0), 1, cv2.LINE_AA)
        tiles.append(tile)
    while len(tiles) % PER_ROW or not tiles:
        tiles.append(np.full((TILE, TILE, 3), 255, np.uint8))
    rows = [np.hstack(tiles[i : i + PER_ROW]) for i in range(0, len(tiles), PER_ROW)]
    write_png(path, np.vstack(rows))


def _error(index: int, s: Sample, kind: str, box: np.ndarray, score: float, iou: float) -> dict[str, Any]:
    rounded = [round(float(v), 1) for v in box]
    return {
        "index": index,
        "file": s.path.name,
        "kind": kind,
        "box": rounded,
        "score": round(score, 3),
        "iou": round(iou, 3),
    }


def _rectangle(image: np.ndarray, box: np.ndarray, colour: tuple[int, int, int]) -> None:
    import cv2

    x0, y0, x1, y1 = (round(float(v)) for v in box)
    cv2.rectangle(image, (x0, y0), (x1 - 1, y1 - 1), colour, max(1, image.shape[0] // 200))


def _around(image: np.ndarray, box: np.ndarray) -> np.ndarray:
    """A square window of twice the box, inside the image."""
    height, width = image.shape[:2]
    side = int(min(max(2.2 * max(box[2] - box[0], box[3] - box[1]), 32), height, width))
    x0 = int(np.clip((box[0] + box[2] - side) / 2, 0, width - side))
    y0 = int(np.clip((box[1] + box[3] - side) / 2, 0, height - side))
    return image[y0 : y0 + side, x0 : x0 + side]
