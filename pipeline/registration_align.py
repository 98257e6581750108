"""The alignment of two working images: a search on a coarse level, then tiles on finer and finer ones.

Whether what it ends at is real is for `registration_checks` to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.registration_fit import absorption_pull, fit_transform, shifted, updated
from pipeline.registration_prepare import Unusable, WorkImage, halve
from pipeline.registration_refine import Tiles, measure_tiles
from pipeline.registration_search import Start, search
from pipeline.settings import RegistrationSettings

Array = np.ndarray[Any, np.dtype[Any]]

SEARCH_PIXELS = 40_000  # at most twice as many are searched: 1/8 of a 2064 x 1544 field
CLEAR_SCORE = 15.0  # no mismatched pair came near it (docs/registration.md)


@dataclass(frozen=True)
class WorkPair:
    """Both images at the working size, and how many of its own full pixels one of theirs holds."""

    brightfield: WorkImage
    dic: WorkImage
    factor: float
    dic_factor: float

    def pyramid(self) -> list[tuple[Array, Array]]:
        """(brightfield, DIC) from the working size down to what is searched, each half of the one before."""
        levels = [(self.brightfield.image, self.dic.image)]
        while levels[-1][0].size > 2 * SEARCH_PIXELS:
            levels.append((halve(levels[-1][0]), halve(levels[-1][1])))
        return levels


@dataclass(frozen=True)
class Alignment:
    """Where the DIC lies under the brightfield, in working pixels, and what that was measured on.

    `matrix` (3, 3) takes a brightfield pixel to its DIC pixel.  `score` is the search's, `tiles` are the last
    ones, measured before their own shift was followed; `absorbed_error` is the expected error of what the
    DIC's absorption was found to draw them by.
    """

    matrix: Array
    shear_rad: float
    score: float
    tiles: Tiles
    absorbed_error: float


def tile_side(shape: tuple[int, ...]) -> int:
    """Side of a tile in working pixels: about 48 tiles a field, none under 48 px."""
    return int(np.clip(round(float(np.sqrt(shape[0] * shape[1] / 48)) / 16) * 16, 48, 128))


def align(
    pair: WorkPair,
    levels: list[tuple[Array, Array]],
    settings: RegistrationSettings,
    expected_shift_px: tuple[float, float] | None,
) -> Alignment:
    """The alignment that the levels of a pair lead to; Unusable where they overlap too little."""
    shrink = 2 ** (len(levels) - 1)
    start = _start(*levels[-1], pair.factor * shrink, pair.dic_factor * shrink, settings, expected_shift_px)
    matrix, shear = start.matrix, start.shear_rad
    (bf, df), side = levels[0], tile_side(levels[0][0].shape)
    for level in range(len(levels) - 2, 0, -1):
        matrix = _finer(matrix)
        tiles = measure_tiles(*levels[level], matrix, shear, side=max(48, side // 2), reach=8)
        matrix, shear = updated(matrix, _fit(tiles)), tiles.shear_rad
    if len(levels) > 1:
        matrix = _finer(matrix)
    tiles = measure_tiles(bf, df, matrix, shear, side=side, reach=6)
    matrix = updated(matrix, _fit(tiles))
    matrix, tiles, absorbed_error = _settled(bf, df, matrix, shear, side)
    return Alignment(matrix, tiles.shear_rad, start.score, tiles, absorbed_error)


def way_back(pair: WorkPair, found: Alignment) -> Array:
    """The matrix (3, 3) from DIC to brightfield, measured anew from where the alignment puts it."""
    bf, df = pair.brightfield.image, pair.dic.image
    side = tile_side(bf.shape)
    return _settled(df, bf, np.linalg.inv(found.matrix), found.shear_rad, side, swapped=True)[0]


def _settled(
    fixed: Array, moved: Array, matrix: Array, shear_rad: float, side: int, *, swapped: bool = False
) -> tuple[Array, Tiles, float]:
    """A last step freed of absorption: the matrix, the tiles it follows, what absorption leaves open."""
    tiles = measure_tiles(fixed, moved, matrix, shear_rad, side=side, reach=4, swapped=swapped, settled=True)
    step = _fit(tiles)
    absorbed, error = absorption_pull(tiles, step)
    return shifted(updated(matrix, step), absorbed), tiles, error


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


def coarser(matrix: Array) -> Array:
    """The same alignment in pixels twice as large."""
    return _HALF @ matrix @ np.linalg.inv(_HALF)


def _fit(tiles: Tiles) -> Array:
    if len(tiles.shifts) == 0:
        raise Unusable("The two images overlap too little to be aligned.")
    return fit_transform(tiles)
