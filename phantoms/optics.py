"""A model of differential interference contrast: from a stained brightfield image, or from a known
optical path, to the image that a DIC microscope would have made of the same field.

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

from phantoms.geometry import IDENTITY, warp
from pipeline.types import Matrix

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


def compute_dic(
    image_rgb: Array,
    pixel_size_um: float,
    optics: DicOptics,
    rng: np.random.Generator,
    *,
    background_rgb: tuple[float, float, float] | None = None,
    red_cell_density: float | None = None,
    matrix: Array | Matrix | None = None,
    shape: tuple[int, int] | None = None,
    displacement: Array | None = None,
    bits: int = 8,
) -> Array:
    """The DIC image that the optics would make of the cells of a stained brightfield image.

    `image_rgb` is (H, W, 3) uint8; the result (H, W) uint8, or uint16 with `bits=16`, and lies on it
    without a shift.  `background_rgb` (the empty glass) and `red_cell_density` (optical density of a
    red cell in the green) are read from the image unless given; give them for crops that show little
    glass or few red cells.  With `matrix` (brightfield pixel -> DIC pixel), `shape` and `displacement`
    (phantoms.geometry) the specimen is moved before it is imaged, so that noise, shading and the shear
    are the microscope's own; beyond the brightfield's edge it is mirrored.
    """
    path, density = path_from_brightfield(
        image_rgb,
        pixel_size_um,
        optics,
        rng,
        background_rgb=background_rgb,
        red_cell_density=red_cell_density,
    )
    if matrix is not None or displacement is not None or shape not in (None, path.shape):
        to = matrix if matrix is not None else IDENTITY
        path = warp(path, to, shape or path.shape, displacement=displacement)
        density = warp(density, to, shape or density.shape, displacement=displacement)
    return render_dic(path, pixel_size_um, optics, rng, density=density, bits=bits)


def path_from_brightfield(
    image_rgb: Array,
    pixel_size_um: float,
    optics: DicOptics,
    rng: np.random.Generator,
    *,
    background_rgb: tuple[float, float, float] | None = None,
    red_cell_density: float | None = None,
) -> tuple[Array, Array]:
    """Guess the optical path from the stain: ((H, W) float32 path, (H, W) float32 optical density).

    The path of a red cell follows its optical density (haemoglobin and eosin); above it the path is
    compressed, since a nucleus takes far more stain than it is thick; around nuclei an unstained body
    is raised as a dome, with the stain's fine structure and a texture that no stain shows.
    """
    if image_rgb.ndim != 3 or image_rgb.shape[2] != 3 or image_rgb.dtype != np.uint8:
        raise ValueError(f"a brightfield image is (H, W, 3) uint8, not {image_rgb.shape} {image_rgb.dtype}")
    height, width = image_rgb.shape[:2]
    step = max(1, min(height, width) // 160)
    sample = image_rgb[::step, ::step].reshape(-1, 3)
    if background_rgb is None:
        bright = sample[sample[:, 1] >= np.percentile(sample[:, 1], 85)]
        background_rgb = tuple(float(v) for v in np.median(bright, axis=0))
    green = _density(image_rgb, 1, background_rgb[1])
    if red_cell_density is None:
        seen = green[::step, ::step]
        seen = seen[seen > 0.06]
        red_cell_density = float(np.percentile(seen, 40)) if seen.size > 50 else 0.22
        red_cell_density = float(np.clip(red_cell_density, 0.12, 0.4))
    stain = green * np.float32(1.0 / red_cell_density)

    # stain -> path by a table: the faintest stain is the glass's own unevenness; straight up to a red
    # cell's rim; then compressed like a logarithm, which keeps the outline of a nucleus in dark cytoplasm
    grid = np.arange(0, 1024, dtype=np.float32) / 64.0
    beyond = np.maximum(grid - 1.3, 0.0)
    room = np.float32(max(optics.nuclear_ceiling - 1.3, 0.15))
    rise = room * np.log1p(beyond * (optics.nuclear_compression / room))
    curve = (np.minimum(grid, 1.3) * (grid / (grid + 0.08)) + rise).astype(np.float32)
    if optics.nuclear_drop > 0:
        curve -= np.float32(optics.nuclear_drop) * _smoothstep(grid, 1.3, 2.9)
    nuclear_curve = _smoothstep(grid, 1.7, 2.9).astype(np.float32)
    index = np.minimum(stain * 64.0, 1023.0).astype(np.uint16)
    nuclear_stain = nuclear_curve[index[::2, ::2]]
    if optics.density_mix != (0.0, 1.0, 0.0) or optics.red_cell_path != 1.0:
        shown = _mixed(image_rgb, background_rgb, optics.density_mix, stain)
        index = np.minimum(shown * np.float32(64.0 * optics.red_cell_path), 1023.0).astype(np.uint16)
    path = curve[index]

    # leukocyte bodies, at a coarse scale: near dark nuclei, inside what is stained at all
    coarse = max(1, round(0.4 / pixel_size_um))
    size = (max(1, width // coarse), max(1, height // coarse))
    nuclear = cv2.resize(nuclear_stain, size, interpolation=cv2.INTER_AREA)
    stain_small = cv2.resize(stain, size, interpolation=cv2.INTER_AREA)
    um = 1.0 / (coarse * pixel_size_um)  # coarse pixels a micrometre
    near = np.clip(_blur(nuclear, 2.2 * um) * 3.0, 0.0, 1.0)
    body = ((stain_small > 0.3) | (nuclear > 0.3)).astype(np.uint8)
    depth = cv2.distanceTransform(body, cv2.DIST_L2, 3) / (3.5 * um)
    dome = np.sqrt(np.clip(depth * (2.0 - np.minimum(depth, 1.0)), 0.0, 1.0)) * near
    dome = _blur(dome, 0.6)
    if optics.dome_height > 0:
        dome *= np.float32(optics.dome_height)
        path += cv2.resize(dome, (width, height), interpolation=cv2.INTER_LINEAR)
    weight = cv2.resize(near, (width, height), interpolation=cv2.INTER_LINEAR)
    if optics.chromatin_relief > 0:
        # limited, or the outline of every dark cell would ring
        fine = np.log1p(grid).astype(np.float32)[index]
        fine -= cv2.blur(fine, _odd(0.8 / pixel_size_um))
        np.clip(fine, -0.22, 0.22, out=fine)
        fine *= weight
        fine *= np.float32(optics.chromatin_relief)
        path += fine
    if optics.cytoplasm_texture > 0:
        grain = texture((height, width), optics.texture_um / pixel_size_um, rng)
        grain *= np.minimum(stain * np.float32(2.0), np.float32(optics.cytoplasm_texture))
        grain *= weight
        path += grain
    return path, green


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
    path = _blur(np.ascontiguousarray(path, dtype=np.float32), optics.blur_um / pixel_size_um)
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


def _density(image_rgb: Array, channel: int, background: float) -> Array:
    """Optical density of one channel against the empty glass, never below zero, (H, W) float32."""
    table = np.log10(max(background, 8.0) / np.maximum(np.arange(256, dtype=np.float32), 1.0))
    return np.maximum(table, 0.0).astype(np.float32)[image_rgb[..., channel]]


def _mixed(
    image_rgb: Array,
    background_rgb: tuple[float, float, float],
    mix: tuple[float, float, float],
    stain: Array,
) -> Array:
    """Density of mixed channels, (H, W) float32 in units of a red cell; `stain` is the green's alone."""
    density = np.zeros(image_rgb.shape[:2], np.float32)
    for channel, weight in enumerate(mix):
        if weight > 0:
            density += np.float32(weight) * _density(image_rgb, channel, background_rgb[channel])
    red_cells = density[(stain > 0.7) & (stain < 1.3)]
    return density / np.float32(max(float(np.median(red_cells)), 0.05) if red_cells.size > 50 else 0.22)


def _smoothstep(x: Array, low: float, high: float) -> Array:
    t = np.clip((x - low) / (high - low), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def _blur(image: Array, sigma_px: float) -> Array:
    if sigma_px < 0.25:
        return image
    size = 2 * int(np.ceil(3.0 * sigma_px)) + 1  # OpenCV's own choice for floats is half as long again
    return cv2.GaussianBlur(image, (size, size), sigma_px, borderType=cv2.BORDER_REFLECT)


def _odd(size: float) -> tuple[int, int]:
    n = max(3, int(size) | 1)
    return n, n


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
