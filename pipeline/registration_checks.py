"""Whether an alignment holds: what is measured on it, and the first reason for which it is refused.

The checks stand in the order of their cost: what comes later is not computed for a pair refused before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.registration_align import Alignment, WorkPair, coarser, way_back
from pipeline.registration_evidence import (
    density_correlation,
    held_out,
    likeness,
    no_relief,
    p_false_accept,
)
from pipeline.registration_fit import uncertainty_px
from pipeline.settings import RegistrationSettings

Array = np.ndarray[Any, np.dtype[Any]]

# Working pixels (of 2 px in a 2064 x 1544 field) from a place to where the way to the DIC and back leads it:
# true pairs had up to 0.20, defocused by 8 px 0.30; one image with itself, which has no shear, up to 1.7.
MAX_ROUND_TRIP = 1.0


@dataclass(frozen=True)
class Check:
    """Figures of an alignment by their names in `Registration`, and why it does not hold; empty: it may."""

    measured: dict[str, float | None]
    refused: str


def checks(
    pair: WorkPair,
    levels: list[tuple[Array, Array]],
    found: Alignment,
    settings: RegistrationSettings,
    *,
    pixel_size_um: float,
    out_of_range: str,
) -> Iterator[Check]:
    """The checks of an alignment, each made only when it is asked for.

    `out_of_range` says what of the matrix in full pixels the settings do not allow; empty: nothing.
    """
    evidence = held_out(found.tiles)
    ecc, alike = _correlations(levels, found.matrix, found.shear_rad)
    middle, high = _percentiles(evidence.residuals)
    residual_px = _times(middle, pair.factor)
    p_false = p_false_accept(found.score, evidence)
    yield Check(
        {
            "ecc": ecc,
            "residual_px": residual_px,
            "residual_p95_px": _times(high, pair.factor),
            "residual_um": _times(middle, pair.factor * pixel_size_um),
            "residual_p95_um": _times(high, pair.factor * pixel_size_um),
            "shear_angle_deg": float(np.degrees(found.shear_rad)),
            "p_false_accept": p_false,
        },
        _no_agreement(p_false, settings)
        or no_relief(ecc, alike)
        or out_of_range
        or _left_over(residual_px, settings),
    )
    area = pair.brightfield.image.shape
    apart = found.tiles.band_gap / 2  # the shift lies between what coarse and what fine structure show
    parts = (uncertainty_px(found.tiles, area[:2]), found.absorbed_error, apart)
    error_px = float(np.linalg.norm(parts)) * pair.factor
    yield Check({"expected_error_px": _times(error_px, 1.0)}, _open(error_px, settings))
    round_trip = _round_trip(found.matrix, way_back(pair, found), area)
    yield Check({"forward_backward_px": round_trip * pair.factor}, _astray(round_trip, pair.factor))


def _no_agreement(p_false: float, settings: RegistrationSettings) -> str:
    if not p_false > settings.max_p_false_accept:
        return ""
    return (
        f"The two images do not agree: a pair of different fields scores as high with a chance of "
        f"{p_false:.2g}, over the allowed {settings.max_p_false_accept:g}."
    )


def _left_over(residual_px: float | None, settings: RegistrationSettings) -> str:
    if residual_px is None:
        return "No tiles are left to measure the local shifts on."
    if not residual_px > settings.max_residual_px:
        return ""
    return (
        f"The local shifts left over are {residual_px:.1f} px in the median, over the allowed "
        f"{settings.max_residual_px:g} px."
    )


def _open(error_px: float, settings: RegistrationSettings) -> str:
    if not error_px > settings.max_uncertainty_px:
        return ""
    return (
        "The field shows too little to fix the alignment: the expected error is "
        f"{error_px:.1f} px, over the allowed {settings.max_uncertainty_px:g} px."
    )


def _astray(round_trip: float, factor: float) -> str:
    if not round_trip > MAX_ROUND_TRIP:
        return ""
    return (
        f"There and back again the alignment ends {round_trip * factor:.1f} px beside its start, "
        f"over the allowed {MAX_ROUND_TRIP * factor:g} px: the two images do not fix it."
    )


def _correlations(levels: list[tuple[Array, Array]], matrix: Array, shear_rad: float) -> tuple[float, float]:
    """ECC and likeness at the aligned state, at half the working size where there is one."""
    bf, df = levels[0]
    if len(levels) > 1:
        (bf, df), matrix = levels[1], coarser(matrix)
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


def out_of_range(
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
