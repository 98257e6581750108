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

ROTATION_STEP_DEG = 0.8  # half a step moves a field's corner by one search pixel


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
) -> Start:
    """The best start for two search images (about 50,000 pixels), in search pixels.

    Shifts are of the brightfield's centre from the DIC's centre.  `max_shift_px` bounds
    them around `expected_shift_px`.  All rotations are tried without a change of
    scale; rotation and scale are then narrowed around the best in ever smaller steps.
    """
    planes = _Planes(brightfield, dic, max_shift_px, expected_shift_px)
    tried: dict[tuple[float, float], Start] = {}

    def at(rotation_deg: float, scale: float) -> Start:
        key = (round(rotation_deg, 6), round(scale, 6))
        if key not in tried:
            tried[key] = planes.best(*key)
        return tried[key]

    count = int(np.ceil(max_rotation_deg / ROTATION_STEP_DEG))
    rotations = np.linspace(-max_rotation_deg, max_rotation_deg, 2 * count + 1)
    best = max(rotations, key=lambda r: at(float(r), 0.0).score)
    rotation, scale = float(best), 0.0
    turn_step, scale_step = max_rotation_deg / count / 2, 2 * max_scale_change / 3
    for _ in range(3):
        around = [(rotation + a * turn_step, scale) for a in (-1, 0, 1)]
        around += [(rotation, scale + b * scale_step) for b in (-1, 1)]
        rotation, scale = max(around, key=lambda rs: at(*rs).score)
        turn_step, scale_step = turn_step / 2, scale_step / 2
    return at(rotation, scale)


class _Planes:
    """Correlation planes of one pair; the DIC's side is transformed once."""

    def __init__(
        self,
        brightfield: Array,
        dic: Array,
        max_shift_px: float,
        expected_shift_px: tuple[float, float] | None,
    ) -> None:
        from scipy import fft as sfft

        self.brightfield = brightfield
        hb, wb = brightfield.shape
        hd, wd = dic.shape
        self.size = (sfft.next_fast_len(max(hb, hd)), sfft.next_fast_len(max(wb, wd)))
        height, width = self.size
        ky, kx, k = frequencies(height, width)
        # Band: below the cells' own size there is only light, above it noise and unlike detail.
        band = np.exp(-0.5 * (k / 0.16) ** 2) * (1 - np.exp(-0.5 * (k / 0.02) ** 2))
        riesz = (1j * kx - ky) / np.maximum(k, 1e-6)  # i (ux kx + uy ky), u = (1, i)
        fd = sfft.fft2(_placed(dic, height, width))
        self.steered = (np.conj(_whitened(fd)) * (riesz * band)).astype(np.complex64)

        # The plane's peak at r says that brightfield pixel b lies at DIC pixel b - r, both from the
        # corner; the limits are from centre to centre.
        ex, ey = expected_shift_px or (0.0, 0.0)
        self.ry = np.fft.fftfreq(height, 1 / height)
        self.rx = np.fft.fftfreq(width, 1 / width)
        away_x, away_y = self.rx + ex + (wd - wb) / 2, self.ry + ey + (hd - hb) / 2
        self.allowed = (np.maximum(np.abs(away_x)[None], np.abs(away_y)[:, None]) <= max_shift_px).astype(
            np.float32
        )
        self.taper = _taper(hb, wb)

    def best(self, rotation_deg: float, scale_change: float) -> Start:
        """The best shift at a rotation and a scale about the brightfield's centre."""
        import cv2
        from scipy import fft as sfft

        h, w = self.brightfield.shape
        turn = cv2.getRotationMatrix2D(((w - 1) / 2, (h - 1) / 2), rotation_deg, 1 + scale_change)
        turned = cv2.warpAffine(self.brightfield, turn, (w, h), flags=cv2.INTER_LINEAR)
        turned = turned * self.taper
        plane = sfft.ifft2(_whitened(sfft.fft2(turned, s=self.size)) * self.steered)
        power = plane.real**2 + plane.imag**2
        y, x = divmod(int(np.argmax(power * self.allowed)), self.size[1])
        peak = float(power[y, x])
        dy, dx = _subpixel(np.sqrt(power[_around(y, self.size[0])][:, _around(x, self.size[1])]))
        matrix = np.vstack([turn, [0, 0, 1]])
        matrix[:2, 2] -= [float(self.rx[x]) + dx, float(self.ry[y]) + dy]
        return Start(matrix, float(np.angle(plane[y, x])), float(np.sqrt(peak / power.mean())))


def _whitened(spectrum: Array) -> Array:
    """Phase only; what is far below the mean stays small, so that rounding is not blown up."""
    size = np.abs(spectrum)
    return spectrum / (size + np.float32(1e-3) * size.mean())


def _around(i: int, n: int) -> list[int]:
    return [(i - 1) % n, i, (i + 1) % n]


def _subpixel(block: Array) -> tuple[float, float]:
    """Vertex (y, x) of the parabolas through the middle of 3 x 3 values."""
    out = []
    for low, mid, high in (block[:, 1], block[1]):
        bend = float(low - 2 * mid + high)
        out.append(0.0 if bend >= 0 else float(np.clip(0.5 * (low - high) / bend, -0.5, 0.5)))
    return out[0], out[1]
