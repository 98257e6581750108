"""The nucleus in the middle of a Perls patch, by the amount of nuclear fast red."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

WORKING_PIXEL_SIZE_UM = 0.1
AREA_UM2 = (9.0, 260.0)  # orthochromatic erythroblast to proerythroblast
MAX_OFFSET_UM = 4.0  # of the nucleus from the middle of the patch
MIN_CONTRAST = 0.05  # optical density of the nucleus over its surroundings
MIN_SOLIDITY = 0.86
MAX_TOUCH = 0.25  # share of the outline that may lie against another nucleus
MAX_EDGE_SIGMA_UM = 0.62  # blur of the outline from which granules are no longer told apart


@dataclass(frozen=True)
class Nucleus:
    """Mask (H, W) bool and contour (M, 2) x, y at the working scale; `reason` where it cannot be used."""

    mask: np.ndarray | None
    contour: np.ndarray | None
    others: np.ndarray | None  # mask of the neighbours' nuclei
    edge_sigma_um: float | None
    reason: str = ""


def find_nucleus(fast_red: np.ndarray) -> Nucleus:
    """Find and judge the central nucleus in fast-red amounts (H, W) at 0.1 µm a pixel."""
    import cv2

    px = WORKING_PIXEL_SIZE_UM
    smooth = cv2.GaussianBlur(fast_red.astype(np.float32), (0, 0), 0.25 / px)
    level = _threshold(smooth)
    if level is None:
        return Nucleus(None, None, None, None, "no nucleus found")
    pieces = _split(smooth > level)
    index = _central(pieces)
    if index == 0:
        return Nucleus(None, None, None, None, "no nucleus found")
    mask = _filled(pieces == index)
    others = (pieces > 0) & ~mask
    contour = max(
        cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)[0],
        key=cv2.contourArea,
    )[:, 0, :].astype(np.float64)
    sigma = _edge_sigma_um(fast_red, mask)
    return Nucleus(mask, contour, others, sigma, _judge(mask, contour, others, sigma))


def _threshold(smooth: np.ndarray) -> float | None:
    """Otsu between the middle's dark and pale parts; None where the two hardly differ."""
    import cv2

    height, width = smooth.shape
    y, x = np.ogrid[:height, :width]
    reach = 8.0 / WORKING_PIXEL_SIZE_UM
    middle = (y - (height - 1) / 2) ** 2 + (x - (width - 1) / 2) ** 2 <= reach**2
    values = np.clip(smooth[middle], 0, 1)
    top = float(np.percentile(values, 99.5))
    if top < MIN_CONTRAST:
        return None
    scaled = np.clip(values / top * 255, 0, 255).astype(np.uint8)[:, None]
    level = float(cv2.threshold(scaled, 0, 255, cv2.THRESH_OTSU)[0]) / 255 * top
    high, low = values[values > level], values[values <= level]
    if high.size == 0 or low.size == 0 or float(np.median(high) - np.median(low)) < MIN_CONTRAST:
        return None
    # Half way between both parts, where the blurred outline of a body has its true place.
    return float(np.median(high) + np.median(low)) / 2


def _split(stained: np.ndarray) -> np.ndarray:
    """Numbered nuclei (H, W) int32: filled, freed of crumbs, touching ones cut at their necks."""
    import cv2
    from scipy import ndimage
    from skimage.morphology import local_maxima, reconstruction
    from skimage.segmentation import watershed

    px = WORKING_PIXEL_SIZE_UM
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * round(0.5 / px) + 1,) * 2)
    opened = cv2.morphologyEx(stained.astype(np.uint8), cv2.MORPH_OPEN, kernel)
    filled = ndimage.binary_fill_holes(opened > 0)
    distance = np.rint(ndimage.distance_transform_edt(filled) * px * 1000)
    flooded = reconstruction(np.maximum(distance - 400, 0), distance, method="dilation")
    markers, _ = ndimage.label(local_maxima(flooded.astype(np.int32)) & filled, np.ones((3, 3)))
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
    from scipy import ndimage

    return np.asarray(ndimage.binary_fill_holes(mask))


def _edge_sigma_um(amount: np.ndarray, mask: np.ndarray) -> float:
    """Blur (standard deviation, µm) of the outline: step height over steepest slope and sqrt(2 pi).

    The median over the outline, so that a granule or a neighbour on it does not decide.
    """
    import cv2
    from scipy import ndimage

    px = WORKING_PIXEL_SIZE_UM
    signed = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    fine = cv2.GaussianBlur(amount.astype(np.float32), (0, 0), 1.0)
    bins = np.round(signed).astype(int)
    reach = round(1.4 / px)
    profile = np.array(
        [np.median(fine[bins == b]) if (bins == b).any() else np.nan for b in range(-reach, reach + 1)]
    )
    if np.isnan(profile).any():
        return 0.0
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
    hull = cv2.contourArea(cv2.convexHull(contour.astype(np.float32)))
    if cv2.contourArea(contour.astype(np.float32)) < MIN_SOLIDITY * hull:
        return "overlapping cells: the nucleus has no simple outline"
    near = cv2.dilate(others.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
    x, y = contour[:, 0].astype(int), contour[:, 1].astype(int)
    if float(near[y, x].mean()) > MAX_TOUCH:
        return "overlapping cells: another nucleus lies against this one"
    if edge_sigma_um > MAX_EDGE_SIGMA_UM:
        return f"defocus: the nucleus has an edge {edge_sigma_um:.1f} µm wide"
    return ""
