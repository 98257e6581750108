"""Folders of images as people lay them out: what is an image, and the labels beside it in YOLO's format.

YOLO's two layouts are both read: `images/<part>/a.jpg` with `labels/<part>/a.txt`, and `<part>/images/a.jpg`
with `<part>/labels/a.txt`.  A row is `class x y width height`, as shares of the image.
"""

from __future__ import annotations

import math
from pathlib import Path

from pipeline.errors import BadInput

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"))
EDGE = 0.01  # by so much of the image tools let a value go beyond 0 and 1
Row = tuple[float, float, float, float, float]


def is_image(path: Path) -> bool:
    """Whether a file is an image by its name; hidden ones (`._a.jpg` of a Mac) are none."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def yolo_images(data_dir: Path) -> list[Path]:
    """Every image of a YOLO folder, sorted by its path."""
    root = data_dir / "images" if (data_dir / "images").is_dir() else data_dir
    return sorted(p for p in root.rglob("*") if is_image(p))


def label_path(image: Path) -> Path:
    """`…/images/train/a.jpg` -> `…/labels/train/a.txt`; beside the image where no folder is called images."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            return Path(*parts).with_suffix(".txt")
    return image.with_suffix(".txt")


def read_rows(path: Path) -> list[Row]:
    """Class, centre x and y, width and height of each box; an absent file is an image without cells.

    Raises BadInput naming the file, and the line that is no box.
    """
    if not path.is_file():
        return []
    rows: list[Row] = []
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a text with a mark of its encoding
    except (OSError, UnicodeDecodeError) as error:
        detail = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadInput(f"{path}: the labels cannot be read ({detail}); export them again as text.") from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        row, problem = _row(line)
        if row is None:
            raise BadInput(
                f"{path}, line {number}: '{line[:60]}' is not 'class x y width height' ({problem}); export "
                "YOLO boxes or correct the line."
            )
        rows.append(row)
    return rows


def _row(line: str) -> tuple[Row | None, str]:
    """The box of a line, or None and what is wrong: other formats must not be read as other boxes."""
    fields = line.split()
    try:
        values = [float(v) for v in fields]
    except ValueError:
        return None, "a value is no number"
    if len(values) not in (5, 6):  # the sixth is a detector's confidence
        return None, f"{len(values)} values" + (", as of a polygon" if len(values) > 6 else "")
    if not all(math.isfinite(v) for v in values):
        return None, "a value is not finite"
    c, x, y, w, h = values[:5]
    if c != int(c):
        return None, "the class is no whole number"
    if not all(-EDGE <= v <= 1 + EDGE for v in (x, y)) or not all(0 <= v <= 1 + EDGE for v in (w, h)):
        return None, "not in shares of the image, 0 to 1, but perhaps in pixels"
    return (c, x, y, w, h), ""
