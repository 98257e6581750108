"""The nucleus in the middle of a Perls patch, by the amount of nuclear fast red."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

WORKING_PIXEL_SIZE_UM = 0.1
AREA_UM2 = (9.0, 260.0)  # orthochromatic erythroblast to proerythroblast
MAX_OFFSET_UM = 4.0  # of the nucleus from the middle of the patch
MIN_CONTRAST = 0.05  # optical density of the nucleus over its surroundings
MIN_CYTOPLASM = 0.015  # optical density of cytoplasm over glass from which its edge is seen
MIN_SOLIDITY = 0.86
MAX_ASPECT = 1.45  # length over width
MAX_TOUCH = 0.15  # share of the outline that may lie against another nucleus
MAX_EDGE_SIGMA_UM = 0.45  # blur of the outline from which granules are no longer told apart


@dataclass(frozen=True)
class Nucleus:
    """Mask (H, W) bool and contour (M, 2) x, y at the working scale; `reason` where it cannot be used."""

    mask: np.ndarray | None
    contour: np.ndarray | None
    others: np.ndarray | None  # mask of the neighbours' nuclei
    edge_sigma_um: float | None
    reason: str = ""


def find_nucleus(fast_red: np.ndarray) -> Nucleus:
    """Find and judge the central nucleus in fast-red amounts (H, W) at 0.1 µm a pixel.

    Three levels are sought, glass, cytoplasm and nucleus.  The inner outline is the nucleus where it is
    an edge all around; where it is not (chromatin clumps, cytoplasm that took no stain), the outer is.
    """
    import cv2

    px = WORKING_PIXEL_SIZE_UM
    smooth = cv2.GaussianBlur(fast_red.astype(np.float32), (0, 0), 0.35 / px)
    best: tuple[np.ndarray, np.ndarray] | None = None
    for level in _levels(smooth):
        pieces = _split(smooth > level)
        index = _central(pieces)
        if index == 0:
            continue
        mask = _filled(pieces == index)
        weakest, usual = _steps(smooth, mask)
        edge_all_around = weakest > 0.35 * usual and weakest > 0.4 * MIN_CONTRAST
        if best is None or (edge_all_around and _solidity(mask) > 0.9):
            best = mask, (pieces > 0) & ~mask
    if best is None:
        return Nucleus(None, None, None, None, "no nucleus found")
    mask, others = _refined(smooth, *best)
    if (
        _solidity(mask) >= MIN_SOLIDITY
    ):  # an erythroblast's nucleus is convex; what is missing is pale chromatin
        mask = _hull(mask) & ~others
    contour = _smoothed(_outline(mask))
    sigma = _edge_sigma_um(fast_red, mask)
    return Nucleus(mask, contour, others, sigma, _judge(mask, contour, others, sigma))


def distance_px(mask: np.ndarray) -> np.ndarray:
    """Distance (px) of every pixel of a mask to the nearest pixel outside it, exact, float32."""
    import cv2

    return np.asarray(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE))


def _levels(smooth: np.ndarray) -> list[float]:
    """Thresholds from the outer to the inner body in the middle of a patch; none where all is alike."""
    from skimage.filters import threshold_multiotsu

    height, width = smooth.shape
    y, x = np.ogrid[:height, :width]
    reach = 8.0 / WORKING_PIXEL_SIZE_UM
    middle = (y - (height - 1) / 2) ** 2 + (x - (width - 1) / 2) ** 2 <= reach**2
    values = smooth[middle]
    top = float(np.percentile(values, 99.5))
    if top - float(np.percentile(values, 1)) < MIN_CONTRAST:
        return []
    cuts = threshold_multiotsu(np.clip(values, 0, top), classes=3, nbins=128)
    ordered = np.sort(values)
    medians = [float(np.median(p)) for p in np.split(ordered, np.searchsorted(ordered, cuts)) if p.size]
    # Half way between two levels lies the true place of a blurred edge.
    return [
        (low + high) / 2
        for low, high in itertools.pairwise(medians)
        if high - low > 0.4 * MIN_CONTRAST and high > MIN_CONTRAST
    ]


def _outline(mask: np.ndarray) -> np.ndarray:
    """The longest outer contour (M, 2) float x, y of a mask."""
    import cv2

    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(max(contours, key=cv2.contourArea)[:, 0, :], np.float64)


def _solidity(mask: np.ndarray) -> float:
    """Area over that of the convex hull."""
    import cv2

    contour = _outline(mask).astype(np.float32)
    hull = float(cv2.contourArea(cv2.convexHull(contour)))
    return float(cv2.contourArea(contour)) / hull if hull > 0 else 0.0


def _hull(mask: np.ndarray) -> np.ndarray:
    import cv2

    hull = cv2.convexHull(_outline(mask).astype(np.int32))
    return np.asarray(cv2.fillConvexPoly(np.zeros(mask.shape, np.uint8), hull, 1) > 0)


def _refined(smooth: np.ndarray, mask: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move the outline to half way between the nucleus itself and what lies just around it.

    The first level knows the patch as a whole; this one knows the cell.  It may move the outline by
    0.8 µm at most.
    """
    from scipy import ndimage

    px = WORKING_PIXEL_SIZE_UM
    for _ in range(2):
        outside = distance_px(~mask) * px
        inside = distance_px(mask) * px
        ring = (outside > 0.5) & (outside < 1.2) & ~others
        core = inside > 0.5
        if not ring.any() or not core.any():
            break
        level = (float(np.median(smooth[core])) + float(np.median(smooth[ring]))) / 2
        moved = ((smooth > level) | (inside > 0.8)) & (outside < 0.8) & ~others
        parts = _closed(_opened(moved))
        numbered, _ = ndimage.label(parts)
        own = numbered[mask & (numbered > 0)]
        if own.size == 0:
            break
        mask = _filled(numbered == np.bincount(own).argmax())
    return mask, others & ~mask


def _smoothed(contour: np.ndarray) -> np.ndarray:
    """A pixel contour without its steps, which would lengthen it by a tenth."""
    from scipy import ndimage

    return np.asarray(ndimage.gaussian_filter1d(contour, 3.0, axis=0, mode="wrap"))


def _steps(smooth: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """How much darker it is 0.7 µm inside the outline than outside: 20th percentile and median."""
    from scipy import ndimage

    reach = 0.7 / WORKING_PIXEL_SIZE_UM
    depth = distance_px(mask) - distance_px(~mask)
    slope_y, slope_x = np.gradient(ndimage.gaussian_filter(depth, 2.0))
    contour = _outline(mask)
    x, y = contour[:, 0], contour[:, 1]
    ny, nx = (s[y.astype(int), x.astype(int)] for s in (slope_y, slope_x))
    length = np.maximum(np.hypot(ny, nx), 1e-6)
    ny, nx = ny / length, nx / length
    inside = ndimage.map_coordinates(smooth, [y + reach * ny, x + reach * nx], order=1, mode="nearest")
    outside = ndimage.map_coordinates(smooth, [y - reach * ny, x - reach * nx], order=1, mode="nearest")
    weakest, usual = np.percentile(inside - outside, (20, 50))
    return float(weakest), float(usual)


def _opened(mask: np.ndarray) -> np.ndarray:
    """Freed of what is narrower than a micrometre."""
    import cv2

    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(0.5 / WORKING_PIXEL_SIZE_UM) + 1,) * 2)
    return np.asarray(cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, kernel) > 0)


def _closed(mask: np.ndarray) -> np.ndarray:
    """Chromatin has pale places, which at the edge would be notches: bays of 1.6 µm are closed."""
    import cv2

    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(0.8 / WORKING_PIXEL_SIZE_UM) + 1,) * 2)
    room = kernel.shape[0]
    wide = np.pad(mask.astype(np.uint8), room)
    return np.asarray(cv2.morphologyEx(wide, cv2.MORPH_CLOSE, kernel)[room:-room, room:-room] > 0)


def _split(stained: np.ndarray) -> np.ndarray:
    """Numbered nuclei (H, W) int32: filled, freed of crumbs, touching ones cut at their necks."""
    from scipy import ndimage
    from skimage.morphology import local_maxima, reconstruction
    from skimage.segmentation import watershed

    px = WORKING_PIXEL_SIZE_UM
    filled = _filled(_closed(_opened(stained)))
    distance = np.rint(distance_px(filled) * px * 1000)
    coarse = distance[::2, ::2]  # necks of half a micrometre show at 0.2 µm, in a quarter of the time
    flooded = reconstruction(np.maximum(coarse - 400, 0), coarse, method="dilation")
    numbered, _ = ndimage.label(local_maxima(flooded.astype(np.int32)) & (coarse > 0), np.ones((3, 3)))
    markers = np.zeros(filled.shape, np.int32)
    markers[::2, ::2] = numbered
    return np.asarray(watershed(-distance, markers, mask=filled))


def _central(pieces: np.ndarray) -> int:
    """Number of the nucleus in the middle, 0 where none is near enough and large enough."""
    height, width = pieces.shape
    middle = np.array(((height - 1) / 2, (width - 1) / 2))
    best, best_distance = 0, MAX_OFFSET_UM
    for index in range(1, int(pieces.max()) + 1):
        where = np.argwhere(pieces == index)
        area = len(where) * WORKING_PIXEL_SIZE_UM**2
        distance = (
            float(np.linalg.norm(where.mean(axis=0) - middle)) * WORKING_PIXEL_SIZE_UM if len(where) else 99.0
        )
        if AREA_UM2[0] <= area <= AREA_UM2[1] * 2 and distance < best_distance:
            best, best_distance = index, distance
    return best


def _filled(mask: np.ndarray) -> np.ndarray:
    """A mask without holes."""
    import cv2

    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(np.zeros(mask.shape, np.uint8), contours, -1, 1, cv2.FILLED) > 0)


def _edge_sigma_um(amount: np.ndarray, mask: np.ndarray) -> float:
    """Blur (standard deviation, µm) of the outline: step height over steepest slope and sqrt(2 pi).

    The median over the outline, so that a granule or a neighbour on it does not decide.
    """
    import cv2

    px = WORKING_PIXEL_SIZE_UM
    depth = distance_px(mask) - distance_px(~mask)
    signed = np.where(mask, depth - 0.5, depth + 0.5)  # the outline runs between pixels
    fine = cv2.GaussianBlur(amount.astype(np.float32), (0, 0), 1.0)
    bins = np.floor(signed).astype(int)
    reach = round(1.4 / px)
    rings = [fine[bins == b] for b in range(-reach, min(reach, int(bins.max()) + 1))]
    profile = np.array([np.median(r) for r in rings if r.size])
    step = float(np.median(profile[-4:]) - np.median(profile[:4]))
    slope = float(np.max(np.diff(profile)))
    if step <= 0 or slope <= 0:
        return float("inf")
    return float(step / (slope * np.sqrt(2 * np.pi))) * px


def _judge(mask: np.ndarray, contour: np.ndarray, others: np.ndarray, edge_sigma_um: float) -> str:
    """Why the nucleus cannot be used, or an empty string."""
    import cv2

    area = float(mask.sum()) * WORKING_PIXEL_SIZE_UM**2
    if mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any():
        return "nucleus cut by the edge of the patch"
    if area > AREA_UM2[1]:
        return "overlapping cells: the stained body is larger than any nucleus"
    if _solidity(mask) < MIN_SOLIDITY:
        return "overlapping cells: the nucleus has no simple outline"
    _, sides, _ = cv2.minAreaRect(contour.astype(np.float32))
    if max(sides) > MAX_ASPECT * min(sides):
        return "overlapping cells: the stained body is too long for one round nucleus"
    near = cv2.dilate(others.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    x, y = np.rint(contour).astype(int).T
    if float(near[y, x].mean()) > MAX_TOUCH:
        return "overlapping cells: another nucleus lies against this one"
    if edge_sigma_um > MAX_EDGE_SIGMA_UM:
        return f"defocus: the nucleus has an edge {edge_sigma_um:.1f} µm wide"
    return ""


def cell_body(fast_red: np.ndarray, nucleus: np.ndarray, outside_um: np.ndarray) -> np.ndarray | None:
    """Mask (H, W) bool of the cell, nucleus included, or None where its cytoplasm does not show.

    Cytoplasm takes up a little fast red.  Its level is read just outside the nucleus, that of the glass
    from the palest tenth of the patch; the cell ends half way between, at most 7 µm from the nucleus.
    """
    import cv2
    from scipy import ndimage

    px = WORKING_PIXEL_SIZE_UM
    smooth = cv2.GaussianBlur(fast_red.astype(np.float32), (0, 0), 0.3 / px)
    ring = (outside_um > 0.8) & (outside_um < 1.5)
    if not ring.any():
        return None
    cytoplasm, glass = float(np.median(smooth[ring])), float(np.percentile(smooth, 10))
    if cytoplasm - glass < MIN_CYTOPLASM:
        return None
    body = (smooth > (cytoplasm + glass) / 2) & (outside_um < 7.0) | nucleus
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(0.6 / px) + 1,) * 2)
    body = cv2.morphologyEx(body.astype(np.uint8), cv2.MORPH_OPEN, kernel) > 0
    parts, _ = ndimage.label(body | nucleus)
    own = parts[nucleus]
    cell = _filled(parts == np.bincount(own[own > 0]).argmax())
    # Iron at the edge takes pink away there; a third of a micrometre keeps such granules in the cell.
    return np.asarray(distance_px(~cell) * px <= 0.3)
