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
from pipeline.registration_evidence import (
    density_correlation,
    held_out,
    likeness,
    no_relief,
    p_false_accept,
)
from pipeline.registration_fit import absorption_pull, fit_transform, shifted, uncertainty_px, updated
from pipeline.registration_prepare import (
    MIN_SIDE_PX,
    Unusable,
    check_image,
    check_kinds,
    halve,
    prepare_brightfield,
    prepare_dic,
    reduction,
)
from pipeline.registration_refine import Tiles, measure_tiles
from pipeline.registration_search import Start, search
from pipeline.settings import RegistrationSettings
from pipeline.types import Box, Matrix, Registration

Array = np.ndarray[Any, np.dtype[Any]]

SEARCH_PIXELS = 40_000  # at most twice as many are searched: 1/8 of a 2064 x 1544 field
MAX_PIXEL_RATIO = 4.0  # between the two cameras; beyond it the finer image is mostly thrown away
# Working pixels (of 2 px in a 2064 x 1544 field) from a place to where the way to the DIC and back leads it:
# true pairs had up to 0.20, defocused by 8 px 0.30; one image with itself, which has no shear, up to 1.7.
MAX_ROUND_TRIP = 1.0
CLEAR_SCORE = 15.0  # no mismatched pair came near it (docs/registration.md)


def tile_side(shape: tuple[int, ...]) -> int:
    """Side of a tile in working pixels: about 48 tiles a field, none under 48 px."""
    return int(np.clip(round(float(np.sqrt(shape[0] * shape[1] / 48)) / 16) * 16, 48, 128))


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
    bf = prepare_brightfield(brightfield, factor, pixel_size_um)
    df = prepare_dic(dic, dic_factor, factor * pixel_size_um)
    levels = [(bf.image, df.image)]
    while levels[-1][0].size > 2 * SEARCH_PIXELS:
        levels.append((halve(levels[-1][0]), halve(levels[-1][1])))
    shrink = 2 ** (len(levels) - 1)
    start = _start(*levels[-1], factor * shrink, dic_factor * shrink, settings, expected_shift_px)
    matrix, shear = start.matrix, start.shear_rad

    side = tile_side(bf.image.shape)
    for level in range(len(levels) - 2, 0, -1):
        matrix = _finer(matrix)
        tiles = measure_tiles(*levels[level], matrix, shear, side=max(48, side // 2), reach=8)
        matrix, shear = updated(matrix, _fit(tiles)), tiles.shear_rad
    if len(levels) > 1:
        matrix = _finer(matrix)
    tiles = measure_tiles(bf.image, df.image, matrix, shear, side=side, reach=6)
    matrix = updated(matrix, _fit(tiles))
    tiles = measure_tiles(bf.image, df.image, matrix, shear, side=side, reach=4, settled=True)
    step = _fit(tiles)
    absorbed, absorbed_error = absorption_pull(tiles, step)
    matrix, shear = shifted(updated(matrix, step), absorbed), tiles.shear_rad
    evidence = held_out(tiles)
    p_false = p_false_accept(start.score, evidence)
    full = np.linalg.inv(df.from_full) @ matrix @ bf.from_full
    residual, residual_p95 = _percentiles(evidence.residuals)
    ecc, alike = _correlations(levels, matrix, shear)
    values: dict[str, Any] = {
        "ecc": ecc,
        "residual_px": _times(residual, factor),
        "residual_p95_px": _times(residual_p95, factor),
        "residual_um": _times(residual, factor * pixel_size_um),
        "residual_p95_um": _times(residual_p95, factor * pixel_size_um),
        "shear_angle_deg": float(np.degrees(shear)),
        "p_false_accept": p_false,
    }
    if p_false > settings.max_p_false_accept:
        return Registration(
            status="failed",
            reason=f"The two images do not agree: a pair of different fields scores as high with a chance of "
            f"{p_false:.2g}, over the allowed {settings.max_p_false_accept:g}.",
            **values,
        )
    if flat := no_relief(ecc, alike):
        return Registration(status="failed", reason=flat, **values)
    outside = _out_of_range(full, brightfield.shape, dic.shape, pixel_size_um / dic_pixel_size_um, settings)
    if outside:
        return Registration(status="failed", reason=outside, **values)
    residual_px = _times(residual, factor)
    if residual_px is None or residual_px > settings.max_residual_px:
        return Registration(
            status="failed",
            reason=(
                "No tiles are left to measure the local shifts on."
                if residual_px is None
                else f"The local shifts left over are {residual_px:.1f} px in the median, over the allowed "
                f"{settings.max_residual_px:g} px."
            ),
            **values,
        )
    apart = tiles.band_gap / 2  # the shift lies between what coarse and what fine structure show
    parts = (uncertainty_px(tiles, bf.image.shape[:2]), absorbed_error, apart)
    uncertainty = float(np.linalg.norm(parts)) * factor
    values["expected_error_px"] = _times(uncertainty, 1.0)
    if uncertainty > settings.max_uncertainty_px:
        return Registration(
            status="failed",
            reason="The field shows too little to fix the alignment: the expected error is "
            f"{uncertainty:.1f} px, over the allowed {settings.max_uncertainty_px:g} px.",
            **values,
        )
    back_matrix = np.linalg.inv(matrix)
    back = measure_tiles(
        df.image, bf.image, back_matrix, shear, side=side, reach=4, swapped=True, settled=True
    )
    back_step = _fit(back)
    back_matrix = shifted(updated(back_matrix, back_step), absorption_pull(back, back_step)[0])
    round_trip = _round_trip(matrix, back_matrix, bf.image.shape)
    values["forward_backward_px"] = round_trip * factor
    if round_trip > MAX_ROUND_TRIP:
        return Registration(
            status="failed",
            reason=f"There and back again the alignment ends {round_trip * factor:.1f} px beside its start, "
            f"over the allowed {MAX_ROUND_TRIP * factor:g} px: the two images do not fix it.",
            **values,
        )
    return Registration(status="ok", matrix=_as_matrix(full), **values)


def _start(
    bf: Array,
    df: Array,
    scale: float,
    dic_scale: float,
    settings: RegistrationSettings,
    expected_shift_px: tuple[float, float] | None,
) -> Start:
    """The coarse alignment; `scale` is how many full pixels a search pixel holds."""

    def run(max_shift_px: float, expected: tuple[float, float] | None) -> Start:
        return search(
            bf,
            df,
            max_shift_px=max_shift_px / scale,
            max_rotation_deg=settings.max_rotation_deg,
            max_scale_change=settings.max_scale_change,
            expected_shift_px=expected,
        )

    if expected_shift_px is not None:
        # From where the origin lies to how far the centres lie apart, which the search speaks of.
        middle = (np.array(bf.shape[::-1]) - np.array(df.shape[::-1])) / 2
        x, y = np.asarray(expected_shift_px, float) / dic_scale + middle
        near = run(max(0.25 * settings.max_shift_px, 4 * scale), (float(x), float(y)))
        if near.score >= CLEAR_SCORE:
            return near
    return run(settings.max_shift_px, None)


_HALF = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]])


def _finer(matrix: Array) -> Array:
    """The same alignment in pixels half as large."""
    return np.linalg.inv(_HALF) @ matrix @ _HALF


def _coarser(matrix: Array) -> Array:
    return _HALF @ matrix @ np.linalg.inv(_HALF)


def _fit(tiles: Tiles) -> Array:
    if len(tiles.shifts) == 0:
        raise Unusable("The two images overlap too little to be aligned.")
    return fit_transform(tiles)


def _correlations(levels: list[tuple[Array, Array]], matrix: Array, shear_rad: float) -> tuple[float, float]:
    """ECC and likeness at the aligned state, at half the working size where there is one."""
    bf, df = levels[0]
    if len(levels) > 1:
        (bf, df), matrix = levels[1], _coarser(matrix)
    return density_correlation(bf, df, matrix, shear_rad), likeness(bf, df, matrix)


def _percentiles(residuals: Array) -> tuple[float, float]:
    """Median and 95th percentile; infinite where they were not to be had."""
    if len(residuals) == 0:
        return np.inf, np.inf
    middle, high = np.percentile(residuals, [50, 95], method="higher")
    return float(middle), float(high)


def _times(value: float, factor: float) -> float | None:
    """A finite value in other units; None for an infinite one, which JSON does not know."""
    return float(value * factor) if np.isfinite(value) else None


def _round_trip(matrix: Array, back: Array, shape: tuple[int, ...]) -> float:
    """Mean distance over the field between a pixel and where there and back again leads it."""
    x, y = np.meshgrid(np.linspace(0, shape[1] - 1, 9), np.linspace(0, shape[0] - 1, 7))
    points = np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    return float(np.hypot(*((back @ matrix @ points) - points)[:2]).mean())


def _out_of_range(
    full: Array,
    shape: tuple[int, ...],
    dic_shape: tuple[int, ...],
    pixel_ratio: float,
    settings: RegistrationSettings,
) -> str:
    """Why an alignment is outside what the settings allow; empty where it is inside."""
    linear = full[:2, :2] / pixel_ratio
    rotation = float(np.degrees(np.arctan2(linear[1, 0] - linear[0, 1], linear[0, 0] + linear[1, 1])))
    stretches = np.linalg.svd(linear, compute_uv=False)
    change = float(np.abs(stretches - 1).max())
    centre = full @ np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2, 1.0])
    middle = np.array([(dic_shape[1] - 1) / 2, (dic_shape[0] - 1) / 2])
    shift = float(np.abs((centre[:2] - middle) / pixel_ratio).max())
    if shift > 1.25 * settings.max_shift_px:
        return f"The best shift is {shift:.0f} px, over the allowed {settings.max_shift_px:g} px."
    if abs(rotation) > 1.1 * settings.max_rotation_deg:
        return f"The best rotation is {rotation:.1f} degrees, over the allowed {settings.max_rotation_deg:g}."
    if change > 2 * settings.max_scale_change:
        allowed = 100 * settings.max_scale_change
        return f"The best scale is off by {100 * change:.1f} %, over the allowed {allowed:g} %."
    return ""


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
