"""DIC computed from a stained brightfield image: its path is guessed from the stain, and imaged by
`phantoms.optics`.

What is made here is computed, never photographed: figures measured on it are to be called so.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import cv2
import numpy as np

from phantoms.geometry import IDENTITY, warp
from phantoms.optics import DicOptics, blurred, render_dic, texture
from pipeline.types import Matrix

Array = np.ndarray[Any, Any]

# Stain in units of a red cell, as the tables from stain to path have it: 64 steps a unit, up to 16.
GRID = np.arange(0, 1024, dtype=np.float32) / 64.0


class _Curves(NamedTuple):
    """Tables (1024,) over `GRID`: the path, and how far a stain is that of a nucleus (0 to 1)."""

    path: Array
    nuclear: Array


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
    if background_rgb is None:
        background_rgb = _glass(image_rgb[::step, ::step])
    green = _density(image_rgb, 1, background_rgb[1])
    if red_cell_density is None:
        red_cell_density = _of_red_cells(green[::step, ::step])
    stain = green * np.float32(1.0 / red_cell_density)
    curves = _curves(optics)
    index = _index(stain, 64.0)
    nuclear_stain = curves.nuclear[index[::2, ::2]]
    if optics.density_mix != (0.0, 1.0, 0.0) or optics.red_cell_path != 1.0:
        shown = _mixed(image_rgb, background_rgb, optics.density_mix, stain)
        index = _index(shown, np.float32(64.0 * optics.red_cell_path))
    path = curves.path[index]
    dome, near = _bodies(stain, nuclear_stain, pixel_size_um)
    if optics.dome_height > 0:
        dome *= np.float32(optics.dome_height)
        path += cv2.resize(dome, (width, height), interpolation=cv2.INTER_LINEAR)
    weight = cv2.resize(near, (width, height), interpolation=cv2.INTER_LINEAR)
    if optics.chromatin_relief > 0:
        path += _chromatin(index, weight, pixel_size_um, optics)
    if optics.cytoplasm_texture > 0:
        grain = texture((height, width), optics.texture_um / pixel_size_um, rng)
        grain *= np.minimum(stain * np.float32(2.0), np.float32(optics.cytoplasm_texture))
        grain *= weight
        path += grain
    return path, green


def _glass(sample: Array) -> tuple[float, float, float]:
    """The empty glass of a thinned image: the median of the pixels of its brightest 15 % of green."""
    pixels = sample.reshape(-1, 3)
    bright = pixels[pixels[:, 1] >= np.percentile(pixels[:, 1], 85)]
    red, green, blue = (float(v) for v in np.median(bright, axis=0))
    return red, green, blue


def _of_red_cells(green: Array) -> float:
    """The density of a typical red cell, from the green density of a thinned image."""
    seen = green[green > 0.06]
    density = float(np.percentile(seen, 40)) if seen.size > 50 else 0.22
    return float(np.clip(density, 0.12, 0.4))


def _curves(optics: DicOptics) -> _Curves:
    """From stain to path: the faintest stain is the glass's own unevenness; straight up to a red cell's rim;
    then compressed like a logarithm, which keeps the outline of a nucleus in dark cytoplasm."""
    beyond = np.maximum(GRID - 1.3, 0.0)
    room = np.float32(max(optics.nuclear_ceiling - 1.3, 0.15))
    rise = room * np.log1p(beyond * (optics.nuclear_compression / room))
    path = (np.minimum(GRID, 1.3) * (GRID / (GRID + 0.08)) + rise).astype(np.float32)
    if optics.nuclear_drop > 0:
        path -= np.float32(optics.nuclear_drop) * _smoothstep(GRID, 1.3, 2.9)
    return _Curves(path, _smoothstep(GRID, 1.7, 2.9).astype(np.float32))


def _index(stain: Array, steps: float | np.float32) -> Array:
    return np.minimum(stain * steps, 1023.0).astype(np.uint16)


def _bodies(stain: Array, nuclear_stain: Array, pixel_size_um: float) -> tuple[Array, Array]:
    """Domes of leukocyte bodies and nearness to dark nuclei, both at a coarse scale and 0 to 1.

    A body is what is stained at all, near a dark nucleus.
    """
    height, width = stain.shape
    coarse = max(1, round(0.4 / pixel_size_um))
    size = (max(1, width // coarse), max(1, height // coarse))
    nuclear = cv2.resize(nuclear_stain, size, interpolation=cv2.INTER_AREA)
    stain_small = cv2.resize(stain, size, interpolation=cv2.INTER_AREA)
    um = 1.0 / (coarse * pixel_size_um)  # coarse pixels a micrometre
    near = np.clip(blurred(nuclear, 2.2 * um) * 3.0, 0.0, 1.0)
    body = ((stain_small > 0.3) | (nuclear > 0.3)).astype(np.uint8)
    depth = cv2.distanceTransform(body, cv2.DIST_L2, 3) / (3.5 * um)
    dome = np.sqrt(np.clip(depth * (2.0 - np.minimum(depth, 1.0)), 0.0, 1.0)) * near
    return blurred(dome, 0.6), near


def _chromatin(index: Array, weight: Array, pixel_size_um: float, optics: DicOptics) -> Array:
    """The stain's fine structure as path; limited, or the outline of every dark cell would ring."""
    fine = np.log1p(GRID).astype(np.float32)[index]
    fine -= cv2.blur(fine, _odd(0.8 / pixel_size_um))
    np.clip(fine, -0.22, 0.22, out=fine)
    fine *= weight
    fine *= np.float32(optics.chromatin_relief)
    return fine


def _density(image_rgb: Array, channel: int, background: float) -> Array:
    """Optical density of one channel against the empty glass, never below zero, (H, W) float32.

    By a table, which rounds otherwise than `detectors.segment_colour.optical_density` does.
    """
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


def _odd(size: float) -> tuple[int, int]:
    n = max(3, int(size) | 1)
    return n, n
