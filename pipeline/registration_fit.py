"""One transform from many local shifts, each believed as far as it was measured.

The two light paths of a microscope differ by shift, rotation and scale; four parameters are fitted,
and the two of a general affine are added only where the tiles demand them.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pipeline.registration_absorption import pull
from pipeline.registration_refine import Tiles

Array = np.ndarray[Any, np.dtype[Any]]

BENDING_PX = 0.15  # working pixels: local deformation that no transform explains, expected of any tile
CUT = 3.5  # Tukey's constant in deviations; between 95 % efficiency (4.7) and quick refusal
AFFINE_CHI2 = 25.0  # drop in misfit from which two more parameters are taken: five deviations


def _design(points: Array, affine: bool) -> Array:
    """Rows (2N, 4 or 6) that take parameters to shifts, x and y in turn; points (N, 2) are centred."""
    n = len(points)
    x, y = points.T
    rows = np.zeros((n, 2, 6))
    rows[:, 0, 0] = rows[:, 1, 1] = 1
    rows[:, 0, 2], rows[:, 1, 2] = x, y  # scale
    rows[:, 0, 3], rows[:, 1, 3] = -y, x  # rotation
    rows[:, 0, 4], rows[:, 1, 4] = x, -y  # aspect
    rows[:, 0, 5], rows[:, 1, 5] = y, x  # skew
    return rows[:, :, : 6 if affine else 4]


def fit_transform(tiles: Tiles, chosen: Array | None = None, *, bending_px: float = BENDING_PX) -> Array:
    """Affine (2, 3) from centres to shifts, robust to tiles that found something else.

    Every tile has the covariance that its peak's height and the coherence give, plus that of the
    bending; `chosen` (N,) bool says which tiles may speak.  With fewer than three the mean shift is
    all that is fitted.
    """
    use = tiles.informative if chosen is None else chosen & tiles.informative
    points, shifts, height = tiles.centres[use], tiles.shifts[use], tiles.height[use]
    if len(points) == 0:
        return np.zeros((2, 3))
    middle = points.mean(0)
    span = max(float(points.std()), 1.0)
    scaled = (points - middle) / span
    covariance = np.linalg.inv(tiles.information)[None] / height[:, None, None] ** 2
    inverse = np.linalg.inv(covariance + bending_px**2 * np.eye(2))
    if len(points) < 3:
        mean = np.linalg.solve(inverse.sum(0), (inverse @ shifts[:, :, None]).sum(0))[:, 0]
        return np.column_stack([np.zeros((2, 2)), mean])

    begin = _consensus(scaled, shifts)
    four, misfit4, spread = _robust(_design(scaled, False), shifts, inverse, begin, None)
    parameters = np.append(four, [0.0, 0.0])
    if len(points) >= 8:
        six, misfit6, _ = _robust(_design(scaled, True), shifts, inverse, parameters, spread)
        if misfit4 - misfit6 > AFFINE_CHI2:
            parameters = six
    tx, ty, scale, turn, aspect, skew = parameters
    linear = np.array([[scale + aspect, skew - turn], [skew + turn, scale - aspect]]) / span
    return np.column_stack([linear, np.array([tx, ty]) - linear @ middle])


def _consensus(points: Array, shifts: Array) -> Array:
    """Parameters (4,) of the similarity through two tiles that most tiles are closest to (LMedS).

    Pairs are taken in a fixed order, far ones first, so that the result is the same every time.
    """
    n = len(points)
    i, j = np.triu_indices(n, 1)
    apart = np.hypot(*(points[i] - points[j]).T)
    far = np.argsort(-apart, kind="stable")[: max(200, len(apart) // 3)]
    far = far[:: max(1, len(far) // 200)]
    z, w = points @ [1, 1j], shifts @ [1, 1j]
    gap = z[j[far]] - z[i[far]]
    slope = (w[j[far]] - w[i[far]]) / np.where(np.abs(gap) > 1e-9, gap, np.inf)
    base = w[i[far]] - slope * z[i[far]]
    left = np.abs(w[None] - base[:, None] - slope[:, None] * z[None])
    rank = max(2, int(np.ceil(0.4 * n)) - 1)
    best = int(np.argmin(np.partition(left, min(rank, n - 1), axis=1)[:, min(rank, n - 1)]))
    return np.array([base[best].real, base[best].imag, slope[best].real, slope[best].imag])


def _robust(
    design: Array, shifts: Array, inverse: Array, parameters: Array, spread: float | None
) -> tuple[Array, float, float]:
    """Reweighted least squares (Tukey); parameters, bounded misfit, and the spread in deviations."""
    fixed = spread
    weighted = np.swapaxes(design, 1, 2) @ inverse
    misfit = np.inf
    start = parameters[: design.shape[2]]
    parameters = start
    for _ in range(15):
        left = shifts - design @ parameters
        distance = np.sqrt(np.maximum(np.einsum("ni,nij,nj->n", left, inverse, left), 0))
        # The median of a two-dimensional normal deviation's length is 1.18.
        spread = fixed if fixed is not None else max(1.0, float(np.median(distance)) / 1.1774)
        u = np.minimum(distance / (CUT * spread), 1.0)
        weight = (1 - u**2) ** 2
        misfit = float((CUT**2 / 3 * (1 - (1 - u**2) ** 3)).sum())
        gram = np.einsum("n,nij,njk->ik", weight, weighted, design)
        gram += 1e-9 * np.trace(gram) * np.eye(len(gram)) + 1e-12 * np.eye(len(gram))
        moved = np.linalg.solve(gram, np.einsum("n,nij,nj->i", weight, weighted, shifts))
        done = np.abs(moved - parameters).max() < 1e-6
        parameters = moved
        if done:
            break
    return parameters, misfit, float(spread or 1.0)


def uncertainty_px(tiles: Tiles, area: tuple[int, int], *, bending_px: float = BENDING_PX) -> float:
    """Expected error of the fit, root mean square over an area (height, width), working pixels.

    Few tiles, or tiles in one corner only, fix a transform where they lie and leave it open elsewhere.
    """
    use = tiles.informative
    if use.sum() < 3:
        return float("inf")
    middle = tiles.centres[use].mean(0)
    span = max(float(tiles.centres[use].std()), 1.0)
    covariance = np.linalg.inv(tiles.information)[None] / tiles.height[use, None, None] ** 2
    inverse = np.linalg.inv(covariance + bending_px**2 * np.eye(2))
    design = _design((tiles.centres[use] - middle) / span, False)
    fitted = np.linalg.pinv((np.swapaxes(design, 1, 2) @ inverse @ design).sum(0))
    x, y = np.meshgrid(np.linspace(0, area[1] - 1, 7), np.linspace(0, area[0] - 1, 5))
    everywhere = _design((np.stack([x.ravel(), y.ravel()], 1) - middle) / span, False)
    return float(np.sqrt(np.einsum("nij,jk,nik->n", everywhere, fitted, everywhere).mean()))


def absorption_pull(tiles: Tiles, step: Array) -> tuple[Array, float]:
    """What is left (2,) x, y once the tiles' affine (2, 3) was followed, and its expected error.

    The tiles' peaks are drawn along the shear by what the DIC absorbs; their common transfer function
    says how far.
    """
    if tiles.shear_shift is None:
        return np.zeros(2), 0.0
    cosine, sine = np.cos(tiles.shear_rad), np.sin(tiles.shear_rad)
    axes = np.array([[cosine, sine], [-sine, cosine]])  # along and across
    centres = tiles.centres[tiles.informative] if tiles.informative.any() else tiles.centres
    seen = axes @ (centres @ step[:, :2].T + step[:, 2]).mean(axis=0)
    left, error = pull(*tiles.shear_shift, seen)
    return left @ axes, error


def updated(matrix: Array, affine: Array) -> Array:
    """The matrix that follows once tiles were found at centre + affine(centre)."""
    step = np.eye(3)
    step[:2] += affine
    out: Array = matrix @ step
    return out


def shifted(matrix: Array, shift: Array) -> Array:
    """The matrix that follows once all content was found at a place + shift (2,)."""
    return updated(matrix, np.column_stack([np.zeros((2, 2)), shift]))
