"""Errors of real labels, found by disagreement, and a training set corrected where two witnesses agree.

A network trained briefly, with strong augmentation, has learnt the rule and not yet the exceptions: where
it is sure of something else than the label says, the label is suspect.  A suspect label is changed only
where a second, independent witness agrees; otherwise it is listed for a person and kept.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from detectors.boxes import iou_matrix
from detectors.datasets import LEUKOCYTE, PLATELET, RED_CELL, Sample
from storage.images import read_rgb


@dataclass(frozen=True)
class Suspect:
    """One suspect label: `unlabelled` leukocyte, `red_cell` boxed as leukocyte, `missed` (unexplained)."""

    file: str
    kind: str
    box: tuple[float, ...]
    score: float
    corrected: bool


def review(
    detector: Any, witness: Any, sample: Sample, sure: float = 0.75, pseudo: float = 0.45
) -> tuple[Sample, list[Suspect]]:
    """A sample with corrected labels, and its suspects.

    An unlabelled leukocyte is added where the network is sure and the weight-free `witness` finds a
    nucleus there too; a leukocyte label becomes a red cell where the network sees a red cell and no
    leukocyte, and the witness finds no nucleus.  A sample that labels leukocytes only (`complete` is
    False) is given the network's red cells and platelets, or they would be taught as background.
    """
    image = read_rgb(sample.path)
    found = detector.look(image, sample.pixel_size_um)
    white, red = found.of(LEUKOCYTE), found.of(RED_CELL)
    nuclei = witness.detect(image, sample.pixel_size_um)[0]
    boxes, classes = sample.boxes.copy(), sample.classes.copy()
    suspects: list[Suspect] = []
    mine = boxes[classes == LEUKOCYTE]
    for box, score in zip(white.boxes, white.scores, strict=True):
        if score < sure or not sample.complete or (len(mine) and iou_matrix(box[None], mine).max() > 0.2):
            continue
        agreed = bool(len(nuclei)) and float(iou_matrix(box[None], nuclei).max()) > 0.3
        suspects.append(_suspect(sample, "unlabelled", box, float(score), agreed))
        if agreed:
            boxes = np.concatenate([boxes, box[None]])
            classes = np.append(classes, LEUKOCYTE)
    for i in np.flatnonzero(sample.classes == LEUKOCYTE):
        box = sample.boxes[i]
        seen = iou_matrix(box[None], white.boxes)[0]
        if (white.scores[seen > 0.3] > 0.1).any():
            continue
        as_red = iou_matrix(box[None], red.boxes)[0]
        score = float(red.scores[as_red > 0.5].max(initial=0.0))
        dark = bool(len(nuclei)) and float(iou_matrix(box[None], nuclei).max()) > 0.3
        agreed = score > 0.5 and not dark
        suspects.append(_suspect(sample, "red_cell" if score > 0.5 else "missed", box, score, agreed))
        if agreed:
            classes[i] = RED_CELL
    if not sample.complete:
        for cls in (RED_CELL, PLATELET):
            extra = found.of(cls, pseudo).boxes
            if len(extra):
                extra = extra[iou_matrix(extra, sample.boxes).max(1) < 0.3]
            boxes = np.concatenate([boxes, extra])
            classes = np.append(classes, np.full(len(extra), cls))
    corrected = replace(sample, boxes=boxes.astype(np.float32), classes=classes.astype(np.int64))
    return corrected, suspects


def _suspect(sample: Sample, kind: str, box: np.ndarray, score: float, corrected: bool) -> Suspect:
    rounded = tuple(round(float(v), 1) for v in box)
    return Suspect(sample.path.name, kind, rounded, round(score, 3), corrected)


def as_rows(suspects: list[Suspect]) -> list[dict[str, Any]]:
    """For a table: one dictionary a suspect."""
    return [asdict(s) | {"box": " ".join(f"{v:g}" for v in s.box)} for s in suspects]
