"""What the DIC still absorbs, told apart from a shift along its shear.

The tiles share one transfer function from optical density to DIC.  Its odd part is the derivative, i a(|k|)
cos(angle to the shear); its even part is absorption, b(|k|), the same in every direction.  A shift d
along the shear turns both by exp(-2 pi i d k.u) and so adds to the even part 2 pi d (k.u) a cos: zero
across the shear, most along it.  Absorption is seen alone across the shear, and the shift is what the even
part has more of along it.  A shift across the shear adds in proportion to sin t cos t, which neither of
them holds; it is fitted too, since a shear direction read a little wrong turns the pull of absorption.
All frequencies of all tiles are fitted at once (weighted least squares on
the estimate of a transfer function, whose variance is S_residual / (n S_density): Bendat and
Piersol, Random Data, 4th ed., section 9.2).  Measured: docs/registration.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]

TOP_FREQUENCY = 0.35  # cycles a working pixel; the fit's own variances fade out what carries nothing
ABSORPTION_POWERS = (0, 2)  # b(k) = b0 + b2 k^2: alike blurs of the two images leave b0 alone
MODEL_SHARE = 0.1  # of the odd part: how far a path is from being its stain filtered
ENERGY_FLOOR = 0.3  # of the median tile's energy; above it all tiles count alike
SIGMA_TIMES = 4.0  # errors over the fit's own deviation, root mean square over made pairs
PULL_PX = 0.5  # working pixels: how far absorption may draw an alignment
BANDS_MEET = 0.09  # cycles a working pixel: what is coarser and what is finer each fix a shift of their own
LIMIT_PX = 1.6  # of the shift, from where the tiles were cut
ROUNDS = 6


def tile_weights(density_energy: Array, dic_energy: Array) -> Array:
    """Weights (N,) of tiles in the mean spectra, so that a few dark leukocytes do not outvote the rest."""
    scale = [e + ENERGY_FLOOR * np.median(e) + 1e-12 for e in (density_energy, dic_energy)]
    weight = 1 / np.sqrt(scale[0] * scale[1])
    out: Array = weight / weight.mean()
    return out


def shear_shift(
    density_power: Array,
    dic_power: Array,
    cross: Array,
    n_tiles: int,
    kx: Array,
    ky: Array,
    shear_rad: float,
    *,
    band: tuple[float, float] = (0.0, TOP_FREQUENCY),
) -> tuple[Array, Array]:
    """Shift (2,) of the DIC along and across its shear and the expected error (2,) of it, working pixels.

    Mean half spectra (S, S // 2 + 1) over the tiles: powers of density and DIC, and their cross
    spectrum conj(density) DIC; kx, ky in cycles a pixel, of which those in `band` are used.  Where the
    spectra say nothing the error is large.
    """
    side = len(cross)
    k = np.hypot(kx, ky)
    chosen = (k > max(1.5 / side, band[0])) & (k < band[1])
    rings = side // 2 + 1
    every = np.minimum((k * side + 0.5).astype(int), rings - 1)
    power = density_power + 1e-9 * float(density_power.max()) + 1e-12
    left = dic_power - (cross.real**2 + cross.imag**2) / power
    count = np.maximum(np.bincount(every.ravel(), minlength=rings), 1)
    noise = np.maximum(np.bincount(every.ravel(), left.ravel(), rings) / count, 1e-12)[every]
    ring, modulus = every[chosen], k[chosen]
    variance = (noise / (n_tiles * power))[chosen]
    transfer = (cross / power)[chosen].astype(np.complex128)
    along = (kx * np.cos(shear_rad) + ky * np.sin(shear_rad))[chosen]
    across = (ky * np.cos(shear_rad) - kx * np.sin(shear_rad))[chosen]
    cosine = along / modulus
    share = np.where(
        np.broadcast_to(kx, k.shape)[chosen] == 0, 0.5, 1.0
    )  # both halves hold the column kx = 0
    weight = share / variance
    even = np.stack([(modulus / 0.05) ** p for p in ABSORPTION_POWERS], 1)
    shift, sigma = np.zeros(2), np.full(2, np.inf)
    for _ in range(ROUNDS):
        turned = transfer * np.exp(2j * np.pi * (shift[0] * along + shift[1] * across))
        squares = np.bincount(ring, weight * cosine * cosine, rings)
        odd = np.bincount(ring, weight * cosine * turned.imag, rings) / np.maximum(squares, 1e-12)
        odd = np.maximum(odd, 0)[ring]
        weight = share / (variance + (MODEL_SHARE * odd) ** 2)
        design = np.column_stack([2 * np.pi * along * cosine * odd, 2 * np.pi * across * cosine * odd, even])
        weighted = design * weight[:, None]
        gram = weighted.T @ design
        gram += np.diag(1e-12 * np.diag(gram) + 1e-12)
        found = np.linalg.solve(gram, weighted.T @ turned.real)
        excess = float((weight * (turned.real - design @ found) ** 2).sum()) * 2 / float(share.sum())
        sigma = np.sqrt(max(1.0, excess) * np.diag(np.linalg.inv(gram))[:2])
        step = np.clip(found[:2], -0.5, 0.5)
        shift = np.clip(shift + step, -LIMIT_PX, LIMIT_PX)
        if np.abs(step).max() < 1e-3:
            break
    return shift, SIGMA_TIMES * sigma


def band_gap(
    density_power: Array, dic_power: Array, cross: Array, n_tiles: int, kx: Array, ky: Array, shear_rad: float
) -> float:
    """How far apart, in working pixels along the shear, coarse and fine structure put the DIC.

    Arguments as of `shear_shift`.  One transfer function, as a DIC that is linear in the path has, puts all
    structure at one place; a phase so strong that it turns the contrast round does not.
    """
    bands = ((0.0, BANDS_MEET), (BANDS_MEET, TOP_FREQUENCY))
    spectra = (density_power, dic_power, cross, n_tiles, kx, ky, shear_rad)
    coarse, fine = (shear_shift(*spectra, band=band)[0][0] for band in bands)
    return float(abs(coarse - fine))


def pull(shift: Array, error: Array, seen: Array) -> tuple[Array, float]:
    """How far (2,) the tiles' own shifts lack of the true one, along and across the shear, and the error.

    `shift` and its `error` are those of `shear_shift`, `seen` (2,) is what the tiles' peaks show.  The
    difference is believed as far as it was measured, against PULL_PX expected of any pair.
    """
    believed = PULL_PX**2 / (PULL_PX**2 + error**2)
    return believed * (shift - seen), float(np.sqrt((believed * error**2).sum()))
