"""Virtual cells with names, for a classifier that is to read what a stainer paints.

A classifier of stained cells has never seen what a stainer leaves out, softens or guesses, nor a cell of one
laboratory in the stain of another.  Here cells of stained smears get computed DIC under random optics
(`phantoms.optics`), are painted towards a target drawn at random, and keep the name of the real stain.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from pipeline.errors import BadInput
from stainers.base import Stainer
from stainers.data import PIXEL_SIZE_UM, Smear, glass_and_red_cell, window
from storage.fingerprint import array_mark, fingerprint
from storage.near_duplicates import near_duplicate_groups, thumbnail
from storage.tables import write_table
from storage.whole_files import write_png

Array = np.ndarray[Any, Any]
# (H, W, 3) uint8 at PIXEL_SIZE_UM -> the name of the cell in its middle; None where it is in doubt
Namer = Callable[[Array], str | None]

PATCH_PX = 256
COLUMNS = ("image", "class", "source", "patient")
NO_LEUKOCYTE = "other"  # what a red cell is to a classifier of leukocytes
RED_CELLS = 0.15  # of the leukocytes' number: red cells, which detectors on DIC now and then box
OFF_CENTRE_PX = 4.0  # standard deviation: a detector's box is no nearer to a cell's middle
SHEAR_ERROR_DEG = 4.0  # standard deviation of the shear that the stainer is told
SAME_PHOTOGRAPH = 0.92  # correlation of thumbnails, as of smears


@runtime_checkable
class Painter(Protocol):
    """A stainer of DIC that paints without saying how sure it is, and faster for it."""

    def paint(self, patch: Array, target: str | None = None, *, shear_angle_deg: float) -> Array: ...


@dataclass(frozen=True)
class VirtualCellOptions:
    """`draws` pictures of each cell, every other one under `phantoms.optics.wider_optics`; of cells held out
    `held_draws`; `seed`."""

    draws: int = 6
    held_draws: int = 2
    seed: int = 0


@dataclass(frozen=True)
class Subject:
    """A real cell: the field that it is in (with the colours that its DIC is computed by), its centre in
    that field's pixels, its name or None where it is to be asked for, and where it came from."""

    smear: Smear
    centre_xy: tuple[float, float]
    name: str | None
    key: str


def subjects(smears: Sequence[Smear], seed: int = 0) -> list[Subject]:
    """Every leukocyte of smears, without a name yet, and some red cells, which are `other`."""
    found = []
    for smear in smears:
        for i, box in enumerate(smear.leukocytes):
            found.append(Subject(smear, _middle(box), None, f"{smear.file}-{i}"))
    red = [(s, i) for s in smears for i in range(len(s.red_cells))]
    wanted = min(len(red), round(RED_CELLS * len(found)))
    for k in np.random.default_rng([seed, 31]).permutation(len(red))[:wanted]:
        smear, i = red[k]
        found.append(Subject(smear, _middle(smear.red_cells[i]), NO_LEUKOCYTE, f"{smear.file}-red{i}"))
    return found


def _middle(box: Array) -> tuple[float, float]:
    return float(box[0] + box[2]) / 2, float(box[1] + box[3]) / 2


def named_crops(
    crops: Sequence[tuple[Path, str]],
    pixel_size_um: float,
    read: Callable[[Path], Array],
    smears: Sequence[Smear],
) -> list[Subject]:
    """Cells of labelled crops (file, name) whose scale is known; one that shows a smear again is left out.

    They bring the types that smears of healthy blood lack.
    """
    import cv2

    found = []
    for path, name in crops:
        image = read(path)
        factor = pixel_size_um / PIXEL_SIZE_UM
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=how)
        glass, density = glass_and_red_cell(image)
        none = np.zeros((0, 4), np.float32)
        smear = Smear(path.stem, "crop", "train", image, none, none, glass, density)
        middle = (image.shape[1] / 2, image.shape[0] / 2)
        found.append(Subject(smear, middle, name, f"crop-{path.parent.name}-{path.stem}"))
    fields = [s.image for s in smears] + [s.smear.image for s in found]
    groups = near_duplicate_groups(np.stack([thumbnail(f) for f in fields]), SAME_PHOTOGRAPH, turned=False)
    known = set(groups[: len(smears)].tolist())
    return [s for s, group in zip(found, groups[len(smears) :].tolist(), strict=True) if group not in known]


def mark_of_subjects(cells: Sequence[Subject]) -> str:
    """sha256 of all that a picture of these cells is painted from, but for stainer, seed and draw."""
    fields = {id(c.smear): c.smear for c in cells}
    seen = {
        key: fingerprint(array_mark(s.image), s.background_rgb, s.red_cell_density)
        for key, s in fields.items()
    }
    return fingerprint([(c.key, c.centre_xy, seen[id(c.smear)]) for c in cells])


def write_virtual_cells(
    cells: Sequence[Subject],
    stainer: Stainer,
    name_of: Namer,
    folder: Path,
    options: VirtualCellOptions,
    *,
    held: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> Path:
    """Write pictures (PATCH_PX square, PNG) and `labels.csv` (image, class, source, patient); returns it.

    A cell whose real image `name_of` doubts is left out.  Pictures that are there already are kept: a run
    that was cut off goes on.  A picture depends on the seed, the cell and the draw alone.  Raises BadInput
    where nothing is left, or where two images have one name, for a picture is known by it.
    """
    twice = [name for name, n in Counter(c.key for c in cells).items() if n > 1]
    if twice:
        raise BadInput(f"{folder}: two images hold a cell '{twice[0]}'; give each image a name of its own.")
    folder.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    for n, cell in enumerate(cells):
        if n % 100 == 0:
            report(f"virtual cells of {n}/{len(cells)} cells")
        rows += _of_one(cell, stainer, name_of, folder, options, held)
    if not rows:
        raise BadInput(f"{folder}: no cell was named with confidence and painted; give more smears.")
    table = folder / "labels.csv"
    write_table(table, COLUMNS, rows)
    return table


def _of_one(
    cell: Subject, stainer: Stainer, name_of: Namer, folder: Path, options: VirtualCellOptions, held: bool
) -> Iterator[dict[str, str]]:
    name = cell.name or name_of(window(cell.smear.image, cell.centre_xy, PATCH_PX))
    if name is None:
        return
    for draw in range(options.held_draws if held else options.draws):
        path = folder / f"{cell.key}-{draw}.png"
        if not path.is_file():
            write_png(path, _painted(cell, stainer, options.seed, draw))  # whole: a run may be cut off
        row = (path.name, name, f"virtual-{cell.smear.domain}", cell.smear.file)
        yield dict(zip(COLUMNS, row, strict=True))


def _painted(cell: Subject, stainer: Stainer, seed: int, draw: int) -> Array:
    """One picture of a cell: turned, mirrored, its DIC under optics drawn for it, painted."""
    import zlib

    rng = np.random.default_rng([seed, zlib.crc32(cell.key.encode()), draw])
    centre = np.asarray(cell.centre_xy) + rng.normal(0, OFF_CENTRE_PX, 2)
    real = window(cell.smear.image, (float(centre[0]), float(centre[1])), PATCH_PX)
    quarter, mirror = int(rng.integers(4)), bool(rng.integers(2))
    real = np.rot90(real[::-1] if mirror else real, quarter).copy()
    dic, optics = cell.smear.computed_dic(real, rng, wide=draw % 2 == 1)
    target = stainer.targets[int(rng.integers(len(stainer.targets)))]
    shear = optics.shear_angle_deg + rng.normal(0, SHEAR_ERROR_DEG)
    if isinstance(stainer, Painter):
        return stainer.paint(dic[..., None], target, shear_angle_deg=shear)
    return np.asarray(stainer.stain(dic[None, ..., None], target).image[0])
