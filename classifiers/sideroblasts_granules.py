"""Prussian-blue granules: small blue spots that stand out of whatever blue haze there is."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WORKING_PIXEL_SIZE_UM = 0.1
SIGMAS_UM = (0.10, 0.14, 0.20, 0.28)  # of the LoG; a disc of radius r answers most at sigma = r / sqrt 2
LEAST_IRON = 0.13  # blue amount (optical density) of the palest granule that is counted, in focus
SMALLEST_UM = 0.2  # its radius, which says how much of that blur leaves
LEAST_VISIBLE = 0.045  # contrast below which camera noise and chromatin look alike
NOISE_FACTOR = 5.0  # over the robust spread of the response
SURROUNDINGS_UM = 1.2  # radius of the opening that takes haze away


@dataclass(frozen=True)
class Granules:
    """x, y (px at the working scale) and radius_um of each spot (K, 3); haze: blue amount behind them."""

    spots: np.ndarray
    haze: float
    weakest_visible: float  # the contrast that a granule needed here


def find_granules(blue: np.ndarray, where: np.ndarray, blur_um: float) -> Granules:
    """Granules in blue amounts (H, W) at 0.1 µm a pixel, centred inside the mask `where` (H, W).

    Haze varies over micrometres and is removed by a white top-hat; a granule is a maximum, in place and
    scale, of the normalised Laplacian of Gaussian (Lindeberg 1998) whose contrast passes what a pale
    small granule keeps under this patch's blur (standard deviation `blur_um`), and the noise.  Granules
    that touch show one maximum: the area of a blot says how many it holds.
    """
    import cv2
    from scipy import ndimage

    px = WORKING_PIXEL_SIZE_UM
    image = cv2.GaussianBlur(blue.astype(np.float32), (0, 0), 0.6)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(SURROUNDINGS_UM / px) + 1,) * 2)
    behind = cv2.GaussianBlur(cv2.morphologyEx(image, cv2.MORPH_OPEN, kernel), (0, 0), 0.5 / px)
    behind = np.minimum(behind, image)
    relief = image - behind
    stack = np.stack([-((s / px) ** 2) * ndimage.gaussian_laplace(relief, s / px) for s in SIGMAS_UM])
    best = stack.max(axis=0)
    haze = float(np.median(behind[where])) if where.any() else 0.0
    needed = max(LEAST_IRON * kept_contrast(blur_um), LEAST_VISIBLE)
    if where.any():
        noise = 1.4826 * float(np.median(np.abs(best[where] - np.median(best[where]))))
        needed = max(needed, NOISE_FACTOR * noise)
    peaks = (ndimage.maximum_filter(best, size=3) == best) & where & (best > 0.5 * needed) & (relief > needed)
    ys, xs = np.nonzero(peaks)
    if len(ys) == 0:
        return Granules(np.empty((0, 3)), haze, needed)
    order = np.argsort(-best[ys, xs], kind="stable")
    radius = np.sqrt(2) * np.array(SIGMAS_UM)[stack[:, ys, xs].argmax(axis=0)]
    spots = _apart(np.column_stack([xs, ys, radius])[order])
    return Granules(_blots(spots, relief, where, blur_um), haze, needed)


def _aspect(xs: np.ndarray, ys: np.ndarray) -> float:
    """Length over width of a blot, by second moments; two touching granules are about 1.7."""
    if len(xs) < 6:
        return 1.0
    small, large = np.linalg.eigvalsh(np.cov(np.stack([xs, ys]).astype(float)) + np.eye(2) / 12)
    return float(np.sqrt(large / small))


def kept_contrast(blur_um: float) -> float:
    """Share of its contrast that the smallest granule keeps under a Gaussian blur: 1 - exp(-r² / 2 s²)."""
    return 1.0 if blur_um <= 0 else float(1 - np.exp(-(SMALLEST_UM**2) / (2 * blur_um**2)))


def _apart(spots: np.ndarray) -> np.ndarray:
    """Drop a spot whose centre lies within a stronger one (spots are sorted by falling response)."""
    kept: list[np.ndarray] = []
    for spot in spots:
        away = [np.hypot(*(spot[:2] - k[:2])) * WORKING_PIXEL_SIZE_UM for k in kept]
        if all(d > max(0.22, 0.7 * k[2]) for d, k in zip(away, kept, strict=True)):
            kept.append(spot)
    return np.array(kept) if kept else np.empty((0, 3))


def _blots(spots: np.ndarray, relief: np.ndarray, where: np.ndarray, blur_um: float) -> np.ndarray:
    """Add granules to blots that are larger than their maxima account for.

    A blot is what lies above half its own peak.  Its area, less what blur adds, over the area of a
    single granule is the number it holds; the added ones stand where the blot is left uncovered.
    """
    from scipy import ndimage

    px = WORKING_PIXEL_SIZE_UM
    level = np.zeros(relief.shape, np.float32)
    for x, y, _ in spots.astype(int):
        level[y, x] = relief[y, x] / 2
    reach = ndimage.maximum_filter(level, size=2 * round(0.5 / px) + 1)
    parts, count = ndimage.label((relief > reach) & (reach > 0))
    if count == 0:
        return spots
    owner = parts[spots[:, 1].astype(int), spots[:, 0].astype(int)]
    areas = np.bincount(parts.ravel(), minlength=count + 1) * px**2
    single = np.median([areas[o] for o in range(1, count + 1) if (owner == o).sum() == 1] or [0.25])
    single = float(np.clip(single, 0.15 + 2 * blur_um**2, 0.32 + 4 * blur_um**2))
    added: list[tuple[float, float, float]] = []
    for part in range(1, count + 1):
        mine = spots[owner == part]
        if len(mine) == 0:
            continue
        ys, xs = np.nonzero((parts == part) & where)
        missing = max(round(float(areas[part]) / single), round(_aspect(xs, ys) - 0.1)) - len(mine)
        taken = [tuple(s[:2]) for s in mine]
        for _ in range(min(missing, 6)):
            if len(xs) == 0:
                break
            away = np.min([np.hypot(xs - x, ys - y) for x, y in taken], axis=0)
            far = int(away.argmax())
            if away[far] * px < 0.25:
                break
            taken.append((xs[far], ys[far]))
            added.append((float(xs[far]), float(ys[far]), float(np.sqrt(single / np.pi))))
    return np.vstack([spots, added]) if added else spots
