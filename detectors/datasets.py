"""Folders of boxes (YOLO format): reading, physical scale, and splits without near-duplicates.

A folder holds `images/**` and `labels/**` of the same names; a label line is
`class x_centre y_centre width height`, relative to the image.  Classes are 0 leukocyte, 1 red cell,
2 platelet; a folder with leukocytes only is fine.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from pipeline.errors import BadInput, UnreadableImage
from storage.image_folders import label_path, read_boxes, yolo_images
from storage.images import read_grey, read_rgb
from storage.near_duplicates import near_duplicate_groups, thumbnail

CLASSES = ("leukocyte", "red_cell", "platelet")
LEUKOCYTE, RED_CELL, PLATELET = 0, 1, 2
RED_CELL_UM = 7.5  # median diameter of a red cell on a dry smear, 7-8 µm
LEUKOCYTE_UM = 14.5  # median box side of leukocytes of the same smears: 1.93 red cells
PART_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
SAME_FIELD = 0.9  # correlation of thumbnails above which two fields are one photograph


@dataclass(frozen=True)
class Sample:
    """One labelled image: boxes (N, 4) float32 x0, y0, x1, y1 in its pixels and classes (N,) int."""

    path: Path
    width_px: int
    height_px: int
    boxes: np.ndarray
    classes: np.ndarray
    source: str
    pixel_size_um: float
    group: str = ""  # images of one group are near-duplicates and are never split
    complete: bool = True  # False: only the leukocytes are labelled
    tags: tuple[str, ...] = field(default=())
    scale_from: str = ""  # what the pixel size was taken from, in words
    label_file: bool = True  # False: it has none, and counts as an image without cells

    def of(self, cls: int) -> np.ndarray:
        return self.boxes[self.classes == cls]


def sides_px(boxes: np.ndarray) -> np.ndarray:
    """Geometric mean of width and height of each box."""
    return np.sqrt(np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0))


def inner(boxes: np.ndarray, width: int, height: int, margin: float = 1.5) -> np.ndarray:
    """Which boxes do not touch the image's edge (a cut cell says nothing of the scale)."""
    return (
        (boxes[:, 0] > margin)
        & (boxes[:, 1] > margin)
        & (boxes[:, 2] < width - margin)
        & (boxes[:, 3] < height - margin)
    )


def read_labels(path: Path, width: int, height: int) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (N, 4) float32 in pixels and classes (N,) int64; an absent file is an image without cells."""
    table = read_boxes(path, width, height).astype(np.float32)
    boxes = np.clip(table[:, 1:], 0, [width, height, width, height]).astype(np.float32)
    keep = (boxes[:, 2] - boxes[:, 0] > 1) & (boxes[:, 3] - boxes[:, 1] > 1)
    return boxes[keep], table[keep, 0].astype(np.int64)


def image_scale_um(
    boxes: np.ndarray, classes: np.ndarray, width: int, height: int, minimum: int = 4
) -> float | None:
    """Pixel size from the red cells of an image (7.5 µm each), or None with too few of them."""
    red = boxes[(classes == RED_CELL)]
    red = red[inner(red, width, height)]
    if len(red) < minimum:
        return None
    return float(RED_CELL_UM / np.median(sides_px(red)))


def read_yolo_folder(data_dir: Path, pixel_size_um: float | None = None) -> list[Sample]:
    """Every image below `data_dir/images` with its labels, physical scale and near-duplicate group.

    Images of one size are taken as one source; one in a folder train, val or test has that tag.  The scale
    of an image is `pixel_size_um` where given, else its file's own, else its labelled red cells', else the
    median of its source, else its labelled leukocytes', else inferred from its cells (`detectors.scale`),
    else the median of the folder.  Raises BadInput where there is no image, no label file, or nothing to
    take a scale from.
    """
    from detectors.data_scale import own_scale_um, with_scales

    data_dir = Path(data_dir)
    paths = yolo_images(data_dir)
    if not paths:
        raise BadInput(f"{data_dir} holds no images; a YOLO folder has images/ and labels/ of equal names.")
    if not any(label_path(p).is_file() for p in paths):
        raise BadInput(
            f"{data_dir}: none of its {len(paths)} images has a label file, the first would be "
            f"{label_path(paths[0])}; add the labels."
        )
    samples, thumbs = [], []
    for path in paths:
        image = read_rgb(path)
        height, width = image.shape[:2]
        boxes, classes = read_labels(label_path(path), width, height)
        unknown = classes[(classes < 0) | (classes >= len(CLASSES))]
        if len(unknown):
            raise BadInput(
                f"{label_path(path)}: class {unknown[0]} is not known; 0 is leukocyte, 1 red cell, "
                "2 platelet."
            )
        scale, scale_from = own_scale_um(path, pixel_size_um, boxes, classes, width, height)
        source = f"{width}x{height}"
        folders = (p.lower() for p in path.relative_to(data_dir).parts[:-1])
        tags = tuple(PART_FOLDERS[p] for p in folders if p in PART_FOLDERS)[:1]
        sample = Sample(path, width, height, boxes, classes, source, scale, tags=tags, scale_from=scale_from)
        samples.append(replace(sample, label_file=label_path(path).is_file()))
        thumbs.append(thumbnail(image))
    has_red = any((s.classes == RED_CELL).any() for s in samples)
    groups = near_duplicate_groups(np.stack(thumbs), SAME_FIELD)
    return [
        replace(s, group=f"g{group:05d}", complete=has_red)
        for s, group in zip(with_scales(samples), groups, strict=True)
    ]


def split(samples: list[Sample], fractions: dict[str, float], seed: int = 0) -> dict[str, list[Sample]]:
    """Samples by part; near-duplicates stay together, and each source is cut in the same proportions.

    The part of a group depends on the group and the seed alone (a hash), never on the order of files.
    """
    parts: dict[str, list[Sample]] = {name: [] for name in fractions}
    groups = defaultdict(list)
    for s in samples:
        groups[s.group].append(s)
    by_source = defaultdict(list)
    for members in groups.values():
        by_source[min(m.source for m in members)].append(members)
    for source in sorted(by_source):
        clusters = sorted(by_source[source], key=lambda m: _hash(f"{seed}:{min(x.path.name for x in m)}"))
        total = sum(len(m) for m in clusters)
        seen = 0
        edges = np.cumsum([fractions[name] for name in parts]) / sum(fractions.values()) * total
        for members in clusters:
            index = int(np.searchsorted(edges, seen + 0.5))
            parts[list(parts)[min(index, len(parts) - 1)]] += members
            seen += len(members)
    return parts


def read_masked_cells(folder: Path, source: str) -> list[Sample]:
    """Single cells with masks (`001.png`, `001_mask.png`): a box around the non-zero mask, scale by its size.

    Only the leukocyte in the middle is labelled, so that `complete` is False.
    """
    import cv2

    out = []
    for mask_path in sorted(Path(folder).glob("*_mask.png")):
        path = mask_path.with_name(mask_path.name.replace("_mask", ""))
        if not path.is_file():
            raise UnreadableImage(f"{mask_path} has no image beside it; restore the pair.")
        mask = read_grey(mask_path)
        count, _, stats, _ = cv2.connectedComponentsWithStats((mask > 64).astype(np.uint8))
        if count < 2:
            continue
        x, y, w, h = stats[1 + int(np.argmax(stats[1:, cv2.CC_STAT_AREA]))][:4]
        box = np.array([[x, y, x + w, y + h]], np.float32)
        height, width = mask.shape
        out.append(
            Sample(path, width, height, box, np.zeros(1, np.int64), source, 0.0, _hash(path.name), False)
        )
    if not out:
        return out
    scale = float(LEUKOCYTE_UM / np.median([sides_px(s.boxes)[0] for s in out]))
    return [replace(s, pixel_size_um=scale) for s in out]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
