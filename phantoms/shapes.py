"""Shapes, textures and granules, drawn on a grid of micrometres.

Signed distances are negative inside, in micrometres.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

Array = np.ndarray[Any, Any]
Rng = np.random.Generator


@dataclass(frozen=True)
class Grid:
    """A square patch around a cell: `x`, `y` (N, N) float32 in micrometres from the cell's centre.

    Pixel (0, 0) of the patch is pixel (`left`, `top`) of the slide.
    """

    x: Array
    y: Array
    left: int
    top: int
    pixel_size_um: float

    @property
    def shape(self) -> tuple[int, int]:
        return self.x.shape  # type: ignore[return-value]


def grid_around(x_um: float, y_um: float, half_um: float, pixel_size_um: float) -> Grid:
    """The patch of whole slide pixels that covers `half_um` to each side of a slide position.

    The slide's pixel (i, j) covers i * pixel_size_um .. (i + 1) * pixel_size_um; its value is taken at
    its centre.
    """
    left = int(np.floor((x_um - half_um) / pixel_size_um))
    top = int(np.floor((y_um - half_um) / pixel_size_um))
    n = int(np.ceil(2 * half_um / pixel_size_um)) + 1
    step = np.arange(n, dtype=np.float64) + 0.5
    gx = ((left + step) * pixel_size_um - x_um).astype(np.float32)
    gy = ((top + step) * pixel_size_um - y_um).astype(np.float32)
    x, y = np.meshgrid(gx, gy)
    return Grid(x, y, left, top, pixel_size_um)


def contour(grid: Grid, radius_um: float, roughness: float, rng: Rng, *, elongation: float = 0.0) -> Array:
    """Signed distance to a closed irregular outline about the centre.

    The radius varies by harmonics 2 to 6 whose amplitudes fall with their order.
    """
    theta = np.arctan2(grid.y, grid.x)
    edge = np.full(theta.shape, 1.0, dtype=np.float32)
    for k in range(2, 7):
        amplitude = roughness * rng.normal() / k**1.2
        if k == 2:
            amplitude += elongation
        edge += np.float32(amplitude) * np.cos(np.float32(k) * theta + np.float32(rng.uniform(0, 2 * np.pi)))
    edge = np.clip(edge, 0.6, 1.4)
    return np.hypot(grid.x, grid.y) - np.float32(radius_um) * edge


def ellipse(grid: Grid, cx: float, cy: float, rx: float, ry: float, angle: float) -> Array:
    """Signed distance (first order) to an ellipse."""
    c, s = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    dx, dy = grid.x - np.float32(cx), grid.y - np.float32(cy)
    u, v = (c * dx + s * dy) / np.float32(rx), (-s * dx + c * dy) / np.float32(ry)
    return (np.sqrt(u * u + v * v) - 1.0) * np.float32(min(rx, ry))


def capsule(grid: Grid, ax: float, ay: float, bx: float, by: float, radius: float) -> Array:
    """Signed distance to a rod with round ends."""
    dx, dy = np.float32(bx - ax), np.float32(by - ay)
    px, py = grid.x - np.float32(ax), grid.y - np.float32(ay)
    t = np.clip((px * dx + py * dy) / np.float32(max(float(dx * dx + dy * dy), 1e-9)), 0.0, 1.0)
    return np.hypot(px - t * dx, py - t * dy) - np.float32(radius)


def union(distances: list[Array], softness_um: float = 0.25) -> Array:
    """Smooth union of signed distances."""
    out = distances[0]
    for d in distances[1:]:
        h = np.clip(0.5 + 0.5 * (d - out) / np.float32(softness_um), 0.0, 1.0)
        out = d * (1 - h) + out * h - np.float32(softness_um) * h * (1 - h)
    return out


def coverage(distance: Array, edge_um: float = 0.2) -> Array:
    """Share of a pixel inside, with an edge as soft as `edge_um`."""
    return np.clip(0.5 - distance / np.float32(edge_um), 0.0, 1.0)


def grain(shape: tuple[int, int], grain_um: float, pixel_size_um: float, rng: Rng) -> Array:
    """Zero-mean noise of unit variance with a grain of `grain_um`, (H, W) float32."""
    shrink = max(1.0, grain_um / pixel_size_um)
    small = (int(shape[0] / shrink) + 3, int(shape[1] / shrink) + 3)
    noise = cv2.resize(
        rng.standard_normal(small, dtype=np.float32), (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC
    )
    return noise / np.float32(max(float(noise.std()), 1e-6))


def scatter(grid: Grid, allowed: Array, n: int, spacing_um: float, rng: Rng) -> Array:
    """Up to `n` positions inside `allowed`, (K, 2) micrometres, none nearer than `spacing_um`."""
    rows, cols = np.nonzero(allowed)
    if rows.size == 0 or n <= 0:
        return np.zeros((0, 2))
    take = rng.integers(0, rows.size, size=3 * n)
    points = np.stack([grid.x[rows[take], cols[take]], grid.y[rows[take], cols[take]]], axis=1).astype(float)
    if spacing_um <= 0:
        return points[:n]
    kept: list[Array] = []
    for p in points:
        if len(kept) == n:
            break
        if not kept or np.min(np.hypot(*(np.asarray(kept) - p).T)) >= spacing_um:
            kept.append(p)
    return np.asarray(kept).reshape(-1, 2)


def dots(grid: Grid, points_um: Array, radii_um: Array | float) -> Array:
    """Round granules: coverage in [0, 1], (H, W) float32; overlapping ones merge."""
    out = np.zeros(grid.shape, dtype=np.float32)
    radii = np.broadcast_to(np.asarray(radii_um, dtype=float), (len(points_um),))
    p = grid.pixel_size_um
    x0, y0 = float(grid.x[0, 0]), float(grid.y[0, 0])
    edge = max(p, 0.1)
    for (px, py), r in zip(points_um, radii, strict=True):
        reach = r + edge
        a, b = max(0, int((px - reach - x0) / p)), int((px + reach - x0) / p) + 2
        c, d = max(0, int((py - reach - y0) / p)), int((py + reach - y0) / p) + 2
        gx, gy = grid.x[c:d, a:b], grid.y[c:d, a:b]
        if gx.size:
            spot = np.clip(0.5 - (np.hypot(gx - px, gy - py) - r) / edge, 0.0, 1.0)
            np.maximum(out[c:d, a:b], spot, out=out[c:d, a:b])
    return out


def arc_points(radius: float, start: float, extent: float, n: int) -> Array:
    """`n` points along an arc about the centre, (n, 2)."""
    angles = start + np.linspace(0.0, extent, n)
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)
