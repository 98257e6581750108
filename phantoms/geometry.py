"""Known geometric transforms: the truth that registration is measured against.

A matrix takes a brightfield pixel (x, y) to its DIC pixel, as `pipeline.types.Registration.matrix`
does; pixel centres have whole coordinates.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np

from pipeline.types import Matrix

Array = np.ndarray[Any, Any]

IDENTITY: Matrix = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))


def similarity(
    shift_px: tuple[float, float] = (0.0, 0.0),
    rotation_deg: float = 0.0,
    scale: float = 1.0,
    centre: tuple[float, float] = (0.0, 0.0),
) -> Matrix:
    """Rotation (positive turns x towards y) and scale about `centre`, then a shift (x, y)."""
    angle = np.deg2rad(rotation_deg)
    a, b = scale * float(np.cos(angle)), scale * float(np.sin(angle))
    cx, cy = centre
    return (
        (a, -b, cx - a * cx + b * cy + shift_px[0]),
        (b, a, cy - b * cx - a * cy + shift_px[1]),
    )


def random_similarity(
    rng: np.random.Generator,
    width_px: int,
    height_px: int,
    *,
    max_shift_px: float = 100.0,
    max_rotation_deg: float = 1.5,
    max_scale_change: float = 0.003,
) -> Matrix:
    """A stage that did not come back exactly: uniform in each limit, about the field's centre."""
    return similarity(
        (float(rng.uniform(-max_shift_px, max_shift_px)), float(rng.uniform(-max_shift_px, max_shift_px))),
        float(rng.uniform(-max_rotation_deg, max_rotation_deg)),
        1.0 + float(rng.uniform(-max_scale_change, max_scale_change)),
        (width_px / 2, height_px / 2),
    )


def invert(matrix: Array | Matrix) -> Matrix:
    """The matrix of the way back."""
    full = np.vstack([np.asarray(matrix, dtype=float), [0.0, 0.0, 1.0]])
    inverse = np.linalg.inv(full)[:2]
    return tuple(tuple(float(v) for v in row) for row in inverse)  # type: ignore[return-value]


def transform_points(matrix: Array | Matrix, points_xy: Array) -> Array:
    """Points (N, 2) through a matrix, (N, 2) float64."""
    m = np.asarray(matrix, dtype=float)
    return np.asarray(points_xy, dtype=float) @ m[:, :2].T + m[:, 2]


def transform_box(
    matrix: Array | Matrix, box: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    """The upright box around a box's transformed corners."""
    x0, y0, x1, y1 = box
    corners = transform_points(matrix, np.array([[x0, y0], [x1, y0], [x0, y1], [x1, y1]]))
    low, high = corners.min(axis=0), corners.max(axis=0)
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def random_deformation(
    shape: tuple[int, int], rms_px: float, scale_px: float, rng: np.random.Generator
) -> Array:
    """A smooth displacement, (H, W, 2) float32 in pixels (x, y), of root mean square length `rms_px`.

    It varies over about `scale_px`; its mean is zero, so it adds no shift of its own.
    """
    height, width = shape
    small = (int(height / max(scale_px, 1.0)) + 4, int(width / max(scale_px, 1.0)) + 4)
    parts = []
    for _ in range(2):
        field = cv2.resize(
            rng.standard_normal(small, dtype=np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
        parts.append(field - field.mean())
    displacement = np.stack(parts, axis=-1)
    rms = float(np.sqrt((displacement[::4, ::4] ** 2).sum(axis=-1).mean()))
    return displacement * np.float32(rms_px / max(rms, 1e-9))


def warp(
    image: Array,
    matrix: Array | Matrix,
    shape: tuple[int, int],
    *,
    displacement: Array | None = None,
    nearest: bool = False,
    fill: float | None = None,
) -> Array:
    """Move an image: the pixel (x, y) of the input lands at matrix * (x, y) of the output.

    `shape` is the output's (height, width).  `displacement` (height, width, 2) is added, in input
    pixels, where an output pixel looks up the input.  Labels want `nearest`.  What comes from beyond
    the input is mirrored, or `fill` where given.
    """
    back = np.asarray(invert(matrix), dtype=np.float64)
    flags = cv2.INTER_NEAREST if nearest else cv2.INTER_CUBIC
    border = cv2.BORDER_REFLECT_101 if fill is None else cv2.BORDER_CONSTANT
    value = 0.0 if fill is None else float(fill)
    height, width = shape
    if displacement is None:
        out = cv2.warpAffine(
            image,
            back,
            (width, height),
            flags=flags | cv2.WARP_INVERSE_MAP,
            borderMode=border,
            borderValue=(value,) * 4,
        )
    else:
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        map_x = np.float32(back[0, 0]) * x + np.float32(back[0, 1]) * y + np.float32(back[0, 2])
        map_y = np.float32(back[1, 0]) * x + np.float32(back[1, 1]) * y + np.float32(back[1, 2])
        map_x += displacement[..., 0]
        map_y += displacement[..., 1]
        out = cv2.remap(image, map_x, map_y, flags, borderMode=border, borderValue=(value,) * 4)
    return out


def deform(
    image: Array, rms_px: float, scale_px: float, rng: np.random.Generator, *, nearest: bool = False
) -> tuple[Array, Array]:
    """An image smoothly deformed in place: (deformed, displacement (H, W, 2)).

    deformed(x, y) = image((x, y) + displacement(x, y)).
    """
    displacement = random_deformation(image.shape[:2], rms_px, scale_px, rng)
    return warp(image, IDENTITY, image.shape[:2], displacement=displacement, nearest=nearest), displacement
