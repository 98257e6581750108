"""DIC to brightfield registration: a typed result with its evidence, never a bare matrix.

Coordinates are pixel centres: (0, 0) is the middle of the upper left pixel, x to the right, y down,
as OpenCV's warps have it.  `matrix` takes a brightfield pixel (x, y) to its DIC pixel:
`cv2.warpAffine(dic, matrix, size, flags=INTER_LINEAR | WARP_INVERSE_MAP)` lays the DIC on the
brightfield.  Method and measurements: docs/registration.md.
"""

from __future__ import annotations

import importlib
import time
from typing import Any

import numpy as np

from pipeline.errors import BadInput
from pipeline.registration_align import WorkPair, align, tile_side
from pipeline.registration_checks import checks, out_of_range
from pipeline.registration_prepare import (
    MIN_SIDE_PX,
    Unusable,
    check_image,
    check_kinds,
    prepare_brightfield,
    prepare_dic,
    reduction,
)
from pipeline.registration_refine import measure_tiles
from pipeline.settings import RegistrationSettings
from pipeline.types import Box, Matrix, Registration

Array = np.ndarray[Any, np.dtype[Any]]

MAX_PIXEL_RATIO = 4.0  # between the two cameras; beyond it the finer image is mostly thrown away


def register(
    dic: Array,
    brightfield: Array,
    settings: RegistrationSettings | None = None,
    *,
    pixel_size_um: float,
    dic_pixel_size_um: float | None = None,
    expected_shift_px: tuple[float, float] | None = None,
) -> Registration:
    """Align a DIC image (H, W[, 3]) with its brightfield partner (H, W, 3) or (H, W), uint8 or uint16.

    `pixel_size_um` is the brightfield's; `dic_pixel_size_um`, where it differs, becomes part of the
    matrix.  `expected_shift_px` (x, y), known from stage positions, narrows the search: it is the
    DIC pixel where the brightfield's origin is expected.  Where nothing is found near it the whole
    range is searched, since a stage position says nothing of the shift between the two light paths.
    The result is `failed` with a reason where the evidence does not carry an alignment.  Raises
    BadInput for what is no image at all.
    """
    settings = settings or RegistrationSettings()
    check_image(brightfield, "brightfield", (1, 3))
    check_image(dic, "DIC", (1, 3))
    for size in (pixel_size_um, dic_pixel_size_um or pixel_size_um):
        if not (np.isfinite(size) and size > 0):
            raise BadInput(f"The pixel size {size} µm is impossible; give the micrometres of one pixel.")
    _load_libraries()
    began = time.perf_counter()
    try:
        result = _align(
            dic, brightfield, settings, pixel_size_um, dic_pixel_size_um or pixel_size_um, expected_shift_px
        )
    except Unusable as reason:
        result = Registration(status="failed", reason=str(reason))
    return result.model_copy(update={"seconds": time.perf_counter() - began})


def _load_libraries() -> None:
    """Import what the alignment uses, so that the first pair's time is not that of start-up."""
    for name in ("cv2", "scipy.fft", "scipy.special", "detectors.scale"):
        importlib.import_module(name)


def _align(
    dic: Array,
    brightfield: Array,
    settings: RegistrationSettings,
    pixel_size_um: float,
    dic_pixel_size_um: float,
    expected_shift_px: tuple[float, float] | None,
) -> Registration:
    pair = _work_pair(dic, brightfield, pixel_size_um, dic_pixel_size_um)
    levels = pair.pyramid()
    found = align(pair, levels, settings, expected_shift_px)
    full = np.linalg.inv(pair.dic.from_full) @ found.matrix @ pair.brightfield.from_full
    ratio = pixel_size_um / dic_pixel_size_um
    values: dict[str, Any] = {}
    for check in checks(
        pair,
        levels,
        found,
        settings,
        pixel_size_um=pixel_size_um,
        out_of_range=out_of_range(full, brightfield.shape, dic.shape, ratio, settings),
    ):
        values |= check.measured
        if check.refused:
            return Registration(status="failed", reason=check.refused, **values)
    return Registration(status="ok", matrix=_as_matrix(full), **values)


def _work_pair(dic: Array, brightfield: Array, pixel_size_um: float, dic_pixel_size_um: float) -> WorkPair:
    """Both images at one working scale; Unusable where they are too small, too unlike or show nothing."""
    factor = reduction(*brightfield.shape[:2])
    dic_factor = factor * pixel_size_um / dic_pixel_size_um
    if not 1 / MAX_PIXEL_RATIO <= dic_factor / factor <= MAX_PIXEL_RATIO:
        raise Unusable(
            f"The pixel sizes, {pixel_size_um:g} and {dic_pixel_size_um:g} µm, differ by more than "
            f"a factor of {MAX_PIXEL_RATIO:g}; check them."
        )
    if min(*brightfield.shape[:2]) < MIN_SIDE_PX or min(dic.shape[:2]) < MIN_SIDE_PX * dic_factor / factor:
        raise Unusable(f"The images are too small to align: {MIN_SIDE_PX} px are needed on each side.")
    check_kinds(dic, brightfield)
    return WorkPair(
        prepare_brightfield(brightfield, factor, pixel_size_um),
        prepare_dic(dic, dic_factor, factor * pixel_size_um),
        factor,
        dic_factor,
    )


def _as_matrix(matrix: Array) -> Matrix:
    (a, b, c), (d, e, f) = (tuple(float(v) for v in row) for row in matrix[:2])
    return ((a, b, c), (d, e, f))


def _usable_matrix(registration: Registration) -> Array:
    if registration.matrix is None:
        raise BadInput(f"The registration failed ({registration.reason}), so no box can be carried over.")
    return np.vstack([np.asarray(registration.matrix, float), [0, 0, 1]])


def _boxed(matrix: Array, box: Box) -> Box:
    x0, y0, x1, y1 = box
    # Box edges lie between pixels (x0 = 0 is the left edge of the first one), matrices speak of centres.
    corners = np.array([[x0, x1, x1, x0], [y0, y0, y1, y1]]) - 0.5
    x, y = (matrix @ np.vstack([corners, np.ones(4)]))[:2] + 0.5
    return (float(x.min()), float(y.min()), float(x.max()), float(y.max()))


def transform_box(box: Box, registration: Registration) -> Box:
    """The upright DIC box around a brightfield box; BadInput where the registration failed."""
    return _boxed(_usable_matrix(registration), box)


def inverse_transform_box(box: Box, registration: Registration) -> Box:
    """The upright brightfield box around a DIC box; BadInput where the registration failed."""
    return _boxed(np.linalg.inv(_usable_matrix(registration)), box)


def local_residuals(dic: Array, brightfield: Array, registration: Registration) -> tuple[Array, Array]:
    """Where the local content still lies off: centres (N, 2) and shifts (N, 2), brightfield pixels.

    A shift points from where the matrix puts a place to where the DIC has it.
    """
    full = _usable_matrix(registration)
    factor = reduction(*brightfield.shape[:2])
    ratio = float(np.sqrt(abs(np.linalg.det(full[:2, :2]))))
    try:
        bf, df = prepare_brightfield(brightfield, factor, 0.1), prepare_dic(dic, factor * ratio, 0.1 * factor)
    except Unusable:
        return np.zeros((0, 2)), np.zeros((0, 2))
    matrix = df.from_full @ full @ np.linalg.inv(bf.from_full)
    shear = np.radians(registration.shear_angle_deg or 0.0)
    tiles = measure_tiles(bf.image, df.image, matrix, shear, side=tile_side(bf.image.shape), reach=4)
    to_full = np.linalg.inv(bf.from_full)
    seen = tiles.informative
    return tiles.centres[seen] @ to_full[:2, :2].T + to_full[:2, 2], tiles.shifts[seen] * factor


def quality_picture(dic: Array, brightfield: Array, registration: Registration) -> Array:
    """What a person judges an alignment by, (H, W, 3) uint8, at most 1000 px wide."""
    from pipeline.registration_picture import draw

    return draw(dic, brightfield, registration)
