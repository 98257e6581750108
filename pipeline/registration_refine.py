"""Sub-pixel refinement: local shifts on tiles, and the affine that fits most of them.

Each tile compares optical density with DIC, its derivative undone: cross spectrum times i (k.u).
Instead of whitening each tile on its own, all tiles share one weight, estimated from their mean
spectra: the coherence weight of the maximum-likelihood delay estimator (Hannan and Thomson 1973;
Knapp and Carter 1976, eq. 21).  The optics need not be known: what DIC and density do not share, or
share only as noise, weighs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.registration_search import frequencies

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Tiles:
    """Local shifts of DIC against brightfield on a grid of tiles, in working pixels.

    centres (N, 2) x, y in brightfield working pixels; shifts (N, 2): the content of the tile is
    found at centre + shift in the DIC that was warped by the matrix of the time; height (N,): peak
    over the spread of the correlation plane.
    """

    centres: Array
    shifts: Array
    height: Array


def overlap(matrix: Array, shape: tuple[int, int], dic_shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1 of the largest simple rectangle of the brightfield whose pixels lie in the DIC."""
    h, w = shape
    hd, wd = dic_shape
    back = np.linalg.inv(matrix)
    corners = np.array([[0, 0, 1], [wd - 1, 0, 1], [wd - 1, hd - 1, 1], [0, hd - 1, 1]], float).T
    p = (back @ corners)[:2]
    x0 = max(0.0, p[0, 0], p[0, 3])
    x1 = min(w - 1.0, p[0, 1], p[0, 2])
    y0 = max(0.0, p[1, 0], p[1, 1])
    y1 = min(h - 1.0, p[1, 2], p[1, 3])
    return int(np.ceil(x0)), int(np.ceil(y0)), int(np.floor(x1)) + 1, int(np.floor(y1)) + 1


def tile_corners(area: tuple[int, int, int, int], side: int, overlap_share: float) -> Array:
    """Upper left corners (N, 2) x, y of tiles spread evenly over an area."""
    x0, y0, x1, y1 = area
    if x1 - x0 < side or y1 - y0 < side:
        return np.zeros((0, 2), int)

    def along(a: int, b: int) -> Array:
        step = side * (1 - overlap_share)
        n = 1 + max(0, int(np.ceil((b - a - side) / step)))
        return np.round(np.linspace(a, b - side, n)).astype(int)

    xs, ys = np.meshgrid(along(x0, x1), along(y0, y1))
    return np.stack([xs.ravel(), ys.ravel()], 1)


def _stack(image: Array, corners: Array, side: int, window: Array) -> Array:
    tiles = np.stack([image[y : y + side, x : x + side] for x, y in corners])
    tiles = tiles - tiles.mean(axis=(1, 2), keepdims=True)
    return tiles * window


def measure_tiles(
    brightfield: Array,
    dic: Array,
    matrix: Array,
    shear_rad: float,
    *,
    side: int,
    reach: int,
    overlap_share: float = 0.0,
    swapped: bool = False,
) -> tuple[Tiles, float]:
    """Local shifts on tiles of `side` working pixels, up to `reach`; and the shear direction anew.

    `swapped` says that the roles are exchanged: the tiles are DIC's, what is warped is the density.
    """
    import cv2
    from scipy import fft as sfft

    h, w = brightfield.shape
    warped = cv2.warpAffine(dic, matrix[:2], (w, h), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
    corners = tile_corners(overlap(matrix, (h, w), dic.shape), side, overlap_share)
    if len(corners) < 6:
        return Tiles(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0)), shear_rad
    hann = np.hanning(side + 2)[1:-1].astype(np.float32)
    window = np.outer(hann, hann)
    fb = sfft.rfft2(_stack(brightfield, corners, side, window))
    fd = sfft.rfft2(_stack(warped, corners, side, window))
    pb = (fb.real**2 + fb.imag**2).mean(0)
    pd = (fd.real**2 + fd.imag**2).mean(0)

    ky, kx, _ = frequencies(side, side)
    kx = kx[:, : side // 2 + 1].copy()
    kx[0, -1] = 0.5
    k = np.hypot(ky, kx)
    cross = np.conj(fb) * fd
    if swapped:
        cross = -cross  # the derivative now stands on the other side
    mean = cross.mean(0)
    # Direction: the mean cross spectrum's imaginary part is odd along the shear.
    base = (k > 0.015) & (k < 0.25)
    unit = mean.imag / np.sqrt(pb * pd + 1e-12)
    gx, gy = (unit * kx / np.maximum(k, 1e-6))[base].sum(), (unit * ky / np.maximum(k, 1e-6))[base].sum()
    shear = float(np.arctan2(gy, gx)) if gx * gx + gy * gy > 0 else shear_rad
    along = (kx * np.cos(shear) + ky * np.sin(shear)) / np.maximum(k, 1e-6)
    weight = coherence_weight(unit * along, along, k, len(corners)) / np.sqrt(pb * pd + 1e-12)
    weight[0, 0] = 0
    plane = sfft.irfft2(cross * (-1j * along * weight), s=(side, side))
    shifts, height = peaks(plane, reach)
    centres = corners + (side - 1) / 2
    return Tiles(centres, shifts, height), shear


def coherence_weight(agreement: Array, along: Array, k: Array, count: int) -> Array:
    """g^2 / (1 - g^2) of the coherence g that belongs to |k|, from its mean over rings.

    `agreement` is the mean cross spectrum, steered and normalised, so that its expectation is
    g(k) along^2 and noise averages out over a ring.
    """
    ring = np.minimum((k * 64).astype(int), 40)
    top = np.bincount(ring.ravel(), agreement.ravel(), 41)
    bottom = np.bincount(ring.ravel(), (along**2).ravel(), 41)
    g = np.clip(top / np.maximum(bottom, 1e-9), 0, 0.97)
    g[g < 0.05] = 0
    g = g[ring]
    out: Array = (g / (1 - g**2)).astype(np.float32)
    return out


def peaks(plane: Array, reach: int) -> tuple[Array, Array]:
    """Sub-pixel peaks (N, 2) x, y within `reach` of the origin of planes (N, S, S), and heights."""
    n = len(plane)
    near = np.concatenate([plane[:, -reach - 1 :], plane[:, : reach + 2]], 1)
    near = np.concatenate([near[:, :, -reach - 1 :], near[:, :, : reach + 2]], 2)
    side = near.shape[1]
    inner = near[:, 1:-1, 1:-1].reshape(n, -1)
    at = inner.argmax(1)
    y, x = at // (side - 2) + 1, at % (side - 2) + 1
    i = np.arange(n)
    block = np.stack([near[i, y + dy, x + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)], 1)
    offset = quadratic_vertex(block)
    shifts = np.stack([x - reach - 1, y - reach - 1], 1) + offset
    spread = np.sqrt((plane**2).mean(axis=(1, 2)))
    return shifts, block[:, 4] / np.maximum(spread, 1e-12)


def quadratic_vertex(block: Array) -> Array:
    """Vertex (N, 2) x, y of the least-squares quadratic through 3 x 3 values (N, 9), rows first."""
    b = block.reshape(-1, 3, 3).astype(np.float64)
    gx = (b[:, :, 2] - b[:, :, 0]).sum(1) / 6
    gy = (b[:, 2] - b[:, 0]).sum(1) / 6
    hxx = (b[:, :, 0] - 2 * b[:, :, 1] + b[:, :, 2]).sum(1) / 3
    hyy = (b[:, 0] - 2 * b[:, 1] + b[:, 2]).sum(1) / 3
    hxy = (b[:, 2, 2] - b[:, 2, 0] - b[:, 0, 2] + b[:, 0, 0]) / 4
    det = hxx * hyy - hxy**2
    safe = np.where(np.abs(det) > 1e-12, det, 1.0)
    dx = -(hyy * gx - hxy * gy) / safe
    dy = -(hxx * gy - hxy * gx) / safe
    good = (det > 1e-12) & (hxx < 0)
    out = np.where(good[:, None], np.stack([dx, dy], 1), 0.0)
    return np.clip(out, -1.0, 1.0)


def fit_affine(
    centres: Array, shifts: Array, weights: Array, scale_px: float, rounds: int = 12
) -> tuple[Array, Array]:
    """Affine (2, 3) from centres to shifts by reweighted least squares (Tukey), and the last weights.

    `scale_px` is the smallest residual spread that is believed.
    """
    design = np.column_stack([centres, np.ones(len(centres))])
    middle, span = design.mean(0), np.maximum(design.std(0), 1.0)
    middle[2], span[2] = 0, 1
    scaled = (design - middle) / span
    w = weights.copy()
    coefficients = np.zeros((3, 2))
    for turn in range(rounds):
        if turn == 0:
            # Medians first: nothing is known, and a third of the tiles may be wrong.
            coefficients[2] = np.median(shifts[w > 0], axis=0) if (w > 0).any() else 0
        else:
            gram = (scaled * w[:, None]).T @ scaled + 1e-9 * np.eye(3)
            coefficients = np.linalg.solve(gram, (scaled * w[:, None]).T @ shifts)
        left = np.hypot(*(shifts - scaled @ coefficients).T)
        spread = max(scale_px, 1.4826 * float(np.median(left[weights > 0])) if (weights > 0).any() else 0.0)
        u = left / (4.0 * spread)
        w = weights * np.where(u < 1, (1 - u**2) ** 2, 0)
        if w.sum() <= 0:
            break
    a = coefficients.T / span
    a[:, 2] = coefficients[2] - a[:, :2] @ middle[:2]
    return a, w


def updated(matrix: Array, affine: Array) -> Array:
    """The matrix that follows once tiles were found at centre + affine(centre)."""
    step = np.eye(3)
    step[:2] += affine
    return matrix @ step
