"""Sub-pixel refinement: local shifts on tiles, and the one transform that explains them.

Each tile compares optical density with DIC, its derivative undone: the cross spectrum times
-i sign(k.u).  Instead of whitening each tile on its own, all tiles share one weight, estimated from
their mean spectra: the coherence weight of the maximum-likelihood delay estimator (Hannan and
Thomson 1973; Knapp and Carter 1976, IEEE Trans. ASSP 24, eq. 21).  The optics need not be known:
what DIC and density do not share, or share only as noise, weighs nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.registration_absorption import band_gap, shear_shift, tile_weights
from pipeline.registration_search import frequencies

Array = np.ndarray[Any, np.dtype[Any]]

RINGS, SECTORS = 40, 4  # bins of |k| and of its angle to the shear, for the coherence
TOP_FREQUENCY = 0.45  # cycles a working pixel; above it interpolation, not optics, is compared
MIN_HEIGHT = 6.0  # a peak lower than this over the plane's spread is found in blank tiles too


@dataclass(frozen=True)
class Tiles:
    """Local shifts of DIC against brightfield on a grid of tiles, in working pixels.

    centres (N, 2) x, y in brightfield working pixels; shifts (N, 2): the content of the tile is
    found at centre + shift in the DIC that was warped by the matrix of the time; height (N,): peak
    over the spread of the correlation plane; information (2, 2): inverse covariance of a shift whose
    height is one; shear_rad: the shear direction that the tiles show; shear_shift: the shift (2,) of all
    content along and across the shear, told apart from absorption, and its expected error (2,), where it
    was asked for; band_gap: how far apart coarse and fine structure put it.
    """

    centres: Array
    shifts: Array
    height: Array
    information: Array
    shear_rad: float
    shear_shift: tuple[Array, Array] | None = None
    band_gap: float = 0.0

    @property
    def informative(self) -> Array:
        """Which tiles (N,) bool show enough to have a shift of their own."""
        return self.height >= MIN_HEIGHT


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


def tile_corners(area: tuple[int, int, int, int], side: int) -> Array:
    """Upper left corners (N, 2) x, y of tiles spread evenly over an area, overlapping a little."""
    x0, y0, x1, y1 = area
    if x1 - x0 < side or y1 - y0 < side:
        return np.zeros((0, 2), int)

    def along(a: int, b: int) -> Array:
        n = 1 + max(0, int(np.ceil((b - a - side) / side)))
        return np.round(np.linspace(a, b - side, n)).astype(int)

    xs, ys = np.meshgrid(along(x0, x1), along(y0, y1))
    return np.stack([xs.ravel(), ys.ravel()], 1)


def _stack(image: Array, corners: Array, side: int, window: Array) -> Array:
    tiles = np.stack([image[y : y + side, x : x + side] for x, y in corners])
    tiles -= tiles.mean(axis=(1, 2), keepdims=True)
    tiles *= window
    return tiles


def measure_tiles(
    brightfield: Array,
    dic: Array,
    matrix: Array,
    shear_rad: float,
    *,
    side: int,
    reach: int,
    swapped: bool = False,
    settled: bool = False,
) -> Tiles:
    """Local shifts up to `reach` on tiles of `side` working pixels, over the whole overlap.

    `swapped` says that the roles are exchanged: the tiles are DIC's, what is warped is the density.
    `settled` says that the matrix is good to about a pixel, so that the shear direction can be read anew
    from the tiles (before that, a shift left over would turn it), and absorption told apart from a shift.
    """
    import cv2
    from scipy import fft as sfft

    h, w = brightfield.shape
    corners = tile_corners(overlap(matrix, (h, w), dic.shape), side)
    if len(corners) < 4:
        return Tiles(np.zeros((0, 2)), np.zeros((0, 2)), np.zeros(0), np.eye(2), shear_rad)
    warped = cv2.warpAffine(dic, matrix[:2], (w, h), flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP)
    hann = np.hanning(side + 2)[1:-1].astype(np.float32)
    window = np.outer(hann, hann)
    fb = sfft.rfft2(_stack(brightfield, corners, side, window))
    fd = sfft.rfft2(_stack(warped, corners, side, window))
    powers = [f.real**2 + f.imag**2 for f in (fb, fd)]
    pb, pd = (p.mean(0) for p in powers)
    whiten = 1 / np.sqrt(pb * pd + np.float32(1e-12))
    cross = np.conj(fb, out=fb)
    cross *= fd

    ky, kx, _ = frequencies(side, side)
    kx = np.abs(kx[:, : side // 2 + 1])
    k = np.hypot(ky, kx)
    mean = cross.mean(0) * whiten
    shared, gap = None, 0.0
    if settled:
        if not swapped:
            shear_rad = _direction(mean.imag, kx, ky, k, shear_rad)
        shared, gap = _shared_shift(powers, cross, kx, ky, shear_rad, swapped)
    along = (kx * np.cos(shear_rad) + ky * np.sin(shear_rad)) / np.maximum(k, 1e-6)
    weight = coherence_weight(mean, along, k, len(corners))
    # Swapped, the derivative stands on the other side of the cross spectrum.
    cross *= (1j if swapped else -1j) * np.sign(along) * weight * whiten
    shifts, height, _ = peaks(cross, reach)
    information = _information(weight, kx, ky)
    return Tiles(corners + (side - 1) / 2, shifts, height, information, shear_rad, shared, gap)


def _shared_shift(
    powers: list[Array], cross: Array, kx: Array, ky: Array, shear_rad: float, swapped: bool
) -> tuple[tuple[Array, Array], float]:
    """`shear_shift` and `band_gap` of the tiles' spectra: powers (N, S, S // 2 + 1) of the two, and their
    cross; swapped, the gap is not looked for."""
    n = len(cross)
    weights = tile_weights(*(p.mean(axis=(1, 2)) for p in powers)).astype(np.float32)
    first, second, both = ((weights @ f.reshape(n, -1)).reshape(f.shape[1:]) / n for f in (*powers, cross))
    if not swapped:
        spectra = (first, second, both, n, kx, ky, shear_rad)
        return shear_shift(*spectra), band_gap(*spectra)
    # The tiles are DIC's: density lies off from DIC by the opposite of what DIC lies off from density.
    shift, error = shear_shift(second, first, np.conj(both), n, kx, ky, shear_rad)
    return (-shift, error), 0.0


def _direction(unit: Array, kx: Array, ky: Array, k: Array, otherwise: float) -> float:
    """The shear direction: the imaginary part of the mean cross spectrum is odd along it."""
    band = (k > 0.015) & (k < 0.25)
    gx, gy = (float((unit * part / np.maximum(k, 1e-6))[band].sum()) for part in (kx, ky))
    return float(np.arctan2(gy, gx)) if gx * gx + gy * gy > 0 else otherwise


def coherence_weight(mean: Array, along: Array, k: Array, n_tiles: int) -> Array:
    """g / (1 - g^2) of the coherence g that belongs to |k| and to its angle with the shear.

    `mean` is the whitened cross spectrum's mean over the tiles.  Its modulus does not feel a shift that
    the tiles share, so a start that is off does not blind the weights to the way back.  Of n tiles
    without coherence the squared modulus is 1 / n, which is taken off.
    """
    ring = np.minimum((k * (2 * RINGS)).astype(int), RINGS - 1)
    sector = np.minimum((np.abs(along) * SECTORS).astype(int), SECTORS - 1)
    bins = (ring * SECTORS + sector).ravel()
    count = np.maximum(np.bincount(bins, minlength=RINGS * SECTORS), 1)
    square = np.bincount(bins, (mean.real**2 + mean.imag**2).ravel(), RINGS * SECTORS) / count
    floor = 1 / n_tiles
    square = (square - floor * (1 + 2 / np.sqrt(count))) / (1 - floor)
    g = np.sqrt(np.clip(square, 0, 0.9))
    g[g < 0.05] = 0
    table = (g / (1 - g**2)).astype(np.float32)
    out: Array = table[bins].reshape(k.shape)
    out[k > TOP_FREQUENCY] = 0
    out[k < 0.5 / k.shape[0]] = 0
    return out


def _information(weight: Array, kx: Array, ky: Array) -> Array:
    """Inverse covariance (2, 2) of a shift at height one: curvature of the peak the weights make.

    For a weight w on whitened spectra the signal's curvature is S = sum(w g kk') and the noise
    gradient's variance R = sum(w^2 kk'); with w close to g they agree up to a factor, and S carries on.
    """
    power = (weight / (1 + weight)) * weight
    total = float(power.sum()) + 1e-12
    xx, yy, xy = (float((power * part).sum()) / total for part in (kx * kx, ky * ky, kx * ky))
    return (2 * np.pi) ** 2 * np.array([[xx, xy], [xy, yy]]) + 1e-6 * np.eye(2)


def peaks(spectra: Array, reach: int) -> tuple[Array, Array, Array]:
    """Sub-pixel peaks (N, 2) x, y within `reach` of the origin, their heights (N,) and values (N,).

    A height is a value over the plane's spread.

    `spectra` (N, S, S // 2 + 1) complex are half spectra of correlation planes.  Only the planes'
    middle is transformed back; their spread comes from Parseval's theorem.
    """
    from scipy import fft as sfft

    n, side, half = spectra.shape
    at = np.arange(-reach - 1, reach + 2)
    twice = np.full(half, 2.0, np.float32)  # the half that a real plane's spectrum leaves out
    twice[0] = 1
    twice[-1] = 1 if side % 2 == 0 else 2
    power = np.square(spectra.real) + np.square(spectra.imag)
    spread = np.sqrt((power * twice).sum(axis=(1, 2))) / np.float32(side * side)
    rows = sfft.ifft(spectra, axis=1, overwrite_x=True)[:, at % side]
    near = sfft.irfft(rows, n=side, axis=2)[:, :, at % side]

    width = near.shape[1]
    inner = near[:, 1:-1, 1:-1].reshape(n, -1)
    best = inner.argmax(1)
    y, x = best // (width - 2) + 1, best % (width - 2) + 1
    i = np.arange(n)
    block = np.stack([near[i, y + dy, x + dx] for dy in (-1, 0, 1) for dx in (-1, 0, 1)], 1)
    shifts = np.stack([x - reach - 1, y - reach - 1], 1) + quadratic_vertex(block)
    return shifts, block[:, 4] / np.maximum(spread, 1e-12), block[:, 4]


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
