"""The truth that detectors are measured against, as it is and as read again by eye.

Labels of real images leave leukocytes out, name one twice, and call other things leukocytes.  The whole
fields of `cases` and the test part of `smears` were looked at with the boxes of truth and detector drawn on
them; what was added or removed stands in `CHANGES`, a row a box.  Read by the project, by a machine, not by
a haematologist.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.tables import read_table

if TYPE_CHECKING:
    from detectors.datasets import Sample

CHANGES = Path(__file__).with_name("truth_read.csv")

Change = tuple[str, tuple[float, ...]]  # added or removed, and its box


def _changes(group: str) -> dict[str, list[Change]]:
    """Those of one folder of the data, by what comes after its name (`S001/F002`, a file's name)."""
    out: dict[str, list[Change]] = {}
    for row in read_table(CHANGES, ("image", "change", "x0", "y0", "x1", "y1")):
        folder, _, image = row["image"].partition("/")
        if folder == group:
            box = tuple(float(row[k]) for k in ("x0", "y0", "x1", "y1"))
            out.setdefault(image, []).append((row["change"], box))
    return out


def _nearest(boxes: np.ndarray, box: tuple[float, ...]) -> int:
    return int(np.abs(boxes - np.array(box)).sum(axis=1).argmin())


def _refuse(changes: dict[str, list[Change]], where: Path | str) -> None:
    if changes:
        raise SystemExit(f"{CHANGES}: no such image in {where}: {', '.join(sorted(changes))}")


def read_fields(data: Path) -> dict[tuple[str, str], np.ndarray]:
    """Leukocytes of every whole field, brightfield pixels: its truth and what reading again changed."""
    changes = _changes("cases")
    out = {}
    for folder in sorted((data / "cases").iterdir()):
        truth = json.loads((folder / "truth.json").read_text(encoding="utf-8"))
        for name, entry in truth["fields"].items():
            boxes = np.array(entry["leukocytes_xyxy"], np.float64).reshape(-1, 4)
            for change, box in changes.pop(f"{folder.name}/{name}", []):
                if change == "added":
                    boxes = np.vstack([boxes, box])
                else:
                    boxes = np.delete(boxes, _nearest(boxes, box), axis=0)
            out[folder.name, name] = boxes
    _refuse(changes, data / "cases")
    return out


def read_smears(samples: Sequence[Sample]) -> list[Sample]:
    """Images of `smears` with what reading again changed; each that was changed must be among them."""
    from detectors.datasets import LEUKOCYTE

    changes = _changes("smears")
    out = []
    for sample in samples:
        boxes, classes = sample.boxes, sample.classes
        for change, box in changes.pop(sample.path.name, []):
            if change == "added":
                boxes = np.vstack([boxes, box]).astype(np.float32)
                classes = np.append(classes, LEUKOCYTE)
            else:
                white = np.flatnonzero(classes == LEUKOCYTE)
                gone = white[_nearest(boxes[white], box)]
                boxes, classes = np.delete(boxes, gone, axis=0), np.delete(classes, gone)
        out.append(replace(sample, boxes=boxes, classes=classes))
    _refuse(changes, "the test part of smears")
    return out


def shared_area(entry: dict, modality: str, shape: tuple[int, ...]) -> np.ndarray:
    """The part x0, y0, x1, y1 of an image of a field of which the truth is known: what the brightfield shows.

    Beyond it the DIC of `cases` is a mirror image of what lies inside.
    """
    height, width = shape[:2]
    whole = np.array([0, 0, width, height], np.float64)
    if modality == "brightfield":
        return whole
    matrix = np.array(entry["brightfield_to_dic"])[:2]
    corners = np.array([[0, 0], [width, 0], [0, height], [width, height]], np.float64)
    x, y = (corners @ matrix[:, :2].T + matrix[:, 2]).T
    inside = [max(x[0], x[2]), max(y[0], y[1]), min(x[1], x[3]), min(y[2], y[3])]
    return np.concatenate([np.maximum(whole[:2], inside[:2]), np.minimum(whole[2:], inside[2:])])


def seen_in(area: np.ndarray, boxes: np.ndarray, least: float) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) cut to an area, and which (N,) of them lie in it with more than the share `least`."""
    cut = np.concatenate([np.clip(boxes[:, k : k + 2], area[:2], area[2:]) for k in (0, 2)], axis=1)
    size, left = (np.prod(b[:, 2:] - b[:, :2], axis=1) for b in (boxes, cut))
    return cut, left > least * size


def field_boxes(
    entry: dict, modality: str, shape: tuple[int, ...], boxes: np.ndarray | None = None
) -> np.ndarray:
    """Truth of a whole field, or `boxes` in its place; for DIC the brightfield boxes moved by the known
    matrix, those of which a sliver or more is in sight."""
    from detectors.packing import LEAST_SLIVER

    if boxes is None:
        boxes = np.array(entry["leukocytes_xyxy"], np.float64).reshape(-1, 4)
    if modality == "brightfield":
        return boxes
    matrix = np.array(entry["brightfield_to_dic"])[:2]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 @ matrix[:, :2].T + matrix[:, 2]
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    moved = np.concatenate([centre - half, centre + half], 1)
    seen, there = seen_in(shared_area(entry, modality, shape), moved, LEAST_SLIVER)
    return seen[there]


def detect_field(
    detector: Any, image: np.ndarray, pixel_size_um: float, entry: dict, modality: str
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) and scores (N,) of a whole field: see `judged`."""
    return judged(entry, modality, image.shape, *detector.detect(image, pixel_size_um))


def judged(
    entry: dict, modality: str, shape: tuple[int, ...], boxes: np.ndarray, scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) and scores (N,) found in a whole field, cut to its `shared_area`.

    A box of which less than a third lies there is left out: at its rim a cell and its mirror image are one.
    """
    cut, there = seen_in(shared_area(entry, modality, shape), boxes, 1 / 3)
    return cut[there].astype(np.float32), scores[there]
