"""Labelled leukocytes for the segmenter: reading, red-cell pseudo-labels, splits without twins.

Labels are those of detectors.base plus IGNORE for pixels of which nothing is known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from detectors.base import BACKGROUND, CYTOPLASM, NUCLEUS, RED_CELL
from detectors.datasets import RED_CELL_UM
from detectors.segment import CELL_DIAMETER_UM, PATCH_EXTENT_UM
from detectors.segment_colour import background_colour, optical_density
from detectors.segment_scale import red_cell_diameter_px
from pipeline.errors import BadInput, UnreadableImage
from storage.images import image_info, read_grey, read_rgb
from storage.near_duplicates import near_duplicate_groups, thumbnail
from storage.tables import read_table

IGNORE = 255
MASK_VALUES = (0, 128, 255)  # background, cytoplasm, nucleus
MASK_TOLERANCE = 10  # grey levels: what JPEG and editors that write 127 or 254 change
MASK_BETWEEN = 0.05  # share of pixels that may hold anything else, as along outlines that were smoothed
# The two sources of segmentation_WBC (Zheng 2018), known by their images (`images_mark`), and the pixel sizes
# (µm) that put the red cells of each at 7.5 µm; tecom shows few whole red cells, so its figure rests on
# lymphocytes at 8-9 µm.  The training jitters the scale by far more than these figures can be wrong.
PUBLIC_SOURCES = {
    "8f7ccfa46d1247ba306caae14908744a310787c844bd820e8f9e0a0b74af8000": ("tecom", 0.2),
    "bb560f1346e541f06c4a553b80e6d9a23154f451ae8e9013e616ea4d69ba4fc1": ("cellavision", 0.115),
}


@dataclass(frozen=True)
class LabelledCell:
    """image (H, W, 3) uint8 and labels (H, W) uint8 of one leukocyte; `group` joins near-duplicates."""

    name: str
    source: str
    group: int
    pixel_size_um: float
    image: np.ndarray
    labels: np.ndarray
    cell_class: str = ""
    scale_from: str = ""  # what the pixel size was taken from, in words


def read_labelled_cells(data_dir: Path, pixel_size_um: float | None = None) -> list[LabelledCell]:
    """Read a folder with labels.csv (image, mask, source, class) or pairs `x.png` + `x_mask.png`.

    The scale of an image is `pixel_size_um` where given, else its file's own, else its red cells' (three or
    more), else it is assumed to span 32 µm, and to show a cell of a leukocyte's size.

    Masks hold 255 nucleus, 128 cytoplasm, 0 rest; the rest is split into red cells and background by
    thresholding (thesis 4.4.4).  Raises BadInput naming the file that does not fit: a mask of another coding
    or without a nucleus, too, for as background alone it would teach, and measure, nothing.
    """
    rows = _rows(data_dir)
    pairs = [_read_pair(data_dir / image, data_dir / mask) for image, mask, _, _ in rows]
    by_source: dict[str, list[np.ndarray]] = {}
    for (image, _), (_, _, source, _) in zip(pairs, rows, strict=True):
        by_source.setdefault(source, []).append(image)
    known_um = {s: PUBLIC_SOURCES.get(images_mark(found), ("", 0.0))[1] for s, found in by_source.items()}
    cells: list[LabelledCell] = []
    for (name, _, source, cell_class), (image, mask) in zip(rows, pairs, strict=True):
        size, origin = _scale_of(data_dir / name, image, mask, pixel_size_um, known_um[source])
        labels = labels_of(image, mask, size)
        cells.append(LabelledCell(name, source, -1, size, image, labels, cell_class, origin))
    if not any((c.labels == CYTOPLASM).any() for c in cells):
        raise BadInput(
            f"{data_dir}: none of its {len(cells)} masks has cytoplasm (128), so they are of whole cells "
            "or of nuclei alone; give masks of both."
        )
    groups = same_cell_groups([c.image for c in cells])
    return [replace(c, group=g) for c, g in zip(cells, groups, strict=True)]


def images_mark(images: Iterable[np.ndarray]) -> str:
    """sha256 of the pixels of images, whatever their order and names: by it a set is known again."""
    marks = sorted(hashlib.sha256(np.ascontiguousarray(i).tobytes()).hexdigest() for i in images)
    return hashlib.sha256("".join(marks).encode()).hexdigest()


def _scale_of(
    path: Path, image: np.ndarray, mask: np.ndarray, given: float | None, known_um: float
) -> tuple[float, str]:
    """The pixel size (µm) of a cell's image, and what it was taken from."""
    for size, origin in ((given, "given"), (image_info(path).pixel_size_um, "the file")):
        if size:
            return size, origin
    if known_um:
        return known_um, "the public set"
    if (diameter_px := red_cell_diameter_px(image)) is not None:
        return RED_CELL_UM / diameter_px, "red cells"
    cell_px = 2 * float(np.sqrt((mask >= 64).sum() / np.pi))
    assumed = PATCH_EXTENT_UM / max(image.shape[:2])
    cell_um = float(np.clip(cell_px * assumed, *CELL_DIAMETER_UM))  # as the segmenter assumes it
    return cell_um / cell_px, "assumed: 32 µm across"


def _rows(data_dir: Path) -> list[tuple[str, str, str, str]]:
    table = data_dir / "labels.csv"
    if table.is_file():
        needed = ("image", "mask")
        rows = read_table(table, needed, filled=needed, optional=("source", "class"))
        if not rows:
            raise BadInput(f"{table} has no rows; give one for each cell: its image and its mask.")
        return [(r["image"], r["mask"], r.get("source", ""), r.get("class", "")) for r in rows]
    masks = sorted(data_dir.rglob("*_mask.png")) if data_dir.is_dir() else []
    pairs = [(m.with_name(m.name.replace("_mask.png", ".png")), m) for m in masks]
    if not pairs:
        raise BadInput(f"{data_dir} holds neither labels.csv nor pairs x.png + x_mask.png; name another.")
    return [(str(i.relative_to(data_dir)), str(m.relative_to(data_dir)), i.parent.name, "") for i, m in pairs]


def _read_pair(image_path: Path, mask_path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        path = image_path
        image = read_rgb(path)
        path = mask_path
        mask = read_grey(path)
    except UnreadableImage as error:
        raise BadInput(
            f"{path} is missing or no image; correct labels.csv or restore the file ({error})."
        ) from error
    if image.shape[:2] != mask.shape:
        size = f"{mask.shape[1]} x {mask.shape[0]}"
        raise BadInput(f"{mask_path} is {size} px, its image is not; redo the mask.")
    _check_mask(mask_path, mask)
    return image, mask


def _check_mask(path: Path, mask: np.ndarray) -> None:
    """Raise BadInput where a mask (H, W) uint8 is of another coding than MASK_VALUES, or has no nucleus."""
    distance = np.abs(mask[..., None].astype(np.int16) - np.array(MASK_VALUES, np.int16)).min(axis=-1)
    values = np.unique(mask)
    held = ", ".join(str(v) for v in values[:6]) + (f", … {values[-1]}" if len(values) > 6 else "")
    want = "a mask holds 0 for the rest, 128 for cytoplasm and 255 for the nucleus"
    if (distance > MASK_TOLERANCE).mean() > MASK_BETWEEN:
        raise BadInput(f"{path} holds the grey values {held}, and {want}; recode the masks.")
    if not (mask >= MASK_VALUES[-1] - MASK_TOLERANCE).any():
        raise BadInput(
            f"{path} shows no nucleus (it holds the grey values {held}, and {want}); recode the masks, or "
            "take the cell out."
        )


def labels_of(image: np.ndarray, mask: np.ndarray, pixel_size_um: float) -> np.ndarray:
    """Four-class labels from an image and its mask; IGNORE where a neighbour is likely a leukocyte.

    A mask names one cell.  What is stained outside it is a red cell where it is large and takes
    little red light away, background where it is small (platelets, dirt), and unknown where it is
    large and dark in red as nuclei are.
    """
    labels = np.zeros(mask.shape, np.uint8)
    labels[mask >= 64] = CYTOPLASM
    labels[mask >= 192] = NUCLEUS
    density = optical_density(image, background_colour(image))
    strength = cv2.GaussianBlur(density.max(axis=2), (0, 0), max(0.6, 0.1 / pixel_size_um))
    rest = labels == BACKGROUND
    if not rest.any():
        return labels
    grey = np.clip(strength[rest] * 255, 0, 255).astype(np.uint8)[:, None]
    level = cv2.threshold(grey, 0, 255, cv2.THRESH_OTSU)[0] / 255
    stained = (rest & (strength > min(max(level, 0.07), 0.12))).astype(np.uint8)
    # A ghost or a red cell with a pale centre is a ring; its inside belongs to it.
    contours, _ = cv2.findContours(stained, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros_like(stained), contours, -1, 1, cv2.FILLED)
    stained = np.where(rest, filled, 0).astype(np.uint8)
    # A tight mask leaves a rim of its own cell outside; opening by a micrometre takes rims away.
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(0.5 / pixel_size_um) + 1,) * 2)
    stained = cv2.morphologyEx(stained, cv2.MORPH_OPEN, kernel)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(stained, connectivity=4)
    for part in range(1, count):
        where = parts == part
        area_um2 = stats[part, cv2.CC_STAT_AREA] * pixel_size_um**2
        red, green = density[where][:, 0], density[where][:, 1]
        nuclear = float(((red > 0.3) & (red > 0.55 * green)).mean())
        if area_um2 < 6:  # platelets and dirt
            continue
        if nuclear > 0.15:
            labels[where] = IGNORE
        else:
            labels[where] = RED_CELL
    return labels


def same_cell_groups(images: list[np.ndarray], threshold: float = 0.97) -> list[int]:
    """One number per image (H, W, 3) uint8; photographs of one cell, turned or not, share a number."""
    if not images:
        return []
    return [int(g) for g in near_duplicate_groups(np.stack([thumbnail(i) for i in images]), threshold)]


def split_cells(
    cells: list[LabelledCell], seed: int, test_share: float = 0.2
) -> tuple[list[LabelledCell], list[LabelledCell]]:
    """Train and test parts; per source and class, whole groups of near-duplicates on one side."""
    rng = np.random.default_rng(seed)
    strata: dict[tuple[str, str], dict[int, list[LabelledCell]]] = {}
    home: dict[int, tuple[str, str]] = {}
    for cell in cells:
        stratum = home.setdefault(cell.group, (cell.source, cell.cell_class))
        strata.setdefault(stratum, {}).setdefault(cell.group, []).append(cell)
    train: list[LabelledCell] = []
    test: list[LabelledCell] = []
    for stratum in sorted(strata):
        groups = [strata[stratum][g] for g in sorted(strata[stratum])]
        total = sum(map(len, groups))
        taken = 0
        for index in rng.permutation(len(groups)):
            part = groups[int(index)]
            if taken + len(part) <= round(test_share * total):
                test += part
                taken += len(part)
            else:
                train += part
    return train, test
