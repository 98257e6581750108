"""Is this alignment real? Held-out residuals, and the chance that a mismatched pair looks as good.

A wrong pair still has a best alignment; what it lacks is agreement of its parts.  `agreement` is the
share of tiles whose own best shift lies where the others' affine puts it.  How large it gets for
pairs that do not belong together was measured on mismatched fields (docs/registration.md), in the
spirit of the permuted-tile null of ASHLAR (Muhlich et al. 2022, Bioinformatics 38(19), 2.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from pipeline.registration_fit import fit_transform
from pipeline.registration_prepare import high_pass
from pipeline.registration_refine import Tiles, overlap
from pipeline.registration_search import frequencies

Array = np.ndarray[Any, np.dtype[Any]]

AGREE_PX = 1.0  # working pixels within which a tile agrees with the rest


@dataclass(frozen=True)
class Evidence:
    """Residual lengths (N,) of held-out tiles in working pixels, and what speaks for the pair."""

    residuals: Array
    agreement: float  # share of tiles that agree with an affine they were not part of
    n_tiles: int


def folds(centres: Array) -> Array:
    """Two folds (N,) bool in a checkerboard, so that each covers the whole field."""
    columns = np.unique(np.round(centres[:, 0]), return_inverse=True)[1]
    rows = np.unique(np.round(centres[:, 1]), return_inverse=True)[1]
    return (columns + rows) % 2 == 0


def held_out(tiles: Tiles) -> Evidence:
    """Residuals of each half of the tiles against the transform that the other half gives."""
    even, seen = folds(tiles.centres), tiles.informative
    left = np.full(len(tiles.shifts), np.inf)
    for fold in (even, ~even):
        if (seen & ~fold).sum() < 3:
            continue
        affine = fit_transform(tiles, ~fold)
        predicted = tiles.centres[fold] @ affine[:, :2].T + affine[:, 2]
        left[fold] = np.hypot(*(tiles.shifts[fold] - predicted).T)
    residuals = left[seen]
    agreement = float((residuals <= AGREE_PX).mean()) if seen.any() else 0.0
    return Evidence(residuals, agreement, int(seen.sum()))


def p_false_accept(score: float, evidence: Evidence) -> float:
    """Chance that a pair of different fields reaches this search score and this agreement."""
    if evidence.n_tiles < 6:
        return 1.0
    return float(min(1.0, np.exp(-1.5 * max(0.0, score - 12.0)) + (evidence.agreement < 0.6)))


def density_correlation(brightfield: Array, dic: Array, matrix: Array, shear_rad: float) -> float:
    """Correlation of optical density with DIC integrated along its shear, over the overlap.

    The value that ECC (Evangelidis and Psarakis 2008) maximises, of the aligned pair.
    """
    import cv2
    from scipy import fft as sfft

    h, w = brightfield.shape
    warped = cv2.warpAffine(dic, matrix[:2], (w, h), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    ky, kx, k = frequencies(h, w)
    ky, kx, k = ky, kx[:, : w // 2 + 1], k[:, : w // 2 + 1]
    kx = np.abs(kx)
    along = kx * np.cos(shear_rad) + ky * np.sin(shear_rad)
    # Wiener inverse of i 2 pi (k.u); the regulariser keeps streaks across the shear down.
    inverse = -1j * along / (along**2 + 0.02**2)
    path = sfft.irfft2(sfft.rfft2(warped) * inverse, s=(h, w))
    x0, y0, x1, y1 = overlap(matrix, (h, w), dic.shape)
    a, b = brightfield[y0:y1, x0:x1], high_pass(path, 6.0)[y0:y1, x0:x1]
    if a.size == 0:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / max(float(np.sqrt((a * a).sum() * (b * b).sum())), 1e-12))
