"""The coarse start: shift, rotation, scale and shear direction of a pair, from phase correlation.

DIC is, to first order, the derivative of the optical path along the shear u: in Fourier terms
DIC(k) = i (k.u) P(k).  The cross-correlation of P with DIC steered to any direction u is a
combination, (cos, sin), of its correlations with the two axis derivatives.  One complex inverse
transform therefore answers for every direction and both signs at once: the modulus is the best
score over all directions, the argument that direction.  (Phase correlation: Kuglin & Hines 1975;
steering of a derivative: Freeman & Adelson 1991, section II.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

ROTATION_STEP_DEG = 0.75
SCALE_STEP = 0.01


@dataclass(frozen=True)
class Start:
    """Coarse alignment: matrix (3, 3) from brightfield to DIC search pixels, shear in radians."""

    matrix: Array
    shear_rad: float
    score: float  # height of the peak over the spread of the plane


def _taper(height: int, width: int, share: float = 0.08) -> Array:
    """A window that is flat inside and falls to zero over `share` of each border."""

    def ramp(n: int) -> Array:
        edge = max(2, round(n * share))
        w = np.ones(n, np.float32)
        rise = 0.5 - 0.5 * np.cos(np.pi * (np.arange(edge) + 0.5) / edge)
        w[:edge], w[-edge:] = rise, rise[::-1]
        return w

    return np.outer(ramp(height), ramp(width))


def frequencies(height: int, width: int) -> tuple[Array, Array, Array]:
    """Rows, columns and modulus of the frequencies of a full 2-D transform, cycles a pixel."""
    ky = np.fft.fftfreq(height).astype(np.float32)[:, None]
    kx = np.fft.fftfreq(width).astype(np.float32)[None, :]
    return ky, kx, np.hypot(ky, kx)


def _placed(image: Array, height: int, width: int) -> Array:
    h, w = image.shape
    out = np.zeros((height, width), np.float32)
    out[:h, :w] = (image - image.mean()) * _taper(h, w)
    return out


def search(
    brightfield: Array,
    dic: Array,
    *,
    max_shift_px: float,
    max_rotation_deg: float,
    max_scale_change: float,
    expected_shift_px: tuple[float, float] | None = None,
) -> list[Start]:
    """Best starts, best first, for two search images (about 1/8 of full size), in search pixels.

    Shifts are of the brightfield's centre from the DIC's centre.  `expected_shift_px` (stage) narrows
    them to a quarter of the range around that shift.
    """
    import cv2
    from scipy import fft as sfft

    hb, wb = brightfield.shape
    hd, wd = dic.shape
    height = sfft.next_fast_len(max(hb, hd))
    width = sfft.next_fast_len(max(wb, wd))
    ky, kx, k = frequencies(height, width)
    # Band: below the cells' own size there is only light, above it noise and unlike detail.
    band = np.exp(-0.5 * (k / 0.16) ** 2) * (1 - np.exp(-0.5 * (k / 0.02) ** 2))
    riesz = (1j * kx - ky) / np.maximum(k, 1e-6)  # i (ux kx + uy ky), u = (1, i)
    fd = sfft.fft2(_placed(dic, height, width))
    fd = np.conj(fd) / (np.abs(fd) + 1e-3 * np.abs(fd).mean()) * (riesz * band)

    ex, ey = expected_shift_px or (0.0, 0.0)
    reach = max_shift_px if expected_shift_px is None else max(4.0, 0.25 * max_shift_px)
    # The plane's peak at r says that brightfield pixel b lies at DIC pixel b - r, both from the corner;
    # the limits are from centre to centre.
    ry = np.fft.fftfreq(height, 1 / height)[:, None]
    rx = np.fft.fftfreq(width, 1 / width)[None, :]
    offset_x, offset_y = (wd - wb) / 2, (hd - hb) / 2

    rotations = _grid(max_rotation_deg, ROTATION_STEP_DEG)
    scales = _grid(max_scale_change, SCALE_STEP)
    centre = ((wb - 1) / 2, (hb - 1) / 2)
    starts = []
    for rotation in rotations:
        for scale in scales:
            turn = cv2.getRotationMatrix2D(centre, rotation, 1 + scale)  # about the centre
            turned = cv2.warpAffine(brightfield, turn, (wb, hb), flags=cv2.INTER_LINEAR)
            fb = sfft.fft2(_placed(turned, height, width))
            fb /= np.abs(fb) + 1e-3 * np.abs(fb).mean()
            plane = sfft.ifft2(fb * fd)
            size = np.abs(plane)
            allowed = np.hypot(rx + ex + offset_x, ry + ey + offset_y) <= reach
            spread = float(np.sqrt((size**2).mean()))
            best = int(np.argmax(np.where(allowed, size, 0)))
            y, x = divmod(best, width)
            dy, dx = _subpixel(size, y, x)
            sy, sx = float(ry[y, 0]) + dy, float(rx[0, x]) + dx
            matrix = np.vstack([turn, [0, 0, 1]])
            matrix[0, 2] -= sx
            matrix[1, 2] -= sy
            starts.append(Start(matrix, float(np.angle(plane[y, x])), float(size[y, x]) / spread))
    starts.sort(key=lambda s: -s.score)
    return starts


def _grid(limit: float, step: float) -> Array:
    count = int(np.floor(limit / step + 1e-9))
    return np.arange(-count, count + 1) * step


def _subpixel(plane: Array, y: int, x: int) -> tuple[float, float]:
    """Vertex of the parabolas through a peak and its neighbours, with wrap-around."""
    out = []
    for axis, at in ((0, y), (1, x)):
        n = plane.shape[axis]
        values = [float(plane[(at + d) % n, x] if axis == 0 else plane[y, (at + d) % n]) for d in (-1, 0, 1)]
        bend = values[0] - 2 * values[1] + values[2]
        out.append(0.0 if bend >= 0 else float(np.clip(0.5 * (values[0] - values[2]) / bend, -0.5, 0.5)))
    return out[0], out[1]
