"""A model of differential interference contrast: from a known optical path to the image that a DIC
microscope would have made of it (from a stained brightfield image: `phantoms.computed_dic`).

DIC interferes two copies of the wavefront that are sheared against each other, so its intensity
follows the *difference* of optical path along the shear, not the path itself (Preza, Snyder and
Conchello, J. Opt. Soc. Am. A 16, 2185, 1999; Mehta and Sheppard, Opt. Express 16, 19462, 2008):

    delta(x) = phi(x + s/2) - phi(x - s/2),     I(x) = I0 sin^2((bias + delta(x)) / 2)

The two copies stand half a shear to either side, so the difference is centred: a computed DIC image
lies on its brightfield source without any shift, and bright is where the path grows along the shear
direction (cos a, sin a), x to the right and y down.

What is made here is computed, never photographed: figures measured on it are to be called so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class DicOptics:
    """One microscope, its setting, and how the specimen's path follows its stain.

    Lengths are micrometres in the specimen; `*_strength`, `*_relief` and `*_height` are in units of
    the path of a typical red cell's rim.
    """

    shear_angle_deg: float = 225.0  # direction along which growing path is bright
    shear_um: float = 0.35
    bias_rad: float = 1.4  # phase bias between the two copies; pi/2 is the linear middle
    phase_strength_rad: float = 1.0  # phase of a typical red cell's rim
    law: str = "sin2"  # or "linear": the small-signal law of a compensated camera image
    blur_um: float = 0.12  # sigma of the microscope's point spread, defocus included
    nuclear_compression: float = 0.5  # path gained per stain beyond a red cell's; nuclei are dark, not thick
    nuclear_ceiling: float = 1.7  # path above which the compression is strong
    dome_height: float = 0.6  # of an unstained leukocyte body, added to what the stain shows
    chromatin_relief: float = 0.8  # fine stain structure in leukocytes, seen as path
    cytoplasm_texture: float = 0.05  # relief that no stain shows, rms
    texture_um: float = 0.3  # its grain
    absorption_residue: float = 0.04  # share of the stain's absorption still seen
    background_level: float = 0.48  # of the camera's range
    gradient: float = 0.05  # background change across the field along gradient_angle_deg, relative
    gradient_angle_deg: float = 30.0
    vignette: float = 0.03  # fall-off at the corners, relative
    shot_electrons: float = 9000.0  # at full range
    read_noise: float = 0.003  # of full range
    gain: float = 1.0  # contrast of the camera about the background
    n_dust: int = 0  # out-of-focus specks on the optics
    density_mix: tuple[float, float, float] = (0.0, 1.0, 0.0)  # of red, green, blue, for the path; sum 1
    red_cell_path: float = 1.0  # of a red cell of the image's own density, before nuclei are compressed
    nuclear_drop: float = 0.0  # path lost where stain is dark: a nucleus may be no thicker than a red cell


def random_optics(rng: np.random.Generator) -> DicOptics:
    """Draw a microscope from a range meant to be wider than what one would meet."""

    def uniform(low: float, high: float) -> float:
        return float(rng.uniform(low, high))

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    bias = uniform(0.25, 0.75) * np.pi
    # what the eye calls contrast is phase times the slope of the law at the bias
    contrast = log_uniform(0.35, 1.7)
    return DicOptics(
        shear_angle_deg=uniform(0.0, 360.0),
        shear_um=uniform(0.15, 0.7),
        bias_rad=bias,
        phase_strength_rad=float(np.clip(contrast * np.tan(bias / 2), 0.2, 2.4)),
        law="linear" if rng.random() < 0.35 else "sin2",
        blur_um=log_uniform(0.06, 0.45),
        nuclear_compression=uniform(0.05, 0.8),
        nuclear_ceiling=uniform(0.9, 2.2),
        dome_height=uniform(0.0, 1.5),
        chromatin_relief=uniform(0.1, 1.8),
        cytoplasm_texture=log_uniform(0.005, 0.15),
        texture_um=uniform(0.12, 0.6),
        absorption_residue=0.0 if rng.random() < 0.4 else uniform(0.0, 0.25),
        background_level=uniform(0.3, 0.62),
        gradient=uniform(0.0, 0.22),
        gradient_angle_deg=uniform(0.0, 360.0),
        vignette=uniform(0.0, 0.18),
        shot_electrons=log_uniform(800.0, 20000.0),
        read_noise=log_uniform(0.001, 0.012),
        gain=uniform(0.75, 1.3),
        n_dust=int(rng.integers(0, 4)) if rng.random() < 0.4 else 0,
    )


def wider_optics(rng: np.random.Generator) -> DicOptics:
    """Draw a microscope, and a law from stain to path, from far beyond `random_optics`.

    How path follows stain is anyone's guess: another model may read another channel, weigh nuclei as
    their full density or hardly above a red cell.  A stainer that is to serve under a model it never saw
    must not lean on one of these.
    """
    usual = random_optics(rng)
    mix = (0.0, 1.0, 0.0) if rng.random() < 0.4 else tuple(float(v) for v in rng.dirichlet((0.8, 1.6, 0.8)))
    red_cell_path = float(np.exp(rng.uniform(-0.4, 0.4)))
    if rng.random() < 0.35:  # nuclei as thick as they are dark
        usual = replace(
            usual,
            nuclear_compression=float(rng.uniform(0.5, 1.0)),
            nuclear_ceiling=float(np.exp(rng.uniform(np.log(1.8), np.log(8.0)))),
            dome_height=float(rng.uniform(0.0, 0.6)),
            chromatin_relief=float(rng.uniform(0.0, 0.8)),
        )
    elif rng.random() < 0.6:  # nuclei hardly above red cells, or below them
        usual = replace(
            usual,
            nuclear_compression=float(rng.uniform(0.05, 0.4)),
            dome_height=float(rng.uniform(0.0, 0.9)),
            nuclear_drop=float(rng.uniform(0.0, 0.9)),
        )
    return replace(usual, density_mix=mix, red_cell_path=red_cell_path)


def render_dic(
    path: Array,
    pixel_size_um: float,
    optics: DicOptics,
    rng: np.random.Generator,
    *,
    density: Array | None = None,
    bits: int = 8,
) -> Array:
    """The DIC image of a known optical path, (H, W) in units of a typical red cell's rim.

    `density` (H, W) is what still absorbs.  Returns (H, W) uint8, or uint16 with `bits=16`.
    """
    if bits not in (8, 16):
        raise ValueError(f"bits is 8 or 16, not {bits}")
    height, width = path.shape
    path = blurred(np.ascontiguousarray(path, dtype=np.float32), optics.blur_um / pixel_size_um)
    angle = np.deg2rad(optics.shear_angle_deg)
    half = 0.5 * optics.shear_um / pixel_size_um
    dx, dy = half * np.cos(angle), half * np.sin(angle)
    delta = _shifted(path, dx, dy) - _shifted(path, -dx, -dy)
    phase = np.float32(optics.phase_strength_rad)
    bias = optics.bias_rad
    if optics.law == "linear":
        # the tangent of sin^2 at the bias, relative to the background
        image = delta
        image *= np.float32(phase / np.tan(bias / 2))
    else:
        # sin^2((b + d) / 2) = (1 - cos(b + d)) / 2, relative to its value at d = 0
        delta *= phase
        delta += np.float32(bias)
        image = np.cos(delta, out=delta)
        steep = 1.0 / (1.0 - np.cos(bias))
        image *= np.float32(-steep)
        image += np.float32(steep - 1.0)
    image *= np.float32(optics.gain * optics.background_level)
    image += np.float32(optics.background_level)
    if density is not None and optics.absorption_residue > 0:
        image *= 1.0 - np.float32(min(optics.absorption_residue, 1.0)) * np.minimum(density, 1.0)
    image *= _shading(height, width, optics)
    for _ in range(optics.n_dust):
        _add_dust(image, pixel_size_um, rng)
    np.maximum(image, 0.0, out=image)
    noise = rng.standard_normal(image.shape, dtype=np.float32)
    noise *= np.sqrt(image * np.float32(1.0 / optics.shot_electrons) + np.float32(optics.read_noise**2))
    image += noise
    top = 2**bits - 1
    image *= top
    image += 0.5
    return np.clip(image, 0, top).astype(np.uint8 if bits == 8 else np.uint16)


def texture(shape: tuple[int, int], grain_px: float, rng: np.random.Generator) -> Array:
    """Smooth zero-mean noise of unit variance, (H, W) float32, with a grain of about `grain_px`."""
    shrink = max(1.0, grain_px)
    small = (int(shape[0] / shrink) + 3, int(shape[1] / shrink) + 3)
    noise = rng.standard_normal(small, dtype=np.float32)
    big = cv2.resize(noise, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
    return big / np.float32(max(float(big[::3, ::3].std()), 1e-6))


def blurred(image: Array, sigma_px: float) -> Array:
    """An image (H, W) float32 through a Gaussian; as it is, where that is under a quarter of a pixel."""
    if sigma_px < 0.25:
        return image
    size = 2 * int(np.ceil(3.0 * sigma_px)) + 1  # OpenCV's own choice for floats is half as long again
    return cv2.GaussianBlur(image, (size, size), sigma_px, borderType=cv2.BORDER_REFLECT)


def _shifted(image: Array, dx: float, dy: float) -> Array:
    """image(x + dx, y + dy), linearly interpolated."""
    matrix = np.array([[1.0, 0.0, dx], [0.0, 1.0, dy]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, matrix, image.shape[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)


def _shading(height: int, width: int, optics: DicOptics) -> Array:
    """Multiplicative background, 1 at the centre of the field, (H, W) float32."""
    y = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None]
    x = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :]
    angle = np.deg2rad(optics.gradient_angle_deg)
    plane = np.float32(0.5 * optics.gradient) * (
        np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
    )
    return 1.0 + plane - np.float32(0.5 * optics.vignette) * (x * x + y * y)


def _add_dust(image: Array, pixel_size_um: float, rng: np.random.Generator) -> None:
    """An out-of-focus speck: a faint ring, in place."""
    height, width = image.shape
    radius = rng.uniform(3.0, 12.0) / pixel_size_um
    cx, cy = rng.uniform(0, width), rng.uniform(0, height)
    depth = rng.uniform(-0.06, 0.06)
    x0, x1 = max(0, int(cx - 2 * radius)), min(width, int(cx + 2 * radius) + 1)
    y0, y1 = max(0, int(cy - 2 * radius)), min(height, int(cy + 2 * radius) + 1)
    if x1 <= x0 or y1 <= y0:
        return
    gx = (np.arange(x0, x1, dtype=np.float32) - np.float32(cx))[None, :]
    gy = (np.arange(y0, y1, dtype=np.float32) - np.float32(cy))[:, None]
    r = np.sqrt(gx * gx + gy * gy) / np.float32(radius)
    image[y0:y1, x0:x1] *= 1.0 + np.float32(depth) * np.exp(-((r - 0.8) ** 2) / 0.05)
