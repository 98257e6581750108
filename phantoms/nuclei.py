"""Outlines of nuclei, as signed distances on a patch (negative inside, micrometres).

Shapes follow the descriptions of Bain, *Blood Cells*, and of the consensus on the band form: a band's
nucleus has no narrowing to a filament; a segmented one has two to five lobes joined by filaments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from phantoms.shapes import Grid, Rng, arc_points, capsule, contour, ellipse, grain, union

Array = np.ndarray[Any, Any]
Builder = Callable[[Grid, float, Rng], Array]  # (patch, radius of the cell in um, rng) -> signed distance


def _wobble(grid: Grid, rng: Rng, amplitude_um: float, grain_um: float = 1.2) -> Array:
    return np.float32(amplitude_um) * grain(grid.shape, grain_um, grid.pixel_size_um, rng)


def _chain(grid: Grid, points: Array, radii: Array, softness: float) -> Array:
    rods = [
        capsule(grid, *points[i], *points[i + 1], 0.5 * (radii[i] + radii[i + 1]))
        for i in range(len(points) - 1)
    ]
    return union(rods, softness)


def segmented(grid: Grid, cell_um: float, rng: Rng) -> Array:
    """Two to five lobes, mostly three, along an arc, joined by filaments."""
    n = int(rng.choice([2, 3, 4, 5], p=[0.2, 0.45, 0.28, 0.07]))
    return lobed(grid, cell_um, rng, n)


def bilobed(grid: Grid, cell_um: float, rng: Rng) -> Array:
    """Two round lobes, as in most eosinophils."""
    return lobed(grid, cell_um, rng, 2 if rng.random() < 0.85 else 3)


def lobed(grid: Grid, cell_um: float, rng: Rng, n: int) -> Array:
    """`n` lobes on an arc, with filaments of about half a micrometre between neighbours."""
    extent = {2: 2.6, 3: 3.6, 4: 4.4}.get(n, 5.0) * rng.uniform(0.9, 1.1)
    centres = arc_points(cell_um * rng.uniform(0.44, 0.52), rng.uniform(0, 2 * np.pi), extent, n)
    centres = centres + rng.normal(0, 0.04 * cell_um, centres.shape)
    size = cell_um * {2: 0.36, 3: 0.30, 4: 0.26}.get(n, 0.23)
    lobes = []
    for cx, cy in centres:
        a, b = size * rng.uniform(0.9, 1.35), size * rng.uniform(0.75, 1.0)
        lobes.append(ellipse(grid, cx, cy, a, b, rng.uniform(0, np.pi)))
    filaments = [
        capsule(grid, *centres[i], *centres[i + 1], rng.uniform(0.2, 0.35)) for i in range(len(centres) - 1)
    ]
    return union([*lobes, *filaments], 0.35) + _wobble(grid, rng, 0.10)


def band(grid: Grid, cell_um: float, rng: Rng) -> Array:
    """A horseshoe of nearly even width."""
    n = 9
    extent = rng.uniform(3.0, 4.4)
    points = arc_points(cell_um * rng.uniform(0.44, 0.52), rng.uniform(0, 2 * np.pi), extent, n)
    radii = cell_um * rng.uniform(0.20, 0.26) * (1 + 0.1 * np.cos(np.linspace(0, 2 * np.pi, n)))
    return _chain(grid, points, radii, 0.5) + _wobble(grid, rng, 0.08)


def kidney(grid: Grid, cell_um: float, rng: Rng) -> Array:
    """An indented nucleus; the dent takes less than half of it (metamyelocyte)."""
    n = 7
    points = arc_points(
        cell_um * rng.uniform(0.36, 0.42), rng.uniform(0, 2 * np.pi), rng.uniform(1.9, 2.6), n
    )
    points -= points.mean(axis=0) * rng.uniform(0.5, 0.8)
    radii = np.full(n, cell_um * rng.uniform(0.34, 0.40))
    return _chain(grid, points, radii, 0.6) + _wobble(grid, rng, 0.1)


def folded(grid: Grid, cell_um: float, rng: Rng) -> Array:
    """The large, indented or lobulated nucleus of a monocyte."""
    n = int(rng.integers(3, 6))
    points = arc_points(
        cell_um * rng.uniform(0.26, 0.40), rng.uniform(0, 2 * np.pi), rng.uniform(2.2, 4.0), n
    )
    points -= points.mean(axis=0) * rng.uniform(0.3, 0.8)
    lobes = []
    for cx, cy in points:
        long, short = cell_um * rng.uniform(0.36, 0.46), cell_um * rng.uniform(0.30, 0.38)
        lobes.append(ellipse(grid, cx, cy, long, short, rng.uniform(0, np.pi)))
    return union(lobes, 0.9) + _wobble(grid, rng, 0.12, 1.8)


def rounded(share: tuple[float, float], eccentric: float, roughness: float = 0.05) -> Builder:
    """A round nucleus whose radius is `share` of the cell's, up to `eccentric` of the free way off-centre."""

    def build(grid: Grid, cell_um: float, rng: Rng) -> Array:
        radius = cell_um * rng.uniform(*share)
        away = (cell_um - radius) * rng.uniform(0.4, 1.0) * eccentric
        angle = rng.uniform(0, 2 * np.pi)
        moved = Grid(
            grid.x - np.float32(away * np.cos(angle)),
            grid.y - np.float32(away * np.sin(angle)),
            grid.left,
            grid.top,
            grid.pixel_size_um,
        )
        return contour(moved, radius, roughness, rng) + _wobble(grid, rng, 0.04)

    return build


def smeared(grid: Grid, cell_um: float, rng: Rng) -> Array:
    """The spread, ragged remains of a burst cell."""
    return contour(grid, 0.85 * cell_um, 0.30, rng) + _wobble(grid, rng, 0.55, 1.6)
