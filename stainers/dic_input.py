"""What a generator is given of a DIC image: a representation that forgets the microscope.

DIC shows the derivative of the optical path along the shear, so two microscopes differ by direction,
sign, contrast and background of that derivative.  All four are taken out before the network:

* background and contrast: the image relative to its background, in units of its own spread;
* the shear is estimated where nobody gives it: power of a derivative follows (k . s)^2, so the main
  axis of the gradient's second moment is the shear's axis, and the sign is the one that makes the
  integrated image rise where cells are (cells are thicker than glass);
* the patch is turned by quarter turns and mirrored, without resampling, until the shear lies between
  0 and 45 degrees, and the stained result is turned back;
* a second channel holds the image integrated along the shear (regularised Wiener inverse of the
  directional derivative), which follows thickness as a stain does.

Angles are degrees from x (right) towards y (down): the direction along which growing path is bright.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

MIN_SPREAD = 0.02  # of the background: below it there is noise alone, which must not be blown up
INTEGRATION_LENGTH_PX = 140.0  # structure longer than this along the shear is background
INTEGRATION_PAD_PX = 32


@dataclass(frozen=True)
class Scale:
    """Background level and spread of a DIC image, grey levels and a share of the background."""

    background: float
    spread: float


def to_grey(image: Array) -> Array:
    """(H, W), (H, W, 1) or RGB-stored grey (H, W, 3), uint8 or uint16 -> (H, W) float32, 0-255."""
    values = np.asarray(image)
    top = 255.0 if values.dtype == np.uint8 else float(np.iinfo(values.dtype).max)
    grey = values
    if values.ndim == 3:
        grey = values[..., 0] if values.shape[-1] == 1 else values.astype(np.float32).mean(axis=-1)
    return np.asarray(grey, dtype=np.float32) * np.float32(255.0 / top)


def measure_scale(grey: Array) -> Scale:
    """Background and spread of one DIC image (H, W); the median is glass, for a derivative averages out."""
    step = max(1, int(np.sqrt(grey.size / 65536)))
    sample = grey[::step, ::step]
    background = max(float(np.median(sample)), 1.0)
    relative = sample / background - 1.0
    limit = np.percentile(np.abs(relative), 98)
    spread = float(np.sqrt(np.mean(np.minimum(np.abs(relative), limit) ** 2)))
    return Scale(background, max(spread, MIN_SPREAD))


def normalise(grey: Array, scale: Scale) -> Array:
    """(H, W) grey levels -> float32, 0 = background, 1 = two spreads, limited to +-6."""
    relative = (grey.astype(np.float32) / np.float32(scale.background) - 1.0) / np.float32(2 * scale.spread)
    return np.clip(relative, -6.0, 6.0)


@lru_cache(maxsize=8)
def _frequencies(height: int, width: int) -> tuple[Array, Array]:
    fy = np.fft.fftfreq(height).astype(np.float32)[:, None]
    fx = np.fft.rfftfreq(width).astype(np.float32)[None, :]
    return 2 * np.pi * fy, 2 * np.pi * fx


def integrate(normalised: Array, angle_deg: float) -> Array:
    """Undo the directional derivative: (H, W) float32 that rises with optical path.

    The border is continued with background, tapered, so that the inverse stays local.
    """
    pad = INTEGRATION_PAD_PX
    height, width = normalised.shape
    padded = np.pad(normalised, pad, mode="edge")  # a new array: the taper below may write to it
    ramp = np.linspace(0.0, 1.0, pad, dtype=np.float32)
    for axis, size in ((0, height), (1, width)):
        profile = np.concatenate([ramp, np.ones(size, np.float32), ramp[::-1]])
        padded *= profile[:, None] if axis == 0 else profile[None, :]
    ky, kx = _frequencies(*padded.shape)
    angle = np.deg2rad(angle_deg)
    along = kx * np.float32(np.cos(angle)) + ky * np.float32(np.sin(angle))
    floor = np.float32((2 * np.pi / INTEGRATION_LENGTH_PX) ** 2)
    spectrum = np.fft.rfft2(padded)
    spectrum *= -1j * along / (along * along + floor)
    path = np.fft.irfft2(spectrum, s=padded.shape)[pad:-pad, pad:-pad].astype(np.float32)
    return path * np.float32(0.2)


def shear_moments(normalised: Array) -> tuple[float, float, float]:
    """Second moments (xx, yy, xy) of the band-limited gradient of one image or tile."""
    if min(normalised.shape) < 2:
        return 1.0, 1.0, 0.0  # no gradient to speak of
    smooth = _band(normalised)
    gy, gx = np.gradient(smooth)
    # limited, so that one bright edge does not outvote the rest of the image
    size = np.hypot(gx, gy)
    limit = np.percentile(size, 95) + 1e-9
    weight = np.minimum(1.0, limit / np.maximum(size, limit))
    gx, gy = gx * weight, gy * weight
    return float(np.mean(gx * gx)), float(np.mean(gy * gy)), float(np.mean(gx * gy))


def _band(image: Array) -> Array:
    """Keep structure of roughly 0.5 to 5 µm at 0.1 µm a pixel."""
    ky, kx = _frequencies(*image.shape)
    square = kx * kx + ky * ky
    response = np.exp(-0.5 * square * 1.5**2) - np.exp(-0.5 * square * 12.0**2)
    return np.fft.irfft2(np.fft.rfft2(image) * response, s=image.shape).astype(np.float32)


def shear_anisotropy(normalised: Array) -> float:
    """How one-sided the structure is, 0 to 1: high for a derivative, near 0 for an image of absorption."""
    xx, yy, xy = shear_moments(normalised)
    return float(np.hypot(xx - yy, 2 * xy) / max(xx + yy, 1e-12))


@dataclass(frozen=True)
class Shear:
    """Direction of a shear; `anisotropy` in [0, 1] is how clear its axis is, `polarity` its sign."""

    angle_deg: float
    anisotropy: float
    polarity: float


def estimate_shear(normalised: Array) -> Shear:
    """Estimate the shear of one DIC patch or field (H, W), normalised.

    Fields larger than 1024 px are judged by their central part, which holds enough cells.
    """
    height, width = normalised.shape
    top, left = max(0, (height - 1024) // 2), max(0, (width - 1024) // 2)
    part = np.ascontiguousarray(normalised[top : top + 1024, left : left + 1024])
    xx, yy, xy = shear_moments(part)
    axis = 0.5 * np.rad2deg(np.arctan2(2 * xy, xx - yy))
    anisotropy = float(np.hypot(xx - yy, 2 * xy) / max(xx + yy, 1e-12))
    path = integrate(part, axis)
    path = path - np.median(path)
    polarity = float(np.mean(path**3) / max(np.mean(path**2) ** 1.5, 1e-12))
    angle = axis if polarity >= 0 else axis + 180.0
    return Shear(float(angle % 360.0), anisotropy, abs(polarity))


@dataclass(frozen=True)
class Turn:
    """A turn by `quarter` x 90 degrees (numpy's rot90), then a mirror top to bottom if `mirror`."""

    quarter: int
    mirror: bool

    def apply(self, image: Array) -> Array:
        turned = np.rot90(image, self.quarter)
        return np.ascontiguousarray(turned[::-1] if self.mirror else turned)

    def undo(self, image: Array) -> Array:
        turned = image[::-1] if self.mirror else image
        return np.ascontiguousarray(np.rot90(turned, -self.quarter))

    def angle(self, angle_deg: float) -> float:
        """Where a direction points after the turn."""
        turned = angle_deg - 90.0 * self.quarter  # counter-clockwise to the eye: y points down
        return (-turned if self.mirror else turned) % 360.0


def canonical_turn(angle_deg: float) -> Turn:
    """The turn after which a shear lies between 0 and 45 degrees."""
    turns = [Turn(quarter, mirror) for quarter in range(4) for mirror in (False, True)]

    def miss(turn: Turn) -> float:
        return abs((turn.angle(angle_deg) - 22.5 + 180.0) % 360.0 - 180.0)

    return min(turns, key=miss)
