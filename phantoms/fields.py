"""Slides with exact truth: which cells lie where, and what each field of view shows of them.

All fields of a slide are cut from one grid of slide pixels, so that a cell in the overlap of two
fields is one true cell and looks the same in both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from phantoms.blood import RECIPES, Layers, TrueCell, draw, random_diameter, split_kind
from phantoms.stains import StainStyle
from pipeline.errors import BadInput

Array = np.ndarray[Any, Any]
Rng = np.random.Generator
Drawer = Callable[[TrueCell, float], Layers]
UNLABELLED = ("red_cell", "platelet")

NORMAL_BLOOD: dict[str, float] = {
    "neutrophil_segmented": 0.55,
    "neutrophil_band": 0.04,
    "lymphocyte": 0.29,
    "monocyte": 0.07,
    "eosinophil": 0.04,
    "basophil": 0.01,
}


@dataclass(frozen=True)
class FieldView:
    """A field of view: its upper left pixel on the slide's grid, and its size."""

    name: str
    left_px: int
    top_px: int
    width_px: int
    height_px: int

    def stage_um(self, pixel_size_um: float) -> tuple[float, float]:
        """Stage position of the upper left pixel's corner."""
        return self.left_px * pixel_size_um, self.top_px * pixel_size_um


@dataclass
class FieldLayers:
    """What is in front of the camera: the field and `margin_px` around it.

    `density` (H + 2m, W + 2m, 3) and `path` (H + 2m, W + 2m) hold the margin, which a DIC image that
    was taken elsewhere needs; `labels` (H, W) does not.  `seen` lists every nucleated cell with a
    pixel in the field: (cell, tight box of its visible pixels in the field, visible share, layers).
    """

    density: Array
    path: Array
    labels: Array
    margin_px: int
    seen: list[tuple[TrueCell, tuple[int, int, int, int], float, Layers]]

    def inner(self, image: Array) -> Array:
        """An image without its margin."""
        m = self.margin_px
        return image[m : image.shape[0] - m, m : image.shape[1] - m]


def lay_fields(
    n: int, width_px: int, height_px: int, pixel_size_um: float, overlap_um: float = 0.0, prefix: str = "F"
) -> list[FieldView]:
    """`n` fields in rows on the slide; neighbours share `overlap_um`, or lie 60 um apart where it is 0."""
    overlap_px = round(overlap_um / pixel_size_um)
    if overlap_px >= min(width_px, height_px):
        raise BadInput(
            f"fields of {width_px} x {height_px} px cannot overlap by {overlap_um} um; ask for less."
        )
    gap = -overlap_px if overlap_px > 0 else round(60.0 / pixel_size_um)
    columns = int(np.ceil(np.sqrt(n)))
    start = round(1000.0 / pixel_size_um)
    return [
        FieldView(
            f"{prefix}{i + 1:03d}",
            start + (i % columns) * (width_px + gap),
            start + (i // columns) * (height_px + gap),
            width_px,
            height_px,
        )
        for i in range(n)
    ]


def share_out(n: int, composition: Mapping[str, float]) -> dict[str, int]:
    """Whole numbers that add to `n`, in proportion to a composition, by the largest remainder."""
    unknown = set(composition) - set(RECIPES)
    if unknown:
        raise BadInput(f"cannot draw {', '.join(sorted(unknown))}; known are: {', '.join(sorted(RECIPES))}.")
    total = float(sum(composition.values()))
    if total <= 0 or min(composition.values()) < 0:
        raise BadInput("a composition needs shares of zero or more, at least one above zero.")
    exact = {k: n * v / total for k, v in composition.items()}
    counts = {k: int(v) for k, v in exact.items()}
    for k in sorted(exact, key=lambda k: (counts[k] - exact[k], k))[: n - sum(counts.values())]:
        counts[k] += 1
    return counts


class _Crowd:
    """Places taken so far, in bins, so that a neighbour is found without asking everyone."""

    BIN_UM = 26.0

    def __init__(self) -> None:
        self.bins: dict[tuple[int, int], list[tuple[float, float, float]]] = defaultdict(list)

    def add(self, x: float, y: float, radius: float) -> None:
        self.bins[int(x // self.BIN_UM), int(y // self.BIN_UM)].append((x, y, radius))

    def free(self, x: float, y: float, radius: float, closeness: float) -> bool:
        """Whether no neighbour is nearer than `closeness` times the sum of the radii."""
        i, j = int(x // self.BIN_UM), int(y // self.BIN_UM)
        for a in (i - 1, i, i + 1):
            for b in (j - 1, j, j + 1):
                for u, v, r in self.bins.get((a, b), ()):
                    reach = closeness * (radius + r)
                    if (x - u) ** 2 + (y - v) ** 2 < reach * reach:
                        return False
        return True


def populate(
    views: Sequence[FieldView],
    pixel_size_um: float,
    rng: Rng,
    *,
    composition: Mapping[str, float],
    n_leukocytes: int,
    red_cell_cover: float = 0.38,
    platelets_per_red_cell: float = 0.06,
    cut_cells: bool = False,
    crowding: float = 0.0,
    red_cells_pile: bool = False,
    diameter: Callable[[str, Rng], float] = random_diameter,
) -> list[TrueCell]:
    """The cells of a slide: exactly `n_leukocytes`, in the shares of `composition`, and red cells.

    Leukocytes lie wholly in at least one field (in crowded ones an irregular outline may lose a rim),
    unless `cut_cells`, which lets them lie across the edge of what is imaged.  They keep apart from
    each other, less so with `crowding` (at 1 they touch and overlap).  Some red cells overlap, all may
    with `red_cells_pile`.
    Raises BadInput where the fields are too small for that many.
    """
    kinds = [k for k, n in share_out(n_leukocytes, composition).items() for _ in range(n)]
    rooms = [
        (*v.stage_um(pixel_size_um), v.width_px * pixel_size_um, v.height_px * pixel_size_um) for v in views
    ]
    for layout in range(8):
        # a crowded field gets smaller cells and less air between them before it is refused
        sizes = sorted(((diameter(k, rng), k) for k in kinds), reverse=True)
        placed = _place(sizes, rooms, rng, 1 - 0.02 * layout, cut_cells, crowding)
        if placed is not None:
            break
    else:
        raise BadInput(
            f"{n_leukocytes} leukocytes do not fit {len(rooms)} field(s) of {rooms[0][2]:.0f} x "
            f"{rooms[0][3]:.0f} um; ask for fewer or for larger fields."
        )
    cells, leukocytes = placed
    # numbers do not tell the class or the size
    cells = [cells[i] for i in rng.permutation(len(cells))]
    cells += _fill(rooms, rng, leukocytes, red_cell_cover, platelets_per_red_cell, red_cells_pile)
    return [replace(c, number=n) for n, c in enumerate(cells)]


# (distance to the edge in radii, distance between centres in sums of radii), from airy to crowded
TIGHTNESS = ((1.35, 1.3), (1.25, 1.15), (1.12, 1.08), (1.0, 1.0))


def _place(
    sizes: list[tuple[float, str]],
    rooms: list[tuple[float, float, float, float]],
    rng: Rng,
    shrink: float,
    cut_cells: bool,
    crowding: float,
) -> tuple[list[TrueCell], _Crowd] | None:
    """Put leukocytes, the largest first, into the rooms by turns; None where one finds no place."""
    crowd, cells = _Crowd(), []
    air = 1 - 0.25 * crowding
    for turn, (size, kind) in enumerate(sizes):
        size *= shrink
        place = None
        for edge, apart in TIGHTNESS:
            for k in range(len(rooms)):
                room = rooms[(turn + k) % len(rooms)]
                place = place or _spot(room, crowd, size / 2, edge, apart * air, cut_cells, rng)
        if place is None:
            return None
        crowd.add(*place, size / 2)
        name, stage = split_kind(kind)
        cells.append(TrueCell(0, name, *place, int(rng.integers(2**62)), size, stage))
    return cells, crowd


def _spot(
    room: tuple[float, float, float, float],
    crowd: _Crowd,
    radius: float,
    edge: float,
    apart: float,
    cut_cells: bool,
    rng: Rng,
) -> tuple[float, float] | None:
    """A free place in a room, or None after a fair number of tries."""
    x0, y0, width, height = room
    inset = -0.5 * radius if cut_cells else edge * radius
    if width < 2 * inset or height < 2 * inset:
        return None
    for _ in range(150):
        x = float(rng.uniform(x0 + inset, x0 + width - inset))
        y = float(rng.uniform(y0 + inset, y0 + height - inset))
        if crowd.free(x, y, radius, apart):
            return x, y
    return None


def _fill(
    rooms: list[tuple[float, float, float, float]],
    rng: Rng,
    leukocytes: _Crowd,
    cover: float,
    platelets: float,
    pile: bool,
) -> list[TrueCell]:
    """Red cells and platelets over every field and 12 um around it, each patch of slide once."""
    reds, out = _Crowd(), []
    around = 12.0
    done: list[tuple[float, float, float, float]] = []
    for x0, y0, w, h in rooms:
        x0, y0, w, h = x0 - around, y0 - around, w + 2 * around, h + 2 * around
        n = round(cover * w * h / 43.0)
        for kind, count in (("red_cell", n), ("platelet", round(n * platelets))):
            for _ in range(count):
                size = random_diameter(kind, rng)
                closeness = rng.uniform(0.3, 0.8) if pile or rng.random() < 0.12 else 0.97
                seed = int(rng.integers(2**62))
                for _attempt in range(12):
                    x, y = float(rng.uniform(x0, x0 + w)), float(rng.uniform(y0, y0 + h))
                    if any(a <= x < a + c and b <= y < b + d for a, b, c, d in done):
                        continue
                    if leukocytes.free(x, y, size / 2, 1.0) and reds.free(x, y, size / 2, closeness):
                        reds.add(x, y, size / 2)
                        out.append(TrueCell(0, kind, x, y, seed, size))
                        break
        done.append((x0, y0, w, h))
    return out


def render_field(
    cells: Sequence[TrueCell],
    view: FieldView,
    pixel_size_um: float,
    style: StainStyle,
    *,
    margin_px: int = 0,
    drawer: Drawer = draw,
) -> FieldLayers:
    """Draw what a field (and its margin) holds of a slide's cells."""
    m = margin_px
    height, width = view.height_px + 2 * m, view.width_px + 2 * m
    left, top = view.left_px - m, view.top_px - m
    density = np.zeros((height, width, 3), dtype=np.float32)
    path = np.zeros((height, width), dtype=np.float32)
    labels = np.zeros((height, width), dtype=np.uint8)
    seen = []
    vectors: dict[str, Array] = {}
    # leukocytes last: their labels win where a red cell touches them
    for cell in sorted(cells, key=lambda c: c.kind not in UNLABELLED):
        reach = 0.75 * cell.diameter_um + 2.0
        x, y = cell.x_um / pixel_size_um - left, cell.y_um / pixel_size_um - top
        r = reach / pixel_size_um
        if x < -r or y < -r or x > width + r or y > height + r:
            continue
        layers = drawer(cell, pixel_size_um)
        h, w = layers.grid.shape
        px, py = layers.grid.left - left, layers.grid.top - top
        x0, y0, x1, y1 = max(px, 0), max(py, 0), min(px + w, width), min(py + h, height)
        if x0 >= x1 or y0 >= y1:
            continue
        here = np.s_[y0:y1, x0:x1]
        part = np.s_[y0 - py : y1 - py, x0 - px : x1 - px]
        for dye, amount in layers.dyes.items():
            if dye not in vectors:
                vectors[dye] = style.density(dye)
            for channel in range(3):
                density[(*here, channel)] += amount[part] * vectors[dye][channel]
        path[here] += layers.path[part]
        own = layers.labels[part]
        np.copyto(labels[here], own, where=own > 0)
        if cell.kind not in UNLABELLED:
            box, share = _visible(layers, view)
            if box is not None:
                seen.append((cell, box, share, layers))
    inner = np.ascontiguousarray(labels[m : height - m, m : width - m])
    return FieldLayers(density, path, inner, m, sorted(seen, key=lambda s: s[0].number))


def _visible(layers: Layers, view: FieldView) -> tuple[tuple[int, int, int, int] | None, float]:
    """The tight box of a cell's pixels that lie in a field, in its pixels, and their share of all."""
    px, py = layers.grid.left - view.left_px, layers.grid.top - view.top_px
    h, w = layers.grid.shape
    x0, y0, x1, y1 = max(px, 0), max(py, 0), min(px + w, view.width_px), min(py + h, view.height_px)
    if x0 >= x1 or y0 >= y1:
        return None, 0.0
    own = layers.labels > 0
    part = own[y0 - py : y1 - py, x0 - px : x1 - px]
    if not part.any():
        return None, 0.0
    rows, cols = np.nonzero(part.any(axis=1))[0], np.nonzero(part.any(axis=0))[0]
    box = (x0 + int(cols[0]), y0 + int(rows[0]), x0 + int(cols[-1]) + 1, y0 + int(rows[-1]) + 1)
    return box, float(part.sum()) / float(own.sum())
