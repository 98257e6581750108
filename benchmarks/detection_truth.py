"""The truth that detectors are measured against, as it is and as read again by eye.

Labels of real images leave leukocytes out, name one twice, and call other things leukocytes.  The whole
fields of `cases` and the test part of `smears` were looked at with the boxes of truth and detector drawn on
them; what was added or removed stands in `CHANGES`, a row a box.  Read by the project, by a machine, not by
a haematologist.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from detectors.datasets import Sample

CHANGES = Path(__file__).with_name("truth_read.csv")

Change = tuple[str, tuple[float, ...]]  # added or removed, and its box


def _changes(group: str) -> dict[str, list[Change]]:
    """Those of one folder of the data, by what comes after its name (`S001/F002`, a file's name)."""
    out: dict[str, list[Change]] = {}
    with CHANGES.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
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


def field_boxes(
    entry: dict, modality: str, shape: tuple[int, ...], boxes: np.ndarray | None = None
) -> np.ndarray:
    """Truth of a whole field, or `boxes` in its place; for DIC the brightfield boxes moved by the known
    matrix, half seen or more."""
    if boxes is None:
        boxes = np.array(entry["leukocytes_xyxy"], np.float64).reshape(-1, 4)
    if modality == "brightfield":
        return boxes
    matrix = np.array(entry["brightfield_to_dic"])[:2]
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 @ matrix[:, :2].T + matrix[:, 2]
    half = (boxes[:, 2:] - boxes[:, :2]) / 2
    moved = np.concatenate([centre - half, centre + half], 1)
    seen = np.clip(moved, 0, np.tile([shape[1], shape[0]], 2))
    share = np.prod(seen[:, 2:] - seen[:, :2], 1) / np.prod(moved[:, 2:] - moved[:, :2], 1)
    return seen[share > 0.5]
