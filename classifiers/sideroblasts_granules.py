"""Prussian-blue granules: small blue spots that stand out of whatever blue haze there is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WORKING_PIXEL_SIZE_UM = 0.1
SIGMAS_UM = (0.12, 0.17, 0.24, 0.34)  # of the LoG; a disc of radius r answers most at sigma = r / sqrt 2
MIN_CONTRAST = 0.10  # blue amount (optical density) of a granule over its surroundings
NOISE_FACTOR = 6.0  # over the robust spread of the response
SURROUNDINGS_UM = 1.3  # radius of the opening that takes haze away


@dataclass(frozen=True)
class Granules:
    """x, y (px at the working scale) and radius_um of each spot (K, 3); haze: blue amount behind them."""

    spots: np.ndarray
    haze: float
    weakest_visible: float  # the contrast that a granule needed here


def find_granules(blue: np.ndarray, where: np.ndarray) -> Granules:
    """Granules in blue amounts (H, W) at 0.1 µm a pixel, centred inside the mask `where` (H, W).

    Haze varies over micrometres and is removed by a white top-hat; a granule is a maximum, in place and
    scale, of the normalised Laplacian of Gaussian (Lindeberg 1998) whose contrast passes both a fixed
    figure and the noise of this patch.
    """
    import cv2
    from scipy import ndimage

    px = WORKING_PIXEL_SIZE_UM
    image = cv2.GaussianBlur(blue.astype(np.float32), (0, 0), 0.8)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(SURROUNDINGS_UM / px) + 1,) * 2)
    behind = cv2.GaussianBlur(cv2.morphologyEx(image, cv2.MORPH_OPEN, kernel), (0, 0), 0.5 / px)
    behind = np.minimum(behind, image)
    relief = image - behind
    stack = np.stack([-((s / px) ** 2) * ndimage.gaussian_laplace(relief, s / px) for s in SIGMAS_UM])
    best = stack.max(axis=0)
    spread = 1.4826 * float(np.median(np.abs(best[where] - np.median(best[where])))) if where.any() else 0.0
    # A disc of contrast c answers 2 c / e = 0.74 c at its own scale.
    needed = max(MIN_CONTRAST, NOISE_FACTOR * spread / 0.74)
    peaks = (ndimage.maximum_filter(best, size=2 * round(0.25 / px) + 1) == best) & where
    peaks &= (best > 0.74 * needed) & (relief > needed)
    ys, xs = np.nonzero(peaks)
    order = np.argsort(-best[ys, xs], kind="stable")
    radius = np.sqrt(2) * np.array(SIGMAS_UM)[stack[:, ys, xs].argmax(axis=0)] if len(ys) else np.empty(0)
    spots = _apart(np.column_stack([xs, ys, radius])[order] if len(ys) else np.empty((0, 3)))
    haze = float(np.median(behind[where])) if where.any() else 0.0
    return Granules(spots, haze, needed)


def _apart(spots: np.ndarray) -> np.ndarray:
    """Drop a spot whose centre lies within a stronger one (spots are sorted by falling response)."""
    kept: list[np.ndarray] = []
    for spot in spots:
        if all(
            np.hypot(*(spot[:2] - k[:2])) * WORKING_PIXEL_SIZE_UM > max(0.3, 0.75 * max(spot[2], k[2]))
            for k in kept
        ):
            kept.append(spot)
    return np.array(kept) if kept else np.empty((0, 3))
