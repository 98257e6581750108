"""The iron of erythroblasts with exact truth: granules that make a cell the type it is said to be.

Types follow the IWGM-MDS consensus (Mufti et al., Haematologica 93, 1712, 2008): 0 no granule; 1 fewer
than five; 2 five or more, not perinuclear; 3, a ring sideroblast: five or more, perinuclear, covering at
least a third of the nuclear circumference.  `type_of` is that rule as arithmetic; the drawn granules
satisfy it, and a test recomputes it from the truth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from phantoms.blood import Layers, TrueCell
from phantoms.fields import FieldView
from phantoms.shapes import Grid, Rng, dots, grain

Array = np.ndarray[Any, Any]

PERINUCLEAR_UM = 0.9  # from the nuclear edge to a granule's centre
BRIDGE_UM = 1.5  # a gap along the nuclear edge up to this long does not break a ring
RING_FRACTION = 1 / 3


@dataclass(frozen=True)
class Iron:
    """The iron of one erythroblast: granules (N, 2) in um from the cell's centre, and their radii."""

    points_um: Array
    radii_um: Array
    perinuclear: Array  # (N,) bool
    arc_fraction: float  # of the nuclear circumference
    rs_type: int


def nuclear_outline(nuclear_distance: Array, grid: Grid, n_angles: int = 180) -> tuple[Array, Array]:
    """Centroid (2,) in um and edge radius (n_angles,) of a star-shaped nucleus from signed distances."""
    inside = nuclear_distance < 0
    weight = max(int(inside.sum()), 1)
    centre = np.array([float(grid.x[inside].sum()) / weight, float(grid.y[inside].sum()) / weight])
    p = grid.pixel_size_um
    reach = np.arange(0.0, 0.5 * (grid.shape[0] * p), 0.5 * p)
    angles = np.arange(n_angles) * (2 * np.pi / n_angles)
    cols = (centre[0] + np.outer(np.cos(angles), reach) - grid.x[0, 0]) / p + 0.5
    rows = (centre[1] + np.outer(np.sin(angles), reach) - grid.y[0, 0]) / p + 0.5
    h, w = grid.shape
    along = nuclear_distance[np.clip(rows.astype(int), 0, h - 1), np.clip(cols.astype(int), 0, w - 1)]
    outside = along >= 0
    first = np.where(outside.any(axis=1), outside.argmax(axis=1), len(reach) - 1)
    return centre, reach[first]


def arc_covered(points_um: Array, radii_um: Array, centre_um: Array, edge_um: Array) -> float:
    """Share of the nuclear circumference that granules cover, in [0, 1].

    A granule covers its own diameter, seen from the nucleus; a gap of at most BRIDGE_UM along the edge
    to the next granule is covered too.
    """
    if len(points_um) == 0:
        return 0.0
    away = points_um - centre_um
    angle = np.mod(np.arctan2(away[:, 1], away[:, 0]), 2 * np.pi)
    edge = edge_um[np.round(angle / (2 * np.pi) * len(edge_um)).astype(int) % len(edge_um)]
    half = radii_um / np.maximum(edge, 0.5)
    order = np.argsort(angle)
    angle, half, edge = angle[order], half[order], edge[order]
    covered = np.zeros(720, dtype=bool)
    step = 2 * np.pi / covered.size

    def paint(start: float, stop: float) -> None:
        cells = np.arange(int(np.floor(start / step)), int(np.ceil(stop / step)))
        covered[np.mod(cells, covered.size)] = True

    for i in range(len(angle)):
        paint(angle[i] - half[i], angle[i] + half[i])
        if len(angle) > 1:
            j = (i + 1) % len(angle)
            following = angle[j] + (2 * np.pi if j == 0 else 0.0)
            gap = (following - half[j]) - (angle[i] + half[i])
            if 0 < gap * 0.5 * (edge[i] + edge[j]) <= BRIDGE_UM:
                paint(angle[i] + half[i], following - half[j])
    return float(covered.mean())


def type_of(n_granules: int, n_perinuclear: int, arc_fraction: float) -> int:
    """The sideroblast type by the consensus rule."""
    if n_granules == 0:
        return 0
    if n_granules < 5:
        return 1
    return 3 if n_perinuclear >= 5 and arc_fraction >= RING_FRACTION else 2


def place_iron(cell: TrueCell, layers: Layers) -> Iron:
    """Granules that make a drawn erythroblast the type it is said to be.

    Types 2 and 3 keep clear of the limit (arcs under 0.28 or over 0.38), so that the truth is not a
    matter of a pixel.  Raises RuntimeError where no such placement is found.
    """
    rng = np.random.default_rng([cell.seed & 0xFFFFFFFF, cell.seed >> 32, 3])
    nuclear, body = layers.truth["nuclear_distance"], layers.truth["body_distance"]
    centre, edge = nuclear_outline(nuclear, layers.grid)
    wanted = int(cell.rs_type or 0)
    for _ in range(400):
        points, radii = _granules(wanted, rng, centre, edge)
        rows, cols = _pixels(points, layers.grid)
        fits = (body[rows, cols] < -0.12) & (nuclear[rows, cols] > 0.02)
        points, radii = points[fits], radii[fits]
        away = nuclear[rows[fits], cols[fits]]
        near = away <= PERINUCLEAR_UM
        arc = arc_covered(points[near], radii[near], centre, edge)
        iron = Iron(points, radii, near, arc, type_of(len(points), int(near.sum()), arc))
        clear = arc >= 0.38 if wanted == 3 else (arc <= 0.28 or wanted < 2)
        if iron.rs_type == wanted and clear:
            return iron
    raise RuntimeError(f"no place for iron of type {wanted} in cell {cell.number} ({cell.kind})")


def _granules(wanted: int, rng: Rng, centre: Array, edge: Array) -> tuple[Array, Array]:
    """A draw of granules around a nucleus; the caller keeps those that fit."""
    if wanted == 0:
        return np.zeros((0, 2)), np.zeros(0)
    start = rng.uniform(0, 2 * np.pi)
    if wanted == 1:
        n = int(rng.integers(1, 5))
        angles, away = rng.uniform(0, 2 * np.pi, n), rng.uniform(0.2, 2.0, n)
        radii = rng.uniform(0.14, 0.28, n)
    elif wanted == 2:
        n = int(rng.integers(6, 13))
        angles, away = start + rng.uniform(-0.6, 0.6, n), rng.uniform(0.3, 2.4, n)
        radii = rng.uniform(0.14, 0.3, n)
    else:
        n = int(rng.integers(7, 18))
        extent = rng.uniform(0.45, 1.0) * 2 * np.pi
        angles = start + np.linspace(0, extent, n, endpoint=False) + rng.normal(0, 0.08, n)
        away, radii = rng.uniform(0.15, 0.6, n), rng.uniform(0.18, 0.36, n)
    index = np.round(np.mod(angles, 2 * np.pi) / (2 * np.pi) * len(edge)).astype(int) % len(edge)
    r = edge[index] + away
    return centre + np.stack([r * np.cos(angles), r * np.sin(angles)], axis=1), radii


def _pixels(points_um: Array, grid: Grid) -> tuple[Array, Array]:
    p = grid.pixel_size_um
    cols = ((points_um[:, 0] - grid.x[0, 0]) / p + 0.5).astype(int)
    rows = ((points_um[:, 1] - grid.y[0, 0]) / p + 0.5).astype(int)
    h, w = grid.shape
    return np.clip(rows, 0, h - 1), np.clip(cols, 0, w - 1)


def with_iron(cell: TrueCell, layers: Layers, iron: Iron) -> Layers:
    """The layers of a cell with its granules in them, uneven and more or less strongly stained."""
    rng = np.random.default_rng([cell.seed & 0xFFFFFFFF, 4])
    spots = dots(layers.grid, iron.points_um, iron.radii_um)
    uneven = 1 + 0.2 * grain(layers.grid.shape, 0.3, layers.grid.pixel_size_um, rng)
    layers.dyes["iron"] = spots * np.clip(uneven, 0.5, 1.5) * np.float32(rng.uniform(0.8, 1.4))
    return layers


def iron_truth(cell: TrueCell, layers: Layers, view: FieldView, pixel_size_um: float) -> dict[str, Any]:
    """What a person would have to find: granules as [x, y, radius] in pixels of the field."""
    iron: Iron = layers.truth["iron"]
    x = (cell.x_um + iron.points_um[:, 0]) / pixel_size_um - view.left_px - 0.5
    y = (cell.y_um + iron.points_um[:, 1]) / pixel_size_um - view.top_px - 0.5
    radii = iron.radii_um / pixel_size_um
    return {
        "cell_id": cell.number,
        "rs_type": iron.rs_type,
        "n_granules": len(iron.points_um),
        "n_perinuclear": int(iron.perinuclear.sum()),
        "arc_fraction": round(iron.arc_fraction, 4),
        "granules_px": [[round(float(v), 2) for v in g] for g in zip(x, y, radii, strict=True)],
    }
