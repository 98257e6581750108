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
NULL_AGREEMENT = 0.12  # chance of that in a wrong pair: pi / 81 of the searched area, three times over
# Search scores of mismatched pairs, as `python -m benchmarks.registration --null` prints them: mode of
# their Gumbel law, and twice its scale.
NULL_SCORE_MODE = 3.6
NULL_SCORE_SCALE = 0.5
# A picture and itself (the same file twice, two stains of one field) agree in every tile and pass both
# tests above; what they lack is relief.  ECC of pairs that were accepted by all else, measured on the 12
# fields of the cases and 72 made pairs: true ones 0.58-0.87, defocused by 8 px 0.54 or more, with noise of
# 50 grey levels 0.59, brightfield exposed 1.6 times too long 0.33, twice 0.16.  A brightfield image and its
# own outlines: at most 0.03.
MIN_ECC = 0.1
# One kind of image twice, moved or not, had an ECC of up to 0.30 and a correlation with itself, as it is, of
# 0.74-0.99; true pairs 0-0.47, and those of an ECC under 0.35 at most 0.06.  A DIC that absorbs 0.6 of the
# density and more is taken for the same kind: what is left of it without the density's share has an ECC as
# large (0.68) as blurred copies have (0.72), so that this would not tell them apart.
ALIKE, ECC_OF_ALIKE = 0.7, 0.35


@dataclass(frozen=True)
class Evidence:
    """Residual lengths (N,) of held-out tiles in working pixels, and what speaks for the pair.

    `agreement` is the share of informative tiles within AGREE_PX of a transform they were not part of.
    """

    residuals: Array
    agreement: float
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
    """Chance that a pair of different fields reaches this search score or this agreement.

    Two independent witnesses, the search over the whole field and the agreement of its tiles, have to
    speak for the pair; the weaker one is what is reported.
    """
    return max(p_score(score), p_agreement(evidence))


def p_score(score: float) -> float:
    """Chance of a search score under the null: the Gumbel law of a maximum, widened on purpose."""
    return float(-np.expm1(-np.exp(-(score - NULL_SCORE_MODE) / NULL_SCORE_SCALE)))


def p_agreement(evidence: Evidence) -> float:
    """Chance that so many tiles agree by accident: a binomial tail.

    A tile's best shift is drawn from the (2 reach + 1)^2 places of its search; the chance to agree is
    taken three times as large as the area says, and two tiles are left out, since two fix a similarity
    (the a-contrario argument of Moisan and Stival 2004, Int. J. Computer Vision 57, section 3).
    """
    from scipy.special import bdtrc

    agreeing = round(evidence.agreement * evidence.n_tiles)
    trials = evidence.n_tiles - 2
    if trials < 1:
        return 1.0
    return float(bdtrc(agreeing - 3, trials, NULL_AGREEMENT)) if agreeing >= 3 else 1.0


def no_relief(ecc: float, alike: float) -> str:
    """Why an aligned pair is no DIC and its brightfield; empty where it can be.

    `ecc` is what `density_correlation` gives, `alike` what `likeness` gives.
    """
    if abs(alike) > ALIKE and ecc < ECC_OF_ALIKE:
        return (
            f"The two images show the same picture (correlation {abs(alike):.2f}): one kind of image "
            "twice, or a DIC that absorbs more than it shows relief; hand in brightfield and DIC, this one "
            "without dye."
        )
    if ecc < MIN_ECC:
        return (
            f"The DIC is no relief of what the brightfield shows: their correlation (ECC) is {ecc:.2f}, "
            f"under {MIN_ECC:g}; hand in DIC and brightfield of one field."
        )
    return ""


def likeness(brightfield: Array, dic: Array, matrix: Array) -> float:
    """Correlation of optical density with DIC as it is, over the overlap; near 0 for a true pair."""
    import cv2

    h, w = brightfield.shape
    warped = cv2.warpAffine(dic, matrix[:2], (w, h), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    x0, y0, x1, y1 = overlap(matrix, (h, w), dic.shape)
    return _correlation(brightfield[y0:y1, x0:x1], warped[y0:y1, x0:x1])


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
    return _correlation(brightfield[y0:y1, x0:x1], high_pass(path, 6.0)[y0:y1, x0:x1])


def _correlation(a: Array, b: Array) -> float:
    if a.size == 0:
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / max(float(np.sqrt((a * a).sum() * (b * b).sum())), 1e-12))
