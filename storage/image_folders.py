"""Folders of images as people lay them out: what is an image, and the labels beside it in YOLO's format.

YOLO's two layouts are both read: `images/<part>/a.jpg` with `labels/<part>/a.txt`, and `<part>/images/a.jpg`
with `<part>/labels/a.txt`.  A row is `class x y width height`, as shares of the image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from pipeline.errors import BadInput

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"))
EDGE = 0.01  # by so much of the image tools let a value go beyond 0 and 1
TXL_PBC = ("barcelona", "bccd", "raabin")  # the sources of the public set TXL-PBC, alphabetical
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


def read_boxes(path: Path, width: int, height: int, dtype: type = np.float64) -> np.ndarray:
    """(N, 5): class, x0, y0, x1, y1 in pixels of an image of that size, over its edge where labelled so.

    They are reckoned in `dtype`: its last digit can decide whether a cell touches the edge.  An absent file
    has no boxes.  Raises BadInput as `read_rows`.
    """
    table: np.ndarray = np.array(read_rows(path), dtype).reshape(-1, 5)
    centre, size = table[:, 1:3], table[:, 3:5]
    scale: np.ndarray = np.array([width, height], dtype)
    return np.concatenate([table[:, :1], (centre - size / 2) * scale, (centre + size / 2) * scale], axis=1)


@cache
def public_names() -> frozenset[str]:
    """How the file names of TXL-PBC begin (eight hexadecimal digits), by which its smears are known."""
    from storage.tables import read_table

    table = Path(__file__).with_name("txl_pbc.csv")
    return frozenset(r["name_begins"] for r in read_table(table, ("name_begins",)))


def sources_of(data_dir: Path, paths: Sequence[Path], sizes: Sequence[tuple[int, int]]) -> list[str]:
    """The source of each smear of a folder, by the names and the (width, height) of all of them in pixels.

    Where every one has a name and a size of TXL-PBC they are its three sources; else all are of one, the
    folder's: other cameras take images of such sizes, too.
    """
    known = [_txl_pbc(path.stem, *size) for path, size in zip(paths, sizes, strict=True)]
    if any(source is None for source in known):
        return [own_source(data_dir)] * len(known)
    return [source for source in known if source is not None]


def _txl_pbc(name: str, width: int, height: int) -> str | None:
    if name[:8] not in public_names():
        return None
    if (width, height) == (575, 575):
        return "raabin"
    if 358 <= width <= 370 and 358 <= height <= 370:
        return "barcelona"
    return "bccd" if (width, height) in ((416, 416), (640, 480)) else None


def own_source(data_dir: Path) -> str:
    """The source of a laboratory's own smears, by the name of their folder: letters, digits and hyphens."""
    name = re.sub(r"[^a-z0-9]+", "-", data_dir.resolve().name.lower()).strip("-")
    if name in TXL_PBC:  # whatever it is called, it is none of the public sources
        return f"own-{name}"
    return name or "own"


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
